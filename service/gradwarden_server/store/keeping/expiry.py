"""Dropping what is older than its project wants to keep, a little at a time.

What a segment holds is said before it is dropped: ``held`` goes from raw to rollup to coarse
first, and then the rows go, so a reader that asks the segment is right at every moment, and
a crash in between leaves rows that nobody reads and that the next round finds.

Around the step of an alert the raw values stay for as long as the run does. The log needs no
dropping: streams that fell silent are compacted whole, and their segments come of age.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    exists,
    func,
    select,
    update,
)

from gradwarden_server.store import tables as t
from gradwarden_server.store.keeping.sweep import Broom, deleting
from gradwarden_server.store.shelves.filing import filed
from gradwarden_server.store.shelves.shelf import SeriesEngine

PINNED_STEPS = 1024
"""Raw values so many steps before and after an alert's step are kept with the run."""
FINEST = 16
_PAGE = 256


@dataclass(frozen=True, slots=True)
class Pins:
    """Where alerts were: steps, and moments of those that name no step."""

    steps: tuple[int, ...]
    moments_ns: tuple[int, ...]

    def hold(self, row: Row[Any]) -> bool:
        """Whether a segment or batch lies around one."""
        first, last = row.step0 - PINNED_STEPS, row.step1 + PINNED_STEPS
        near = any(first <= step <= last for step in self.steps)
        return near or any(row.t0_ns <= at_ns <= row.t1_ns for at_ns in self.moments_ns)


def narrow(broom: Broom, project: str, before_ns: int, held: str, to: str) -> int:
    """Say of segments that ended before a moment that they hold less; how many.

    Args:
        broom: Who writes.
        project: Whose segments.
        before_ns: By series time, and by when the segment was made.
        held: What they hold now.
        to: What they hold from now on; going from raw, those around alerts stay as they are.
    """
    changed = 0
    after = (-1, 0)
    pins: dict[int, Pins] = {}
    while True:
        with broom.database.read() as connection:
            page = connection.execute(_ended(project, before_ns, held, after)).all()
            for run in {row.run_id for row in page} - pins.keys():
                pins[run] = _pins(connection, run)
        if not page:
            return changed
        after = (page[-1].t1_ns, page[-1].id)
        rows = [row.id for row in page if held != "raw" or not pins[row.run_id].hold(row)]
        for start in range(0, len(rows), 32):
            some = rows[start : start + 32]
            changed += broom.once(partial(_say, rows=some, held=held, to=to))


def _ended(project: str, before_ns: int, held: str, after: tuple[int, int]) -> Select[Any]:
    at_ns, row = after
    later = (t.segment.c.t1_ns > at_ns) | ((t.segment.c.t1_ns == at_ns) & (t.segment.c.id > row))
    columns = (t.segment.c[n] for n in ("id", "run_id", "step0", "step1", "t0_ns", "t1_ns"))
    return (
        select(*columns)
        .join(t.run, t.run.c.id == t.segment.c.run_id)
        .where(
            t.segment.c.held == held,
            t.segment.c.t1_ns < before_ns,
            t.segment.c.claimed_ns < before_ns,  # an old run that was imported has just arrived
            t.segment.c.sealed,
            t.run.c.project == project,
            t.run.c.deleted_ns.is_(None),
            later,
        )
        .order_by(t.segment.c.t1_ns, t.segment.c.id)
        .limit(_PAGE)
    )


def _pins(connection: Connection, run: int) -> Pins:
    query = select(t.alert.c.annotations, t.alert.c.active_ns).where(t.alert.c.run_id == run)
    steps, moments = [], []
    for row in connection.execute(query):
        said = str(row.annotations.get("step", ""))
        if said.isdecimal():
            steps.append(int(said))
        else:
            moments.append(row.active_ns)
    return Pins(tuple(steps), tuple(moments))


def _say(connection: Connection, rows: Sequence[int], held: str, to: str) -> int:
    table = t.chunk if to == "rollup" else t.rollup
    gone = select(func.coalesce(func.sum(func.length(table.c.body)), 0)).where(
        table.c.segment_id == t.segment.c.id, *_unheld(table)
    )
    return connection.execute(
        update(t.segment)
        .where(t.segment.c.id.in_(rows), t.segment.c.held == held)
        .values(held=to, bytes=t.segment.c.bytes - gone.scalar_subquery())
    ).rowcount


def _unheld(table: Table) -> list[ColumnElement[bool]]:
    """Which rows of chunks or roll-ups are the first to go."""
    return [] if table is t.chunk else [t.rollup.c.width == FINEST]


def drop_unheld(broom: Broom) -> int:
    """Delete chunks and finest roll-ups that their segments no longer hold; how many rows."""
    dropped = 0
    narrower = (("rollup", t.chunk), ("coarse", t.chunk), ("coarse", t.rollup))
    for held, table in narrower:
        after = 0
        while True:
            mine = table.c.segment_id == t.segment.c.id
            query = (
                select(t.segment.c.id)
                .where(
                    t.segment.c.held == held,
                    t.segment.c.id > after,
                    exists(select(table.c.segment_id).where(mine, *_unheld(table))),
                )
                .order_by(t.segment.c.id)
                .limit(_PAGE)
            )
            with broom.database.read() as connection:
                page = connection.execute(query).scalars().all()
            if not page:
                break
            for segment in page:
                rows = deleting(table, table.c.segment_id == segment, *_unheld(table))
                dropped += broom.sweep(rows)
            after = page[-1]
    return dropped


def drop_elsewhere(broom: Broom, series: SeriesEngine) -> int:
    """The same on a series engine; of how many segments.

    The engine says what it holds, and only what a row of the database says is held no more
    is dropped: others may keep their segments in the same engine.
    """
    dropped = 0
    for narrower, said in (("rollup", ("rollup", "coarse")), ("coarse", ("coarse",))):
        after = (0, 0)
        while listed := series.holding(narrower, after):
            after = listed[-1]
            for start in range(0, len(listed), _PAGE):
                page = set(listed[start : start + _PAGE])
                mine = (
                    t.segment.c.id.in_([number for number, _ in page])
                    & t.segment.c.sealed
                    & t.segment.c.held.in_(said)
                    & (t.segment.c.shelf == series.name)
                )
                with broom.database.read() as connection:
                    found = filed(connection, mine)
                gone = [one for one in found if (one.id, one.claimed_ns) in page]
                series.drop(gone, narrower)
                dropped += len(gone)
    return dropped
