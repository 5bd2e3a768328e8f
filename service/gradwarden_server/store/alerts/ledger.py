"""Alerts and their history; whoever may be told of a change is marked with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Row,
    Select,
    and_,
    func,
    insert,
    or_,
    select,
    update,
)

from gradwarden_server.model import Alert, Change
from gradwarden_server.store import audit
from gradwarden_server.store.alerts.marking import Lanes, mark, no_lanes
from gradwarden_server.store.alerts.told import Delivery, deliveries
from gradwarden_server.store.notices import Topic, announce
from gradwarden_server.store.tables import alert, alert_transition, run

OPEN = ("pending", "firing")
ACKNOWLEDGED = "acknowledged"
NOTED = "note"
"""Why a timeline has a line that changes no state: somebody said something."""


@dataclass(frozen=True, slots=True)
class AlertPage:
    """Alerts, newest first; ``next_cursor`` None at the end."""

    items: tuple[Alert, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Transition:
    """One line of an alert's timeline."""

    at_ns: int
    from_state: str
    to_state: str
    reason: str
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AlertStory:
    """An alert with all that happened to it."""

    alert: Alert
    timeline: tuple[Transition, ...]
    deliveries: tuple[Delivery, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """When an alert was pending and firing; what it is, as labels."""

    labels: Mapping[str, str]
    active_ns: int
    fired_ns: int | None
    resolved_ns: int | None


@dataclass(frozen=True, slots=True)
class OpenCount:
    """How many alerts of one name, kept by one group of rules or by detectors, are in a state."""

    alertname: str
    rule_group: str | None
    state: str
    count: int


class BadCursor(ValueError):
    """The cursor was not given out by ``AlertLedger.list``."""


class AlertLedger:
    """Keeps alerts. Changes, and marks on groups they touch, commit with the caller's work."""

    def __init__(self, engine: Engine, lanes: Lanes = no_lanes) -> None:
        """``lanes`` finds the ways from an alert to people."""
        self._engine = engine
        self._lanes = lanes

    def open_alerts(self, project: str, conn: Connection, run_row: int) -> dict[str, Alert]:
        """The pending and firing alerts that a run's detectors keep, by fingerprint."""
        query = of_project(project).where(
            alert.c.run_id == run_row, alert.c.state.in_(OPEN), alert.c.rule_group.is_(None)
        )
        return {row.fingerprint: as_alert(row) for row in conn.execute(query)}

    def ruled(self, project: str, conn: Connection, rule_group: str) -> dict[str, Alert]:
        """The pending and firing alerts that a group of rules keeps, by fingerprint."""
        query = of_project(project).where(alert.c.rule_group == rule_group, alert.c.state.in_(OPEN))
        return {row.fingerprint: as_alert(row) for row in conn.execute(query)}

    def beside(
        self, project: str, conn: Connection, rule_group: str, runs: Collection[str | None]
    ) -> list[Alert]:
        """The open alerts that others keep about these runs, or about none of them."""
        about = or_(run.c.run.in_([name for name in runs if name]), alert.c.run_id.is_(None))
        kept = or_(alert.c.rule_group.is_(None), alert.c.rule_group != rule_group)
        query = of_project(project).where(alert.c.state.in_(OPEN), kept, about)
        return [as_alert(row) for row in conn.execute(query)]

    def apply(
        self,
        project: str,
        conn: Connection,
        run_row: int | None,
        changes: Iterable[Change],
        now_ns: int,
    ) -> dict[str, Alert]:
        """Write transitions, and mark the groups of receivers that they may be news to.

        Args:
            project: Whose alerts these are.
            conn: The caller's transaction, which also moves the evaluation cursor.
            run_row: The run that the alerts belong to; None for alerts of no run.
            changes: Transitions in order. One whose alert has no id yet continues the alert
                that an earlier change of the same call opened.
            now_ns: By our clock, not the trainer's: groups are due from now on.

        Returns:
            The touched alerts as they are now, with their ids, by fingerprint.
        """
        touched: dict[str, Alert] = {}
        announce(conn, Topic.ALERTS)
        rows: dict[int, Alert] = {}
        begun: set[int] = set()
        for change in changes:
            known = touched.get(change.alert.fingerprint)
            row_id = change.alert.id
            if row_id is None and known is not None and known.state in OPEN:
                row_id = known.id
            row_id = self._store(project, conn, run_row, row_id, change.alert)
            touched[change.alert.fingerprint] = replace(change.alert, id=row_id)
            if change.alert.fired_ns is not None:
                rows[row_id] = change.alert
            if change.alert.state == "firing":
                begun.add(row_id)
            conn.execute(
                insert(alert_transition).values(
                    alert_id=row_id,
                    at_ns=change.at_ns,
                    from_state=change.from_state,
                    to_state=change.to_state,
                    reason=change.reason,
                    annotations=_words(change),
                )
            )
        if rows:
            mark(project, conn, rows, begun, self._lanes, now_ns)
        return touched

    def list(
        self,
        project: str,
        states: Sequence[str] = (),
        run_name: str | None = None,
        severity: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
        alertname: str | None = None,
        muted: bool | None = None,
    ) -> AlertPage:
        """Alerts of a project, newest first; ``muted`` asks whether something holds them back."""
        query = of_project(project).where(run.c.deleted_ns.is_(None))
        if states:
            query = query.where(alert.c.state.in_(states))
        if run_name is not None:
            query = query.where(run.c.run == run_name)
        if severity is not None:
            query = query.where(alert.c.severity == severity)
        if alertname is not None:
            query = query.where(alert.c.alertname == alertname)
        if muted is not None:
            query = query.where(alert.c.muted != "" if muted else alert.c.muted == "")
        if cursor is not None:
            active_ns, row_id = _read_cursor(cursor)
            older = and_(alert.c.active_ns == active_ns, alert.c.id < row_id)
            query = query.where(or_(alert.c.active_ns < active_ns, older))
        query = query.order_by(alert.c.active_ns.desc(), alert.c.id.desc()).limit(limit + 1)
        with self._engine.connect() as conn:
            items = [as_alert(row) for row in conn.execute(query)]
        more = len(items) > limit
        items = items[:limit]
        last = items[-1] if more else None
        return AlertPage(tuple(items), None if last is None else f"{last.active_ns}.{last.id}")

    def get(self, project: str, alert_id: int) -> AlertStory | None:
        """One alert with its timeline and deliveries; None where the project has no such alert."""
        with self._engine.connect() as conn:
            query = of_project(project).where(alert.c.id == alert_id, run.c.deleted_ns.is_(None))
            row = conn.execute(query).one_or_none()
            if row is None:
                return None
            found = as_alert(row)
            lines = conn.execute(
                select(alert_transition)
                .where(alert_transition.c.alert_id == alert_id)
                .order_by(alert_transition.c.id)
            )
            timeline = tuple(
                Transition(x.at_ns, x.from_state, x.to_state, x.reason, x.annotations)
                for x in lines
            )
            told = deliveries(project, conn, [alert_id]).get(alert_id, ())
            return AlertStory(found, timeline, told)

    def acknowledge(
        self,
        project: str,
        conn: Connection,
        alert_id: int,
        actor: str,
        now_ns: int,
        note: str = "",
    ) -> bool:
        """Note who cares for an open alert, once; False where there is no such open alert.

        It changes nothing about the alert itself: what is seen to still fires. What somebody
        writes who comes second is kept as a note.
        """
        mine = and_(alert.c.id == alert_id, alert.c.project == project, alert.c.state.in_(OPEN))
        row = conn.execute(select(alert).where(mine)).one_or_none()
        if row is None:
            return False
        if row.acked_ns is not None:
            return not note or self.note(project, conn, alert_id, actor, note, now_ns)
        acked = {"acked_ns": now_ns, "acked_by": actor[:128]}
        conn.execute(update(alert).where(mine).values(acked))
        announce(conn, Topic.ALERTS)
        said = {"by": actor[:128]} | ({"text": note} if note else {})
        _write_down(conn, row, ACKNOWLEDGED, said, now_ns)
        audit.record(project, conn, now_ns, actor, "alert.acknowledge", str(alert_id), {})
        return True

    def note(
        self, project: str, conn: Connection, alert_id: int, actor: str, text: str, now_ns: int
    ) -> bool:
        """Keep what somebody wrote of an alert; False where the project has no such alert."""
        mine = and_(alert.c.id == alert_id, alert.c.project == project)
        row = conn.execute(select(alert).where(mine)).one_or_none()
        if row is None:
            return False
        _write_down(conn, row, NOTED, {"by": actor[:128], "text": text}, now_ns)
        audit.record(project, conn, now_ns, actor, "alert.note", str(alert_id), {})
        return True

    def spans(self, project: str, t0_ns: int, t1_ns: int) -> tuple[Span, ...]:
        """The alerts that were open at any moment of a time."""
        columns = alert.c.labels, alert.c.active_ns, alert.c.fired_ns, alert.c.resolved_ns
        query = select(*columns).where(
            alert.c.project == project,
            alert.c.active_ns <= t1_ns,
            or_(alert.c.resolved_ns.is_(None), alert.c.resolved_ns >= t0_ns),
        )
        with self._engine.connect() as conn:
            return tuple(Span(*row) for row in conn.execute(query.order_by(alert.c.id)))

    def open_counts(self, project: str) -> tuple[OpenCount, ...]:
        """How many alerts are pending and firing, by name and who keeps them."""
        named = alert.c.alertname, alert.c.rule_group, alert.c.state
        query = (
            select(*named, func.count())
            .outerjoin(run, alert.c.run_id == run.c.id)
            .where(alert.c.project == project, alert.c.state.in_(OPEN), run.c.deleted_ns.is_(None))
            .group_by(*named)
        )
        with self._engine.connect() as conn:
            return tuple(OpenCount(*row) for row in conn.execute(query))

    def counts(self, project: str, run_rows: Collection[int]) -> dict[int, dict[str, int]]:
        """How many alerts of each run are pending and firing; runs without any have zeros."""
        query = (
            select(alert.c.run_id, alert.c.state, func.count())
            .where(
                alert.c.project == project,
                alert.c.run_id.in_(run_rows),
                alert.c.state.in_(OPEN),
            )
            .group_by(alert.c.run_id, alert.c.state)
        )
        counts = {row: dict.fromkeys(OPEN, 0) for row in run_rows}
        with self._engine.connect() as conn:
            for row, state, count in conn.execute(query):
                counts[row][state] = count
        return counts

    def _store(
        self, project: str, conn: Connection, run_row: int | None, row_id: int | None, value: Alert
    ) -> int:
        if value.project != project:
            raise ValueError("an alert of another project")
        state = {
            "state": value.state,
            "annotations": dict(value.annotations),
            "fired_ns": value.fired_ns,
            "resolved_ns": value.resolved_ns,
            "reason": value.reason,
            "muted": value.muted,
            "muted_until_ns": value.muted_until_ns,
            "told": value.told,
        }
        if row_id is None:
            return int(
                conn.execute(
                    insert(alert)
                    .values(
                        project=project,
                        run_id=run_row,
                        fingerprint=value.fingerprint,
                        alertname=value.alertname,
                        severity=value.severity,
                        labels=dict(value.labels),
                        active_ns=value.active_ns,
                        rule_group=value.rule_group,
                        **state,
                    )
                    .returning(alert.c.id)
                ).scalar_one()
            )
        mine = and_(alert.c.id == row_id, alert.c.project == project)
        if conn.execute(update(alert).where(mine).values(**state)).rowcount != 1:
            raise LookupError(f"alert {row_id} is not in the ledger")
        return row_id


def _write_down(
    conn: Connection, row: Row[Any], reason: str, said: Mapping[str, str], now_ns: int
) -> None:
    """A line of the timeline that changes no state."""
    conn.execute(
        insert(alert_transition).values(
            alert_id=row.id,
            at_ns=now_ns,
            from_state=row.state,
            to_state=row.state,
            reason=reason,
            annotations=dict(said),
        )
    )


def _words(change: Change) -> dict[str, str]:
    """What a timeline says of a transition; of one that nobody is told of, also why."""
    muted = {"muted": change.alert.muted} if change.alert.muted else {}
    return {**change.alert.annotations, **muted}


def of_project(project: str) -> Select[Any]:
    """Alerts of a project, each with the identifier of its run."""
    return (
        select(alert, run.c.run.label("run_name"))
        .outerjoin(run, alert.c.run_id == run.c.id)
        .where(alert.c.project == project)
    )


def as_alert(row: Row[Any]) -> Alert:
    """An alert of such a row."""
    return Alert(
        id=row.id,
        project=row.project,
        run=row.run_name,
        labels=row.labels,
        annotations=row.annotations,
        state=row.state,
        active_ns=row.active_ns,
        fired_ns=row.fired_ns,
        resolved_ns=row.resolved_ns,
        reason=row.reason,
        muted=row.muted,
        muted_until_ns=row.muted_until_ns,
        told=row.told,
        acked_ns=row.acked_ns,
        acked_by=row.acked_by,
        rule_group=row.rule_group,
    )


def _read_cursor(text: str) -> tuple[int, int]:
    active_ns, _, row_id = text.partition(".")
    if not (active_ns.isdecimal() and row_id.isdecimal()):
        raise BadCursor("not a cursor of this list")
    return int(active_ns), int(row_id)
