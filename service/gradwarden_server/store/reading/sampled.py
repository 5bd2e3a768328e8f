"""Samples by time, as queries over many runs read them: layers, scalars and recorded series."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import or_, select

from gradwarden_server.joins import Matrix
from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database
from gradwarden_server.store.log.entries import LogReader
from gradwarden_server.store.log.recorded import columns
from gradwarden_server.store.reading.curves import Doubles, Ints
from gradwarden_server.store.reading.gather import one_voice
from gradwarden_server.store.reading.pieces import Quantity
from gradwarden_server.store.reading.telling import Held, Telling
from gradwarden_server.store.reading.timespan import TimeSpans
from gradwarden_server.store.records import RunRecord
from gradwarden_server.store.runs import RunStore, record


@dataclass(frozen=True, slots=True, eq=False)
class LayerSamples:
    """One quantity of every parameter of a replica group.

    Attributes:
        names: [L].
        times_ns: [N], not in order where several attempts or processes told them.
        values: [L, N].
        measured: [L, N]; where not, the value means nothing.
    """

    group: int
    names: tuple[str, ...]
    times_ns: Ints
    values: Doubles
    measured: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class ScalarSamples:
    """One scalar of one rank: times and values, [N]."""

    name: str
    rank: int
    times_ns: Ints
    values: Doubles


@dataclass(frozen=True, slots=True, eq=False)
class RecordedSamples:
    """One recorded series: times and values, [N]; ``run_row`` None where a rule recorded it."""

    name: str
    labels: Mapping[str, str]
    times_ns: Ints
    values: Doubles
    run_row: int | None


class Samples:
    """Every method takes the project first; times are nanoseconds, both ends included."""

    def __init__(self, database: Database, log: LogReader, runs: RunStore) -> None:
        self._database = database
        self._runs = runs
        self._telling = Telling(log, runs, log.cache)
        self._spans = TimeSpans(database, log.segments)

    def runs(self, project: str, since_ns: int) -> list[RunRecord]:
        """The runs of the project that were heard of since a moment, oldest first."""
        query = select(t.run).where(
            t.run.c.project == project,
            t.run.c.deleted_ns.is_(None),
            t.run.c.last_seen_ns >= since_ns,
        )
        with self._database.read() as connection:
            return [record(row) for row in connection.execute(query.order_by(t.run.c.id))]

    def layers(
        self, project: str, run: str, quantity: str, t0_ns: int, t1_ns: int
    ) -> Iterator[LayerSamples]:
        """One quantity of all layers, by replica group and layout.

        Raises:
            ValueError: there is no such quantity.
            Damaged: a segment is.
        """
        asked = Quantity.named(quantity)
        held = self._held(project, run, t0_ns, t1_ns)
        if held is None:
            return
        parts: dict[tuple[int, str], list[tuple[Ints, Matrix, NDArray[np.bool_]]]] = {}
        pieces = self._telling.pieces(held, [*held.whole, *held.split], asked.columns)
        for piece, until in one_voice(pieces):
            inside = (piece.matrix_times_ns >= t0_ns) & (piece.matrix_times_ns <= t1_ns)
            inside &= piece.matrix_steps <= until
            layout = self._runs.layout(project, piece.layout)
            if layout is None or not inside.any():
                continue
            values, measured = asked.of(piece.matrix[inside], asked.scale(layout))
            part = piece.matrix_times_ns[inside], values.T, measured.T
            parts.setdefault((piece.group, piece.layout), []).append(part)
        names: dict[str, tuple[str, ...]] = {}
        for (group, digest), told in parts.items():
            if digest not in names:
                layout = self._runs.layout(project, digest)
                assert layout is not None
                names[digest] = tuple(parameter.name for parameter in layout.parameters)
            yield LayerSamples(
                group,
                names[digest],
                np.concatenate([part[0] for part in told]),
                np.concatenate([part[1] for part in told], axis=1, dtype=np.float64),
                np.concatenate([part[2] for part in told], axis=1),
            )

    def scalars(
        self, project: str, run: str, wanted: Callable[[str], bool], t0_ns: int, t1_ns: int
    ) -> Iterator[ScalarSamples]:
        """Scalars with names that are wanted, rank by rank.

        Raises:
            Damaged: a segment is.
        """
        held = self._held(project, run, t0_ns, t1_ns)
        if held is None:
            return
        parts: dict[tuple[str, int], list[tuple[Ints, Doubles]]] = {}
        for piece, until in self._telling.scalars(held):
            order = np.argsort(piece.steps, kind="stable")
            for name in filter(wanted, piece.scalars):
                steps, values = piece.scalars[name]
                at = order[np.searchsorted(piece.steps[order], steps)]
                times = piece.times_ns[at]
                inside = (times >= t0_ns) & (times <= t1_ns) & (steps <= until)
                if inside.any():
                    part = times[inside], values[inside]
                    parts.setdefault((name, piece.rank), []).append(part)
        for (name, rank), told in parts.items():
            times = np.concatenate([part[0] for part in told])
            yield ScalarSamples(name, rank, times, np.concatenate([part[1] for part in told]))

    def recorded(
        self,
        project: str,
        run_rows: Collection[int],
        wanted: Callable[[str], bool],
        t0_ns: int,
        t1_ns: int,
    ) -> Iterator[RecordedSamples]:
        """Recorded series with names that are wanted: those of these runs, and those of rules."""
        names = sorted(filter(wanted, self.names(project)))
        if not names:
            return
        mine = or_(t.series.c.ruled, t.series.c.run_id.in_(run_rows))
        query = (
            select(t.series, t.sample_chunk.c.body)
            .join(t.sample_chunk, t.sample_chunk.c.series_id == t.series.c.id)
            .where(
                t.series.c.project == project,
                t.series.c.name.in_(names),
                mine,
                t.sample_chunk.c.t1_ns >= t0_ns,
                t.sample_chunk.c.t0_ns <= t1_ns,
            )
            .order_by(t.series.c.id, t.sample_chunk.c.t0_ns, t.sample_chunk.c.id)
        )
        with self._database.read() as connection:
            found = connection.execute(query).all()
        for _, rows in groupby(found, key=lambda row: row.id):
            held = list(rows)
            parts = [columns(row.body) for row in held]
            times = np.concatenate([part[0] for part in parts])
            inside = (times >= t0_ns) & (times <= t1_ns)
            if inside.any():
                values = np.concatenate([part[1] for part in parts])[inside]
                one = held[0]
                run_row = None if one.ruled else one.run_id
                yield RecordedSamples(one.name, one.labels, times[inside], values, run_row)

    def names(self, project: str) -> set[str]:
        """Names of recorded series."""
        query = select(t.series.c.name).where(t.series.c.project == project).distinct()
        with self._database.read() as connection:
            return set(connection.execute(query).scalars())

    def _held(self, project: str, run: str, t0_ns: int, t1_ns: int) -> Held | None:
        steps = self._spans.steps_around(project, run, t0_ns, t1_ns)
        return None if steps is None else self._telling.held(project, run, *steps)
