"""Which messages spoke of an alert, to whom, and how that went."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, select

from gradwarden_server.model import Alert
from gradwarden_server.store.tables import delivery, outbox

_EPOCH = datetime.fromtimestamp(0, UTC)
_MOST_MESSAGES = 5000


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message that spoke of an alert, and how its last try went (None before the first).

    ``why`` is what it said: that the alert fires, or that it is over.
    """

    receiver: str
    state: str
    attempts: int
    why: str
    at_ns: int | None
    ok: bool | None
    detail: str | None


def deliveries(
    project: str, conn: Connection, alerts: Iterable[Alert]
) -> dict[int, tuple[Delivery, ...]]:
    """The messages that spoke of these incidents, oldest first, by the alert's id.

    One incident is told from others of its name by its start. Of very many messages only the
    newest are looked through.
    """
    fired = {
        (alert.fingerprint, alert.fired_ns // 1_000_000): alert.id
        for alert in alerts
        if alert.id is not None and alert.fired_ns is not None
    }
    if not fired:
        return {}
    since_ns = min(alert.active_ns for alert in alerts if alert.fired_ns is not None)
    columns = outbox.c.id, outbox.c.receiver, outbox.c.state, outbox.c.attempts, outbox.c.payload
    query = (
        select(*columns)
        .where(outbox.c.project == project, outbox.c.created_ns >= since_ns)
        .order_by(outbox.c.id.desc())
        .limit(_MOST_MESSAGES)
    )
    spoke = [
        (row, spoken)
        for row in reversed(conn.execute(query).all())
        if (spoken := _spoken(row.payload, fired))
    ]
    tries = _tries(conn, [row.id for row, _ in spoke])
    found: dict[int, list[Delivery]] = {}
    for row, spoken in spoke:
        last = tries.get(row.id)
        for alert_id, why in spoken.items():
            found.setdefault(alert_id, []).append(
                Delivery(
                    receiver=row.receiver,
                    state=row.state,
                    attempts=row.attempts,
                    why=why,
                    at_ns=None if last is None else last.at_ns,
                    ok=None if last is None else last.ok,
                    detail=None if last is None else last.detail,
                )
            )
    return {alert_id: tuple(held) for alert_id, held in found.items()}


def _spoken(payload: Mapping[str, Any], fired: Mapping[tuple[str, int], int]) -> dict[int, str]:
    """Of which of these alerts a message speaks, and what it says of each."""
    told = {}
    for one in payload.get("alerts", ()):
        alert_id = fired.get((one["fingerprint"], _milliseconds(one["startsAt"])))
        if alert_id is not None:
            told[alert_id] = str(one["status"])
    return told


def _tries(conn: Connection, messages: Sequence[int]) -> dict[int, Any]:
    """The last try of each message."""
    if not messages:
        return {}
    last = (
        select(func.max(delivery.c.id))
        .where(delivery.c.outbox_id.in_(messages))
        .group_by(delivery.c.outbox_id)
    )
    query = select(delivery).where(delivery.c.id.in_(last))
    return {row.outbox_id: row for row in conn.execute(query)}


def _milliseconds(text: str) -> int:
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(milliseconds=1)
