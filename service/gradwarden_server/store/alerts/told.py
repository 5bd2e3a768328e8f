"""Which messages were about an alert, to whom, why, and how that went."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from gradwarden_server.store.tables import delivery, outbox, telling


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message about an alert, and how its last try went (None before the first).

    ``why`` is what made it be sent: it fired, changed (something else came to its group), was
    repeated, escalated, resolved, or folded into a storm.
    """

    receiver: str
    state: str
    attempts: int
    why: str
    at_ns: int | None
    ok: bool | None
    detail: str | None


def deliveries(
    project: str, conn: Connection, alerts: Collection[int]
) -> dict[int, tuple[Delivery, ...]]:
    """The messages about these alerts, oldest first, by the alert's row."""
    newest = (
        select(func.max(delivery.c.id))
        .where(delivery.c.outbox_id == outbox.c.id)
        .correlate(outbox)
        .scalar_subquery()
    )
    query = (
        select(
            telling.c.alert_id,
            outbox.c.receiver,
            outbox.c.state,
            outbox.c.attempts,
            telling.c.why,
            delivery.c.at_ns,
            delivery.c.ok,
            delivery.c.detail,
        )
        .join(telling, telling.c.outbox_id == outbox.c.id)
        .outerjoin(delivery, delivery.c.id == newest)
        .where(outbox.c.project == project, telling.c.alert_id.in_(alerts))
        .order_by(outbox.c.id)
    )
    found: dict[int, list[Delivery]] = {}
    for alert_id, *words in conn.execute(query):
        found.setdefault(alert_id, []).append(Delivery(*words))
    return {alert_id: tuple(held) for alert_id, held in found.items()}
