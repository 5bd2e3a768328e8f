"""Storms in SQL: groups that stand for many, and what fires in those."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, exists, func, insert, literal, select, update

from gradwarden_server.model import Folded, Lane
from gradwarden_server.store.alerts.marking import group_row, touch
from gradwarden_server.store.tables import alert, group_member, outbox, run, telling
from gradwarden_server.store.tables import notification_group as groups

_WORST_RUNS = 5
LOOK_NS = 1_000_000_000
"""How soon a storm is looked at when something in it changed."""


class Storms:
    """Every method takes the project first."""

    def row(self, project: str, conn: Connection, lane: Lane, now_ns: int) -> int:
        """The row of a storm; made where there is none."""
        mine = groups.c.receiver == lane.receiver, groups.c.group_key == lane.key
        query = select(groups.c.id).where(groups.c.project == project, *mine)
        known = conn.execute(query).scalar_one_or_none()
        if known is not None:
            self.look(project, conn, known, now_ns)
            return int(known)
        row = group_row(project, conn, lane, "page", now_ns)
        conn.execute(update(groups).where(groups.c.id == row).values(storm=True))
        return row

    def look(self, project: str, conn: Connection, storm: int, now_ns: int) -> None:
        """Let a storm be looked at soon: counting what is in it is work, and it changes a lot."""
        touch(project, conn, groups.c.id == storm, now_ns + LOOK_NS)

    def told(self, project: str, conn: Connection, message: int, storm: int) -> None:
        """Keep which alerts a storm's message is about: those that no earlier one was about."""
        before = (
            select(telling.c.alert_id)
            .join(outbox, outbox.c.id == telling.c.outbox_id)
            .join(groups, groups.c.id == storm)
            .where(
                telling.c.alert_id == group_member.c.alert_id,
                telling.c.why == "storm",
                outbox.c.receiver == groups.c.receiver,
                outbox.c.group_key == groups.c.group_key,
            )
        )
        held = (
            select(literal(message), group_member.c.alert_id, literal("storm"))
            .join(groups, groups.c.id == group_member.c.group_id)
            .where(groups.c.project == project, groups.c.folded_into == storm, ~exists(before))
            .distinct()
        )
        names = ["outbox_id", "alert_id", "why"]
        conn.execute(insert(telling).from_select(names, held))

    def folded(self, project: str, conn: Connection, storm: int) -> Folded:
        """What fires in the groups of a storm."""
        held = (
            groups.c.project == project,
            groups.c.folded_into == storm,
            alert.c.state == "firing",
            alert.c.muted == "",
        )

        def ask(*columns: Any) -> Any:
            return (
                select(*columns)
                .select_from(groups)
                .join(group_member, group_member.c.group_id == groups.c.id)
                .join(alert, alert.c.id == group_member.c.alert_id)
                .where(*held)
            )

        totals = conn.execute(
            ask(
                func.count(groups.c.id.distinct()),
                func.count(alert.c.id.distinct()),
                func.count(alert.c.run_id.distinct()),
                func.count(alert.c.acked_ns),
            )
        ).one()
        count = func.count(alert.c.id.distinct())
        names = conn.execute(ask(alert.c.alertname, count).group_by(alert.c.alertname)).all()
        worst = conn.execute(
            ask(run.c.run)
            .join(run, run.c.id == alert.c.run_id)
            .group_by(run.c.run)
            .order_by(count.desc(), run.c.run)
            .limit(_WORST_RUNS)
        ).scalars()
        counts = {str(row[0]): int(row[1]) for row in names}
        return Folded(totals[0], totals[1], totals[2], counts, tuple(worst), totals[3] > 0)

    def begun(self, project: str, conn: Connection, receiver: str, since_ns: int) -> int:
        """How many groups of pages began, or were folded, since then."""
        query = select(func.count()).where(
            groups.c.project == project,
            groups.c.receiver == receiver,
            groups.c.opened_ns > since_ns,
            groups.c.severity == "page",
            ~groups.c.storm,
            groups.c.source.is_(None),
        )
        return int(conn.execute(query).scalar_one())
