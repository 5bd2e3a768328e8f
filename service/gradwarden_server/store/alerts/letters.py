"""Messages as people see them: what waits, what arrived, what was given up and is tried again."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, func, insert, select, update

from gradwarden_server.store import audit
from gradwarden_server.store.alerts.outbox import hold
from gradwarden_server.store.database import Database, Priority
from gradwarden_server.store.tables import delivery, outbox

Retried = Literal["retried", "unknown", "not dead", "replaced"]


@dataclass(frozen=True, slots=True)
class Letter:
    """One message, and how its last try went (None before the first)."""

    id: int
    receiver: str
    group_key: str
    severity: str
    state: str
    attempts: int
    created_ns: int
    not_before_ns: int
    status: str
    summary: str
    at_ns: int | None
    detail: str | None


class Letters:
    """Every method takes the project first."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(
        self, project: str, states: Sequence[str], limit: int, before: int | None = None
    ) -> list[Letter]:
        """Messages, the newest first; ``before`` is the number of the last one of a page."""
        newest = (
            select(func.max(delivery.c.id))
            .where(delivery.c.outbox_id == outbox.c.id)
            .correlate(outbox)
            .scalar_subquery()
        )
        query = (
            select(outbox, delivery.c.at_ns, delivery.c.detail)
            .outerjoin(delivery, delivery.c.id == newest)
            .where(outbox.c.project == project)
            .order_by(outbox.c.id.desc())
            .limit(limit)
        )
        if states:
            query = query.where(outbox.c.state.in_(states))
        if before is not None:
            query = query.where(outbox.c.id < before)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [
            Letter(
                id=row.id,
                receiver=row.receiver,
                group_key=row.group_key,
                severity=row.severity,
                state=row.state,
                attempts=row.attempts,
                created_ns=row.created_ns,
                not_before_ns=row.not_before_ns,
                status=str(row.payload.get("status", "")),
                summary=_summary(row.payload.get("alerts") or ()),
                at_ns=row.at_ns,
                detail=row.detail,
            )
            for row in rows
        ]

    def retry(self, project: str, letter: int, actor: str, now_ns: int) -> Future[Retried]:
        """Send a dead letter once more, from its first try on. Audited.

        Not where its group has said something since: that holds all there is to say, and an old
        message behind it would ring for what may be over.
        """

        def job(connection: Connection) -> Retried:
            mine = outbox.c.id == letter, outbox.c.project == project
            row = connection.execute(select(outbox).where(*mine)).one_or_none()
            if row is None:
                return "unknown"
            if row.state != "dead":
                return "not dead"
            hold(connection, row.receiver, row.group_key)
            later = select(outbox.c.id).where(
                outbox.c.receiver == row.receiver,
                outbox.c.group_key == row.group_key,
                outbox.c.seq > row.seq,
            )
            if connection.execute(later.limit(1)).first() is not None:
                return "replaced"
            again = {"state": "waiting", "attempts": 0, "not_before_ns": now_ns}
            connection.execute(update(outbox).where(*mine).values(**again, lease_until_ns=0))
            words = {"detail": f"tried again by {actor}", "ok": False, "duration_seconds": 0.0}
            connection.execute(insert(delivery).values(outbox_id=letter, at_ns=now_ns, **words))
            where = project, connection, now_ns, actor, "delivery.retry", str(letter)
            audit.record(*where, {"receiver": row.receiver})
            return "retried"

        return self._database.write(job, Priority.ALERT)


def _summary(alerts: Sequence[dict[str, dict[str, str]]]) -> str:
    """What the first alert of a message says of itself."""
    if not alerts:
        return ""
    first = alerts[0]
    name, run = first["labels"].get("alertname", ""), first["labels"].get("run")
    return f"{name} of {run}" if run else name
