"""Marks on groups of alerts: which ones a change touches, written with the change itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, and_, or_, select, update

from gradwarden_server.model import Alert, Lane
from gradwarden_server.store.streams import insert_or_ignore
from gradwarden_server.store.tables import group_member
from gradwarden_server.store.tables import notification_group as groups

Lanes = Callable[[Alert], Sequence[Lane]]


def no_lanes(alert: Alert) -> Sequence[Lane]:
    """Nobody is told."""
    return ()


def mark(
    project: str,
    conn: Connection,
    alerts: Mapping[int, Alert],
    begun: Collection[int],
    lanes: Lanes,
    now_ns: int,
) -> None:
    """Let the groups that alerts belong to be looked at: those they are in, and new ones.

    New are those of ``begun``, which fire or fired just now, though they may be over by now.
    """
    theirs = select(group_member.c.group_id).where(group_member.c.alert_id.in_(alerts))
    touch(project, conn, groups.c.id.in_(theirs), now_ns)
    wanted: dict[tuple[str, str], tuple[Lane, str, list[int]]] = {}
    for row, one in alerts.items():
        for lane in lanes(one) if row in begun else ():
            at = wanted.setdefault((lane.receiver, lane.key), (lane, one.severity, []))
            at[2].append(row)
    for _, (lane, severity, rows) in sorted(wanted.items()):
        group = group_row(project, conn, lane, severity, now_ns)
        members = [{"group_id": group, "alert_id": row, "told": False} for row in rows]
        conn.execute(insert_or_ignore(conn, group_member), members)


def touch(project: str, conn: Connection, which: Any, now_ns: int) -> None:
    """Let groups be looked at by then; those that are due sooner are not written again."""
    if conn.dialect.name == "postgresql":
        # A flush of another process may have read them before this change: wait for its end, and
        # hold the next one until ours. Markers do not wait for each other.
        held = select(groups.c.id).where(groups.c.project == project, which).order_by(groups.c.id)
        conn.execute(held.with_for_update(read=True, key_share=True)).all()
    later = or_(groups.c.due_ns.is_(None), groups.c.due_ns > now_ns)
    conn.execute(
        update(groups).where(groups.c.project == project, which, later).values(due_ns=now_ns)
    )


def group_row(project: str, conn: Connection, lane: Lane, severity: str, now_ns: int) -> int:
    """The row of a lane's group; made where there is none, else looked at."""
    mine = and_(
        groups.c.project == project,
        groups.c.receiver == lane.receiver,
        groups.c.group_key == lane.key,
    )
    known = conn.execute(select(groups.c.id).where(mine)).scalar_one_or_none()
    if known is None:
        made = conn.execute(
            insert_or_ignore(conn, groups)
            .values(**_new(project, lane, severity), due_ns=now_ns + lane.wait_ns, began_ns=now_ns)
            .returning(groups.c.id)
        ).scalar_one_or_none()
        if made is not None:
            return int(made)
        known = conn.execute(select(groups.c.id).where(mine)).scalar_one()
    touch(project, conn, groups.c.id == known, now_ns)
    return int(known)


def _new(project: str, lane: Lane, severity: str) -> dict[str, Any]:
    return {
        "project": project,
        "receiver": lane.receiver,
        "route": lane.route,
        "group_key": lane.key,
        "labels": dict(lane.labels),
        "severity": severity,
        "open": False,
        "storm": False,
        "counted": 0,
        "why": "",
        "failing": "",
    }
