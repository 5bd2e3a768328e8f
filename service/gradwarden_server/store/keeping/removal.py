"""Deletion of a run: out of sight at once, and out of the database a little at a time.

The run's row and those of its streams go last. Until then they keep the name: a trainer that
still lives is told that its run was deleted, and does not begin it anew.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Column, Connection, Row, Table, delete, exists, select, update

from gradwarden_server.store import audit
from gradwarden_server.store import tables as t
from gradwarden_server.store.alerts.ledger import OPEN
from gradwarden_server.store.database import Database, Priority
from gradwarden_server.store.keeping.sweep import WRITE_SECONDS, Broom, deleting
from gradwarden_server.store.shelves.filing import filed
from gradwarden_server.store.shelves.shelf import SeriesEngine

_SECOND_NS = 1_000_000_000
_LIVED_NS = 600 * _SECOND_NS
_TOMBSTONE_NS = 86_400 * _SECOND_NS


@dataclass(frozen=True, slots=True)
class Doomed:
    """A deleted run whose rows are still here."""

    row: int
    project: str
    run: str
    gone_ns: int
    """From when on its name may be free again."""


class RunRemoval:
    """Every method takes the project first."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def delete(self, project: str, run: str, now_ns: int, actor: str) -> Future[bool]:
        """Take a run out of everybody's sight; False if there is none of that name. Audited."""
        return self._database.write(
            lambda connection: mark(connection, project, run, now_ns, actor), Priority.ALERT
        )


def mark(connection: Connection, project: str, run: str, now_ns: int, actor: str) -> bool:
    """Delete a run as far as readers and trainers can tell, within the caller's transaction."""
    marked = connection.execute(
        update(t.run)
        .where(t.run.c.project == project, t.run.c.run == run, t.run.c.deleted_ns.is_(None))
        .values(deleted_ns=now_ns)
    )
    if marked.rowcount == 1:
        audit.record(project, connection, now_ns, actor, "run.delete", run, {})
    return marked.rowcount == 1


def doomed(connection: Connection) -> list[Doomed]:
    """Every deleted run that still has a row."""
    rows = connection.execute(
        select(t.run).where(t.run.c.deleted_ns.is_not(None)).order_by(t.run.c.deleted_ns)
    )
    return [Doomed(row.id, row.project, row.run, _gone_ns(row)) for row in rows]


def _gone_ns(row: Row[Any]) -> int:
    lived = row.status == "running" and row.last_seen_ns > row.deleted_ns - _LIVED_NS
    deleted_ns: int = row.deleted_ns
    return deleted_ns + _TOMBSTONE_NS if lived else deleted_ns


Left = Literal["nothing", "name", "alerts"]


def remove(broom: Broom, run: Doomed, now_ns: int, series: SeriesEngine | None = None) -> Left:
    """Remove what is left of a deleted run; what is left now.

    Alerts go when they are resolved, so that nobody stays paged for what no longer exists;
    the evaluator sees to that.
    """
    row = run.row
    if series is not None:
        its = (t.segment.c.run_id == row) & (t.segment.c.shelf == series.name)
        with broom.database.read() as connection:
            elsewhere = filed(connection, its)
        series.drop(elsewhere)
    broom.sweep(lambda connection: _segments(connection, row))
    for table in (t.frame_batch, t.event, t.command):
        broom.sweep(deleting(table, table.c.run_id == row))
    broom.sweep(lambda c: _parents(c, row, t.series, t.sample_chunk.c.series_id))
    with broom.database.read() as connection:
        mine = select(t.alert.c.id).where(t.alert.c.run_id == row, t.alert.c.state.in_(OPEN))
        if connection.execute(select(exists(mine))).scalar_one():
            return "alerts"
    broom.sweep(lambda c: _parents(c, row, t.alert, t.alert_transition.c.alert_id))
    broom.sweep(deleting(t.detector_state, t.detector_state.c.run_id == row))
    if now_ns < run.gone_ns:
        return "name"
    for table in (t.stream, t.attempt, t.cursor):
        broom.sweep(deleting(table, table.c.run_id == row))
    broom.once(lambda connection: _last(connection, run))
    return "nothing"


def _segments(connection: Connection, row: int) -> int:
    """Segment by segment: chunks, then roll-ups, then the segment itself."""
    first = select(t.segment.c.id).where(t.segment.c.run_id == row).limit(1)
    until = time.monotonic() + WRITE_SECONDS
    done = 0
    while time.monotonic() < until:
        segment = connection.execute(first).scalar_one_or_none()
        if segment is None:
            break
        removed = deleting(t.chunk, t.chunk.c.segment_id == segment)(connection)
        removed += deleting(t.rollup, t.rollup.c.segment_id == segment)(connection)
        if not removed:
            connection.execute(delete(t.segment).where(t.segment.c.id == segment))
        done += removed or 1
    return done


def _parents(connection: Connection, row: int, table: Table, reference: Column[int]) -> int:
    """Rows of a run that others refer to, one after the other, those others first."""
    first = select(table.c.id).where(table.c.run_id == row).limit(1)
    until = time.monotonic() + WRITE_SECONDS
    done = 0
    while time.monotonic() < until:
        parent = connection.execute(first).scalar_one_or_none()
        if parent is None:
            break
        removed = deleting(reference.table, reference == parent)(connection)
        if not removed:
            connection.execute(delete(table).where(table.c.id == parent))
        done += removed or 1
    return done


def _last(connection: Connection, run: Doomed) -> int:
    connection.execute(delete(t.lease).where(t.lease.c.scope == f"{run.project}/run:{run.run}"))
    return connection.execute(delete(t.run).where(t.run.c.id == run.row)).rowcount
