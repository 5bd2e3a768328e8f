"""Who takes care of open alerts, and telling it to those who were told of the alerts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import islice

from sqlalchemy import Connection, and_, select

from gradwarden_server.model import Alert, Labels, Notification
from gradwarden_server.store.alerts.ledger import AlertLedger
from gradwarden_server.store.alerts.outbox import enqueue, hold
from gradwarden_server.store.database import Database, Priority
from gradwarden_server.store.tables import alert, group_member, notification_group, outbox, telling

_MOST = 500
"""How many alerts one press of a button takes care of."""
_PAGE = 500


class Care:
    """Every method takes the project first."""

    def __init__(self, database: Database, ledger: AlertLedger, receivers: Sequence[str]) -> None:
        """``receivers`` are those that show who takes care, and are told so."""
        self._database = database
        self._ledger = ledger
        self._receivers = tuple(receivers)

    def ackers(self, project: str, fingerprints: Sequence[str]) -> Mapping[str, str]:
        """Who acknowledged, by fingerprint, of the open alerts among these."""
        query = select(alert.c.fingerprint, alert.c.acked_by).where(
            alert.c.project == project,
            alert.c.state == "firing",
            alert.c.fingerprint.in_(fingerprints),
            alert.c.acked_by.is_not(None),
        )
        with self._database.read() as connection:
            return {fingerprint: str(by) for fingerprint, by in connection.execute(query)}

    def matching(self, project: str, labels: Labels) -> list[Alert]:
        """The firing alerts with these labels, newest first."""
        wanted = labels.items()
        found = (one for one in self._firing(project, labels) if wanted <= one.labels.items())
        return list(islice(found, _MOST))

    def stormed(self, project: str) -> list[Alert]:
        """The firing alerts that a storm speaks for, newest first."""
        query = (
            select(group_member.c.alert_id)
            .join(notification_group, notification_group.c.id == group_member.c.group_id)
            .where(
                notification_group.c.project == project,
                notification_group.c.folded_into.is_not(None),
            )
        )
        with self._database.read() as connection:
            folded = set(connection.execute(query).scalars())
        found = (one for one in self._firing(project, {}) if one.id in folded) if folded else ()
        return list(islice(found, _MOST))

    def _firing(self, project: str, labels: Labels) -> Iterator[Alert]:
        """All firing alerts of the name and severity that labels give, page by page."""
        name, severity = labels.get("alertname"), labels.get("severity")
        cursor: str | None = None
        while True:
            page = self._ledger.list(
                project,
                ("firing",),
                severity=severity,
                limit=_PAGE,
                cursor=cursor,
                alertname=name,
            )
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def acknowledge(
        self, project: str, alerts: Sequence[int], actor: str, now_ns: int, note: str = ""
    ) -> Future[int]:
        """Note who takes care of open alerts; how many were open. Audited, the first one counts.

        Receivers that show it are told once more what they were told last of these alerts:
        each message says as it leaves who takes care.
        """

        def job(connection: Connection) -> int:
            found = 0
            fresh: list[int] = []
            for number in alerts:
                mine = and_(alert.c.id == number, alert.c.project == project)
                before = connection.execute(select(alert.c.acked_ns).where(mine)).one_or_none()
                if self._ledger.acknowledge(project, connection, number, actor, now_ns, note):
                    found += 1
                    if before is not None and before.acked_ns is None:
                        fresh.append(number)
            self._tell(project, connection, fresh, now_ns)
            return found

        return self._database.write(job, Priority.ALERT)

    def _tell(
        self, project: str, connection: Connection, fresh: Sequence[int], now_ns: int
    ) -> None:
        query = (
            select(outbox.c.receiver, outbox.c.group_key)
            .join(telling, telling.c.outbox_id == outbox.c.id)
            .where(
                outbox.c.project == project,
                outbox.c.receiver.in_(self._receivers),
                telling.c.alert_id.in_(fresh),
                telling.c.why != "storm",  # a storm's message names no single alert
            )
            .distinct()
        )
        groups = sorted((row.receiver, row.group_key) for row in connection.execute(query))
        for receiver, group_key in groups:
            # The end of a group that another process writes now must not be missed.
            hold(connection, receiver, group_key)
            last = connection.execute(
                select(outbox)
                .where(
                    outbox.c.project == project,
                    outbox.c.receiver == receiver,
                    outbox.c.group_key == group_key,
                )
                .order_by(outbox.c.seq.desc())
                .limit(1)
            ).one()
            # One that has not left yet will say it by itself; of one that is over nothing is said.
            waits = last.state == "waiting" and last.lease_until_ns <= now_ns
            if not waits and last.payload["status"] == "firing":
                told = Notification(project, receiver, group_key, last.severity, last.payload)
                enqueue(project, connection, told, now_ns)
