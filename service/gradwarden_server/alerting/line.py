"""The line to people, put together: marked groups become messages, and messages are delivered."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from gradwarden_server.alerting.herald import Herald
from gradwarden_server.notify.breaker import place
from gradwarden_server.notify.delivery import Courier
from gradwarden_server.notify.message import Sender
from gradwarden_server.notify.routefile import Paging
from gradwarden_server.notify.routes import Routing
from gradwarden_server.store.alerts.groups import GroupStore
from gradwarden_server.store.alerts.letters import Letters
from gradwarden_server.store.alerts.outbox import Outbox
from gradwarden_server.store.database import Database, Priority

T = TypeVar("T")
log = logging.getLogger(__name__)
_DAY_NS = 86_400 * 1_000_000_000


class Line:
    """Herald, outbox and courier of one process."""

    def __init__(
        self,
        database: Database,
        routing: Routing,
        senders: Mapping[str, Sender],
        external_url: str,
        projects: Callable[[], Iterable[str]],
    ) -> None:
        self._routing = routing
        self.outbox = Outbox(database.engine)
        self.letters = Letters(database)
        self.courier = Courier(
            _Urgent(database),
            self.outbox,
            senders,
            time.time_ns,
            places={receiver.name: place(receiver) for receiver in routing.hearers},
        )
        self.herald = Herald(
            database,
            GroupStore(database.engine),
            routing,
            external_url,
            projects,
            time.time_ns,
            self.courier.wake,
        )

    def adopt(self, paging: Paging) -> None:
        """Tell by these routes from now on; other receivers are connected at the next start."""
        if paging.receivers == self._routing.hearers:
            self._routing.adopt(paging.routes)
            self.herald.adopt()
        else:
            log.warning("receivers changed: they and their routes are taken over at the next start")

    def start(self) -> None:
        """Begin to tell and to deliver."""
        self.courier.start()
        self.herald.start()

    def stop(self) -> None:
        """Finish what is under way; the rest waits in the database."""
        self.herald.stop()
        self.courier.stop()

    def wake(self) -> None:
        """Alerts changed, or the Watchdog spoke."""
        self.herald.wake()
        self.courier.wake()

    def numbers(self) -> dict[str, Any]:
        """What /metrics tells of it, by the names of a snapshot."""
        now_ns = time.time_ns()
        oldest_ns = self.outbox.oldest_unsent()
        return {
            "outbox_waiting": self.outbox.counts().get("waiting", 0),
            "outbox_oldest_seconds": 0.0
            if oldest_ns is None
            else max(0.0, (now_ns - oldest_ns) / 1e9),
            "outbox_dead": self.outbox.dead_since(now_ns - _DAY_NS),
            "circuits": self.courier.broken(),
            "herald_errors": self.herald.errors,
        }


class _Urgent:
    """The writer as the courier sees it: deliveries go before acks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, job: Callable[[Any], T]) -> Future[T]:
        return self._database.write(job, Priority.ALERT)
