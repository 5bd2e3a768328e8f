"""Groups of alerts in SQL: which of them to look at, and what their receivers were told.

Whoever writes a change of an alert marks the groups that it touches in the same transaction, so
a crash at any moment leaves either both or none. A group is looked at under a lock of its
receiver, and what comes of it is written in that transaction too: of several processes one tells.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Row,
    and_,
    case,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    update,
)

from gradwarden_server.model import Alert, Group, Lane, Member
from gradwarden_server.store.alerts.ledger import as_alert, of_project
from gradwarden_server.store.alerts.marking import Lanes, group_row, mark, touch
from gradwarden_server.store.streams import insert_or_ignore
from gradwarden_server.store.tables import alert, group_member, outbox, telling
from gradwarden_server.store.tables import notification_group as groups

_CHUNK = 400
_DAY_NS = 86_400 * 1_000_000_000
_PAGES_FIRST = case((groups.c.severity == "page", 0), else_=1)


class GroupStore:
    """Groups as the herald works on them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def due(self, now_ns: int) -> list[tuple[str, str]]:
        """Projects and receivers with groups to look at; those with pages first."""
        query = (
            select(groups.c.project, groups.c.receiver)
            .where(groups.c.due_ns <= now_ns)
            .group_by(groups.c.project, groups.c.receiver)
            .order_by(func.min(_PAGES_FIRST), groups.c.project, groups.c.receiver)
        )
        with self._engine.connect() as conn:
            return [(row.project, row.receiver) for row in conn.execute(query)]

    def take(
        self, project: str, conn: Connection, receiver: str, now_ns: int, limit: int
    ) -> list[Group]:
        """Groups to look at, with their members, for the length of the caller's transaction.

        None where another process is about this receiver.
        """
        if not _alone(project, conn, receiver):
            return []
        query = (
            select(groups)
            .where(
                groups.c.project == project,
                groups.c.receiver == receiver,
                groups.c.due_ns <= now_ns,
            )
            .order_by(_PAGES_FIRST, groups.c.due_ns, groups.c.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        rows = conn.execute(query).all()
        members = _members(project, conn, [row.id for row in rows])
        return [_read(row, tuple(members.get(row.id, ()))) for row in rows]

    def settle(
        self,
        project: str,
        conn: Connection,
        group: Group,
        due_ns: int | None,
        severity: str,
        told: Collection[int],
        gone: Collection[int],
    ) -> None:
        """Write down what became of a group."""
        mine = and_(groups.c.id == group.id, groups.c.project == project)
        values = {name: getattr(group, name) for name in _STATE} | {"due_ns": due_ns}
        if severity:
            values["severity"] = severity
        conn.execute(update(groups).where(mine).values(**values))
        held = group_member.c.group_id == group.id
        for rows in _chunks(told):
            named = and_(held, group_member.c.alert_id.in_(rows))
            conn.execute(update(group_member).where(named).values(told=True))
        for rows in _chunks(gone):
            conn.execute(delete(group_member).where(held, group_member.c.alert_id.in_(rows)))

    def postpone(self, project: str, conn: Connection, group: Group, due_ns: int) -> None:
        """Look at a group again then, or when something in it changes."""
        mine = groups.c.id == group.id, groups.c.project == project
        conn.execute(update(groups).where(*mine).values(due_ns=due_ns))

    def told(
        self, project: str, conn: Connection, message: int, alerts: Collection[int], why: str
    ) -> None:
        """Keep which alerts a message was about, and why it was sent."""
        lines = [{"outbox_id": message, "alert_id": row, "why": why} for row in alerts]
        if lines:
            conn.execute(insert_or_ignore(conn, telling), lines)

    def escalate(
        self, project: str, conn: Connection, group: Group, receiver: str, why: str, now_ns: int
    ) -> None:
        """Let a second receiver hear of what a group holds, from now to its end."""
        lane = Lane(receiver, group.route, group.key, group.labels, 0)
        row = group_row(project, conn, lane, "page", now_ns)
        follower = and_(
            groups.c.id == row, or_(groups.c.open.is_(False), groups.c.source.is_not(None))
        )
        values = {"source": group.id, "why": why, "storm": group.storm}
        conn.execute(update(groups).where(follower).values(**values))
        self.follow(project, conn, group, now_ns)

    def follow(self, project: str, conn: Connection, group: Group, now_ns: int) -> None:
        """Hand what a group holds to the one that it escalated into."""
        followers = select(groups.c.id).where(
            groups.c.source == group.id, groups.c.project == project
        )
        for row in conn.execute(followers).scalars().all():
            mine = select(literal(row), group_member.c.alert_id, literal(False)).join(
                alert, alert.c.id == group_member.c.alert_id
            )
            held = mine.where(group_member.c.group_id == group.id, alert.c.state == "firing")
            conn.execute(
                insert_or_ignore(conn, group_member).from_select(
                    ["group_id", "alert_id", "told"], held
                )
            )
            touch(project, conn, groups.c.id == row, now_ns)

    def unsaid(self, project: str, conn: Connection, group: Group) -> dict[int, Alert]:
        """What is over and stands in messages of a group that may never arrive, by row.

        The next message takes their place, so it must say of these too.
        """
        told = select(telling.c.alert_id).join(outbox, outbox.c.id == telling.c.outbox_id)
        waiting = told.where(
            outbox.c.project == project,
            outbox.c.receiver == group.receiver,
            outbox.c.group_key == group.key,
            outbox.c.state == "waiting",
        )
        query = of_project(project).where(alert.c.id.in_(waiting), alert.c.state == "resolved")
        return {row.id: as_alert(row) for row in conn.execute(query.order_by(alert.c.id))}

    def adopt(self, project: str, conn: Connection, lanes: Lanes, now_ns: int) -> int:
        """Mark the groups of alerts that fire and are in none that their lanes lead to.

        They fired while other routes stood in the receivers file, or none.
        """
        held: dict[int, set[tuple[str, str]]] = {}
        known = (
            select(group_member.c.alert_id, groups.c.receiver, groups.c.group_key)
            .join(groups, groups.c.id == group_member.c.group_id)
            .where(groups.c.project == project)
        )
        for alert_id, receiver, key in conn.execute(known):
            held.setdefault(alert_id, set()).add((receiver, key))
        firing = of_project(project).where(alert.c.state == "firing")
        lost = {}
        for row in conn.execute(firing):
            one = as_alert(row)
            wanted = {(lane.receiver, lane.key) for lane in lanes(one)}
            if wanted - held.get(row.id, set()):
                lost[row.id] = one
        mark(project, conn, lost, lost.keys(), lanes, now_ns)
        return len(lost)

    def sweep(self, conn: Connection, now_ns: int) -> None:
        """Forget groups that are over since yesterday."""
        other = groups.alias("other")
        needed = exists().where(
            or_(other.c.source == groups.c.id, other.c.folded_into == groups.c.id)
        )
        held = exists().where(group_member.c.group_id == groups.c.id)
        over = and_(
            groups.c.open.is_(False), groups.c.due_ns.is_(None), groups.c.folded_into.is_(None)
        )
        old = func.coalesce(groups.c.opened_ns, 0) < now_ns - _DAY_NS
        conn.execute(delete(groups).where(over, old, ~held, ~needed))


_STATE = (
    "open",
    "counted",
    "folded_into",
    "began_ns",
    "opened_ns",
    "told_ns",
    "escalated_ns",
    "failing",
)


def _alone(project: str, conn: Connection, receiver: str) -> bool:
    if conn.dialect.name != "postgresql":
        return True  # SQLite has one writer
    lock = text("SELECT pg_try_advisory_xact_lock(hashtextextended(:n, 1))")
    return bool(conn.execute(lock, {"n": f"{project}\n{receiver}"}).scalar_one())


def _members(project: str, conn: Connection, rows: Sequence[int]) -> dict[int, list[Member]]:
    found: dict[int, list[Member]] = {}
    query = (
        of_project(project)
        .add_columns(group_member.c.group_id, group_member.c.told.label("heard"))
        .join(group_member, group_member.c.alert_id == alert.c.id)
        .where(group_member.c.group_id.in_(rows))
        .order_by(alert.c.id)
    )
    for row in conn.execute(query):
        member = Member(row.id, as_alert(row), row.heard)
        found.setdefault(row.group_id, []).append(member)
    return found


def _read(row: Row[Any], members: tuple[Member, ...]) -> Group:
    state = {name: getattr(row, name) for name in _STATE}
    return Group(
        id=row.id,
        project=row.project,
        receiver=row.receiver,
        route=row.route,
        key=row.group_key,
        labels=row.labels,
        storm=row.storm,
        source=row.source,
        why=row.why,
        members=members,
        **state,
    )


def _chunks(rows: Collection[int]) -> Iterable[list[int]]:
    held = sorted(rows)
    return (held[at : at + _CHUNK] for at in range(0, len(held), _CHUNK))
