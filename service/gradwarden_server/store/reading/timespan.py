"""Which steps a run took within a time: coarsely by index, exactly at both ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, and_, func, not_, select

from gradwarden import wire
from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database
from gradwarden_server.store.log.segments import SegmentReader
from gradwarden_server.store.reading.curves import Ints

Steps = tuple[int, int]

_PAGE = 64


class TimeSpans:
    """Looks at the log and at segments; what is in both for a moment counts once anyway."""

    def __init__(self, database: Database, segments: SegmentReader) -> None:
        self._database = database
        self._segments = segments

    def steps_between(self, project: str, run: str, t0_ns: int, t1_ns: int) -> Steps | None:
        """The first and last step with a frame in [t0_ns, t1_ns] of series time; None without.

        Raises:
            Damaged: a segment at one end of the time is.
        """
        found: Steps | None = None
        edges: list[tuple[Any, list[Any]]] = []
        for table in (t.frame_batch, t.segment):
            of_run = [
                table.c.run_id == t.run.c.id,
                t.run.c.project == project,
                t.run.c.run == run,
                t.run.c.deleted_ns.is_(None),
                table.c.t1_ns >= t0_ns,
                table.c.t0_ns <= t1_ns,
            ]
            if table is t.segment:
                of_run.append(t.segment.c.sealed)
            inside: ColumnElement[bool] = and_(table.c.t0_ns >= t0_ns, table.c.t1_ns <= t1_ns)
            with self._database.read() as connection:
                low, high = connection.execute(
                    select(func.min(table.c.step0), func.max(table.c.step1)).where(*of_run, inside)
                ).one()
                found = _wider(found, () if low is None else (low, high))
                partly = select(table.c.id, table.c.step0, table.c.step1)
                partly = partly.where(*of_run, not_(inside)).order_by(table.c.step0)
                edges.append((table, list(connection.execute(partly))))
        for table, rows in edges:
            for start in range(0, len(rows), _PAGE):
                # A batch whose steps are all known to lie within need not be looked at.
                page = [r for r in rows[start : start + _PAGE] if not _within(r[1:], found)]
                told = self._logged if table is t.frame_batch else self._compacted
                for steps, times_ns in told(project, run, page) if page else ():
                    kept = steps[(times_ns >= t0_ns) & (times_ns <= t1_ns)]
                    found = _wider(found, kept.tolist())
        return found

    def steps_around(self, project: str, run: str, t0_ns: int, t1_ns: int) -> Steps | None:
        """Steps that hold at least those between two times, by index alone; None without any."""
        found: Steps | None = None
        with self._database.read() as connection:
            for table in (t.frame_batch, t.segment):
                touching = (
                    table.c.run_id == t.run.c.id,
                    t.run.c.project == project,
                    t.run.c.run == run,
                    t.run.c.deleted_ns.is_(None),
                    table.c.t1_ns >= t0_ns,
                    table.c.t0_ns <= t1_ns,
                )
                ends = func.min(table.c.step0), func.max(table.c.step1)
                low, high = connection.execute(select(*ends).where(*touching)).one()
                found = _wider(found, () if low is None else (low, high))
        return found

    def _logged(self, project: str, run: str, rows: Sequence[Any]) -> Iterator[tuple[Ints, Ints]]:
        """Steps and times of these batches."""
        statement = select(t.frame_batch.c.shift_ns, t.frame_batch.c.body).where(
            t.frame_batch.c.id.in_([row.id for row in rows])
        )
        with self._database.read() as connection:
            bodies = connection.execute(statement).all()
        for shift_ns, body in bodies:
            frames = wire.decode(body).frames
            times_ns = np.array([frame.time_ns for frame in frames], np.int64) + shift_ns
            yield np.array([frame.step for frame in frames], np.int64), times_ns

    def _compacted(
        self, project: str, run: str, rows: Sequence[Any]
    ) -> Iterator[tuple[Ints, Ints]]:
        """Steps and times of these segments."""
        wanted = {row.id for row in rows}
        first, last = min(row.step0 for row in rows), max(row.step1 for row in rows)
        near = self._segments.index(project, run, first, last)
        for _, told in self._segments.spines([s for s in near if s.id in wanted]):
            yield told.steps, told.series_times_ns()


def _within(steps: Sequence[int], known: Steps | None) -> bool:
    return known is not None and known[0] <= steps[0] and steps[1] <= known[1]


def _wider(known: Steps | None, steps: Iterable[int]) -> Steps | None:
    both = [*(known or ()), *steps]
    return (min(both), max(both)) if both else None
