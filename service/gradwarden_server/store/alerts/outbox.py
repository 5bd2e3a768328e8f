"""The outbox: messages to receivers, committed with the change that caused them.

Order holds within (receiver, group): while a message waits or is on its way, no later one of
its group is given out, so a resolve never overtakes its trigger.

States: ``waiting``; ``sent``; ``dead`` (given up); ``superseded``: not delivered, and a later one
says all of it; and ``standing``: told, and to be told again until the group says something new,
for receivers that forget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    and_,
    case,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    text,
    update,
)

from gradwarden_server.model import Notification, Queued, Receipt
from gradwarden_server.store.tables import delivery, outbox
from gradwarden_server.store.tables import notification_group as groups

LEASE_NS = 60 * 1_000_000_000
# A standing message that its receiver missed is told again soon, however often it fails.
STANDING_RETRY_NS = 60 * 1_000_000_000
OPEN = ("waiting", "standing")


def enqueue(
    project: str,
    conn: Connection,
    notification: Notification,
    now_ns: int,
    replaces: bool = False,
) -> int:
    """Put a message at the end of its group; returns its row number.

    ``replaces`` says that it holds all there is to say of its group: earlier ones that still wait
    are superseded, and so is one on its way if it does not arrive.
    """
    if notification.project != project:
        raise ValueError("a message of another project")
    same_group = and_(
        outbox.c.receiver == notification.receiver, outbox.c.group_key == notification.group_key
    )
    hold(conn, notification.receiver, notification.group_key)
    conn.execute(
        update(outbox).where(same_group, outbox.c.state == "standing").values(state="sent")
    )
    if replaces:
        conn.execute(
            update(outbox)
            .where(same_group, outbox.c.state == "waiting", outbox.c.lease_until_ns <= now_ns)
            .values(state="superseded")
        )
    last = conn.execute(select(func.max(outbox.c.seq)).where(same_group)).scalar_one()
    added = conn.execute(
        insert(outbox)
        .values(
            project=project,
            receiver=notification.receiver,
            group_key=notification.group_key,
            seq=(last or 0) + 1,
            severity=notification.severity,
            payload=dict(notification.payload),
            created_ns=now_ns,
            not_before_ns=now_ns,
            attempts=0,
            lease_until_ns=0,
            state="waiting",
            replaces=replaces,
        )
        .returning(outbox.c.id)
    )
    return int(added.scalar_one())


def hold(conn: Connection, receiver: str, group_key: str) -> None:
    """Until the end of this transaction no other puts a message into a group.

    Two must not take the same ordinal, nor one speak of what the other says is over. SQLite has
    one writer anyway.
    """
    if conn.dialect.name == "postgresql":
        name = {"n": f"{receiver}\n{group_key}"}
        conn.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:n, 0))"), name)


class Outbox:
    """The queue between evaluation and delivery. Workers serve all projects alike."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def beat(self, project: str, conn: Connection, notification: Notification, now_ns: int) -> None:
        """Enqueue a message that makes all earlier ones of its group worthless (the Watchdog).

        Those are deleted, except one on its way, so that a dead receiver gathers no backlog.
        """
        newest = enqueue(project, conn, notification, now_ns)
        old = select(outbox.c.id).where(
            outbox.c.receiver == notification.receiver,
            outbox.c.group_key == notification.group_key,
            outbox.c.id != newest,
            outbox.c.lease_until_ns <= now_ns,
        )
        conn.execute(delete(delivery).where(delivery.c.outbox_id.in_(old)))
        conn.execute(delete(outbox).where(outbox.c.id.in_(old)))

    def due(self, now_ns: int) -> bool:
        """Whether any message may be tried now; spares the writer an empty transaction."""
        query = select(select(outbox.c.id).where(_ready(now_ns)).exists())
        with self._engine.connect() as conn:
            return bool(conn.execute(query).scalar_one())

    def claim(self, conn: Connection, receiver: str, now_ns: int, limit: int) -> list[Queued]:
        """Take up to ``limit`` messages of a receiver under a lease, pages first."""
        ready = (
            select(outbox)
            .where(outbox.c.receiver == receiver, _ready(now_ns))
            .order_by(case((outbox.c.severity == "page", 0), else_=1), outbox.c.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        rows = conn.execute(ready).all()
        if rows:
            conn.execute(
                update(outbox)
                .where(outbox.c.id.in_([row.id for row in rows]))
                .values(lease_until_ns=now_ns + LEASE_NS, attempts=outbox.c.attempts + 1)
            )
        return [_queued(row) for row in rows]

    def void_claims(self, conn: Connection) -> None:
        """Free the messages that a dead process had in hand; they are tried again at once."""
        conn.execute(update(outbox).where(outbox.c.lease_until_ns > 0).values(lease_until_ns=0))

    def record(self, conn: Connection, queued: Queued, receipt: Receipt) -> None:
        """Write down how a try went and say what becomes of the message."""
        mine = outbox.c.id == queued.id
        row = conn.execute(
            select(outbox.c.state, outbox.c.attempts, outbox.c.seq).where(mine)
        ).one_or_none()
        if row is None:
            return  # a beat that was replaced meanwhile
        was_standing = row.state == "standing"
        if not (was_standing and receipt.ok):  # one line for the first telling, not for each
            conn.execute(
                insert(delivery).values(
                    outbox_id=queued.id,
                    at_ns=receipt.at_ns,
                    ok=receipt.ok,
                    detail=receipt.detail,
                    duration_seconds=receipt.duration_seconds,
                )
            )
        values: dict[str, Any] = {}
        if row.attempts == queued.attempts:  # else the lease ran out and another try is under way
            values["lease_until_ns"] = 0
        if row.state in OPEN:  # else it was retired, or settled by that other try
            values |= _fate(was_standing, receipt)
            if not receipt.ok and row.state == "waiting" and _replaced(conn, queued, row.seq):
                values["state"] = "superseded"
            _tell_group(conn, queued, receipt, values.get("state"))
        if values:
            conn.execute(update(outbox).where(mine).values(**values))

    def bury(self, conn: Connection, known: Sequence[str], now_ns: int) -> int:
        """Give up on messages to receivers that no longer exist; returns how many waited."""
        gone = and_(outbox.c.state.in_(OPEN), outbox.c.receiver.not_in(known))
        rows = conn.execute(select(outbox.c.id).where(gone, outbox.c.state == "waiting")).all()
        if rows:
            lines = [
                {
                    "outbox_id": row.id,
                    "at_ns": now_ns,
                    "ok": False,
                    "detail": "the receiver is not in the receivers file",
                    "duration_seconds": 0.0,
                }
                for row in rows
            ]
            conn.execute(insert(delivery), lines)
        conn.execute(update(outbox).where(gone).values(state="dead", lease_until_ns=0))
        return len(rows)

    def stuck(self, conn: Connection, receivers: Mapping[str, str], now_ns: int) -> None:
        """Note of groups with waiting messages why their receivers, by name, cannot be reached."""
        for receiver, why in sorted(receivers.items()):
            waits = exists().where(
                outbox.c.receiver == groups.c.receiver,
                outbox.c.group_key == groups.c.group_key,
                outbox.c.state == "waiting",
            )
            mine = and_(groups.c.receiver == receiver, groups.c.open, groups.c.failing == "", waits)
            conn.execute(update(groups).where(mine).values(failing=why, due_ns=now_ns))

    def hasten(self, conn: Connection, receivers: Sequence[str], now_ns: int) -> None:
        """Let messages to receivers that can be reached again be tried now."""
        waits = and_(outbox.c.receiver.in_(receivers), outbox.c.state == "waiting")
        later = outbox.c.not_before_ns > now_ns
        conn.execute(update(outbox).where(waits, later).values(not_before_ns=now_ns))

    def oldest_unsent(self) -> int | None:
        """When the oldest message that still waits was made; None when none waits."""
        query = select(func.min(outbox.c.created_ns)).where(outbox.c.state == "waiting")
        with self._engine.connect() as conn:
            oldest: int | None = conn.execute(query).scalar_one()
        return oldest

    def dead_since(self, since_ns: int) -> int:
        """How many messages that were made since then were given up."""
        query = select(func.count()).where(
            outbox.c.state == "dead", outbox.c.created_ns >= since_ns
        )
        with self._engine.connect() as conn:
            return int(conn.execute(query).scalar_one())

    def counts(self) -> dict[str, int]:
        """How many messages are in each state."""
        query = select(outbox.c.state, func.count().label("messages")).group_by(outbox.c.state)
        with self._engine.connect() as conn:
            return {row.state: row.messages for row in conn.execute(query)}


def _replaced(conn: Connection, queued: Queued, seq: int) -> bool:
    notification = queued.notification
    later = select(outbox.c.id).where(
        outbox.c.receiver == notification.receiver,
        outbox.c.group_key == notification.group_key,
        outbox.c.seq > seq,
        outbox.c.replaces,
    )
    return conn.execute(later.limit(1)).first() is not None


def _tell_group(conn: Connection, queued: Queued, receipt: Receipt, state: str | None) -> None:
    """Let a group know that its messages do not arrive, or that they do again."""
    told = queued.notification
    mine = (
        groups.c.project == told.project,
        groups.c.receiver == told.receiver,
        groups.c.group_key == told.group_key,
    )
    if receipt.ok:
        conn.execute(update(groups).where(*mine, groups.c.failing != "").values(failing=""))
    elif state == "dead":
        why = f"{told.receiver} does not take it ({receipt.detail})"
        conn.execute(update(groups).where(*mine).values(failing=why, due_ns=receipt.at_ns))


def _ready(now_ns: int) -> ColumnElement[bool]:
    """Due, in nobody's hands, and with no earlier message of its group waiting or under way."""
    earlier = outbox.alias("earlier")
    held_up = exists().where(
        earlier.c.receiver == outbox.c.receiver,
        earlier.c.group_key == outbox.c.group_key,
        earlier.c.seq < outbox.c.seq,
        or_(earlier.c.state == "waiting", earlier.c.lease_until_ns > now_ns),
    )
    return and_(
        outbox.c.state.in_(OPEN),
        outbox.c.not_before_ns <= now_ns,
        outbox.c.lease_until_ns <= now_ns,
        ~held_up,
    )


def _fate(was_standing: bool, receipt: Receipt) -> dict[str, Any]:
    if receipt.ok and receipt.retry_at_ns is None:
        return {"state": "sent"}
    if receipt.ok:
        return {"state": "standing", "not_before_ns": receipt.retry_at_ns, "attempts": 1}
    if was_standing:
        return {"not_before_ns": receipt.at_ns + STANDING_RETRY_NS}
    if receipt.retry_at_ns is not None:
        return {"not_before_ns": receipt.retry_at_ns}
    return {"state": "dead"}


def _queued(row: Row[Any]) -> Queued:
    return Queued(
        id=row.id,
        notification=Notification(
            project=row.project,
            receiver=row.receiver,
            group_key=row.group_key,
            severity=row.severity,
            payload=row.payload,
        ),
        seq=row.seq,
        attempts=row.attempts + 1,
        created_ns=row.created_ns,
    )
