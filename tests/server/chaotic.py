"""A small service that dies: alerts by word of mouth, the real herald and courier behind them.

Run as a program by the chaos test, and killed by it at any moment. Each line on its standard
input fires or ends an incident; the line comes back once that is durable. Its clock runs faster
than the world's, so that waits of minutes take seconds.
"""

from __future__ import annotations

import json
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from sqlalchemy import Connection, select

from gradwarden_server.alerting import herald as heralds
from gradwarden_server.alerting.herald import Herald
from gradwarden_server.alerting.lifecycle import advance
from gradwarden_server.notify import delivery
from gradwarden_server.notify.delivery import Courier
from gradwarden_server.notify.guard import Unresolved
from gradwarden_server.notify.message import Sender
from gradwarden_server.notify.post import Poster
from gradwarden_server.notify.routes import Escalation, Route, Routing
from gradwarden_server.notify.spec import Receiver
from gradwarden_server.notify.webhook import Webhook
from gradwarden_server.store import tables
from gradwarden_server.store.alerts.groups import GroupStore
from gradwarden_server.store.alerts.ledger import AlertLedger
from gradwarden_server.store.alerts.outbox import Outbox
from gradwarden_server.store.database import Database
from tests.server.pager import add_run, run_facts, sick, well

FASTER = 20
PATIENCE_SECONDS = 0.4
"""How long an answer is awaited, by the world's clock."""
ESCALATE_SECONDS = 1800.0


class Small:
    """The service. ``facts`` is what the test decided: addresses of the host, the ports."""

    def __init__(self, facts: dict[str, str]) -> None:
        self._began_ns = int(facts["began_ns"])
        self._dns = Path(facts["dns"])
        trusting = ssl.create_default_context(cafile=facts["certificate"])
        self.database = Database(facts["db"])
        self._runs: dict[str, int] = {}
        receivers = [
            Receiver(name, "webhook", f"https://{name}.test:{facts['port']}/{name}")
            for name in ("pager", "boss")
        ]
        senders: dict[str, Sender] = {}
        for receiver in receivers:
            client = httpx.Client(verify=trusting, trust_env=False)
            poster = Poster(
                receiver.url,
                allow_private=True,
                timeout_seconds=PATIENCE_SECONDS,
                client=client,
                resolve=self._resolve,
            )
            senders[receiver.name] = Webhook(poster, ())
        escalation = Escalation("boss", ESCALATE_SECONDS)
        routing = Routing(
            receivers,
            [Route("pager", repeat_interval_seconds=0.0, escalate=escalation, storm=None)],
        )
        engine = self.database.engine
        self._ledger = AlertLedger(engine, routing.lanes)
        outbox = Outbox(engine)
        self.database.write(outbox.void_claims).result()
        places = {"pager": "pager.test", "boss": "boss.test"}
        self.courier = Courier(self.database, outbox, senders, self.clock, places=places)
        self.herald = Herald(
            self.database,
            GroupStore(engine),
            routing,
            "http://gw",
            lambda: ("default",),
            self.clock,
            self.courier.wake,
        )

    def clock(self) -> int:
        return self._began_ns + (time.time_ns() - self._began_ns) * FASTER

    def start(self) -> None:
        self.courier.start()
        self.herald.start()

    def say(self, incident: str, fires: bool) -> None:
        """Durable when it returns, and the same again changes nothing."""

        def job(conn: Connection) -> None:
            if incident not in self._runs:
                known = conn.execute(
                    select(tables.run.c.id).where(tables.run.c.run == incident)
                ).scalar_one_or_none()
                self._runs[incident] = known or add_run(conn, incident)
            row, now_ns = self._runs[incident], self.clock()
            standing = self._ledger.open_alerts("default", conn, row)
            condition = sick() if fires else well()
            changes = advance(standing, run_facts(incident, row), [condition], now_ns)
            self._ledger.apply("default", conn, row, changes, now_ns)

        self.database.write(job).result()
        self.herald.wake()

    def _resolve(self, host: str, port: int) -> Iterator[str]:
        address = self._dns.read_text() if host == "pager.test" else "127.0.0.1"
        if not address:
            raise Unresolved("the name of the host does not resolve")
        return iter([address])


def main() -> None:
    """Live until killed, or until there is nothing more to hear."""
    delivery.POLL_SECONDS = 0.05
    heralds._POLL_SECONDS = 0.05
    service = Small(json.loads(sys.argv[1]))
    service.start()
    for line in sys.stdin:
        word, incident = line.split()
        service.say(incident, word == "fires")
        print(line.strip(), flush=True)


if __name__ == "__main__":
    main()
