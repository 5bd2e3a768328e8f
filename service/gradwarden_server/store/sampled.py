"""Samples by time, as queries over many runs read them: layers, scalars and recorded series."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from gradwarden_server.joins import Matrix
from gradwarden_server.store import tables as t
from gradwarden_server.store.curves import Doubles, Ints
from gradwarden_server.store.database import Database
from gradwarden_server.store.entries import LogReader
from gradwarden_server.store.gather import one_voice
from gradwarden_server.store.pieces import Quantity
from gradwarden_server.store.recorded import unpacked
from gradwarden_server.store.records import RunRecord
from gradwarden_server.store.runs import RunStore, record
from gradwarden_server.store.telling import Held, Telling
from gradwarden_server.store.timespan import TimeSpans


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
    """One recorded series of a run: times and values, [N]."""

    name: str
    labels: Mapping[str, str]
    times_ns: Ints
    values: Doubles


class Samples:
    """Every method takes the project first; times are nanoseconds, both ends included."""

    def __init__(self, database: Database, log: LogReader, runs: RunStore) -> None:
        self._database = database
        self._runs = runs
        self._telling = Telling(log, runs, log.cache)
        self._spans = TimeSpans(database, log.segments)

    def runs(self, project: str) -> list[RunRecord]:
        """Every run of the project, oldest first."""
        query = select(t.run).where(t.run.c.project == project, t.run.c.deleted_ns.is_(None))
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
        self, project: str, run_row: int, wanted: Callable[[str], bool], t0_ns: int, t1_ns: int
    ) -> Iterator[RecordedSamples]:
        """Recorded series of a run with names that are wanted."""
        query = select(t.series).where(t.series.c.project == project, t.series.c.run_id == run_row)
        chunks = select(t.sample_chunk.c.body).where(
            t.sample_chunk.c.t1_ns >= t0_ns, t.sample_chunk.c.t0_ns <= t1_ns
        )
        with self._database.read() as connection:
            for row in connection.execute(query.order_by(t.series.c.id)).all():
                if not wanted(row.name):
                    continue
                mine = chunks.where(t.sample_chunk.c.series_id == row.id)
                bodies = connection.execute(mine.order_by(t.sample_chunk.c.t0_ns)).scalars()
                points = [point for body in bodies for point in unpacked(body)]
                inside = [point for point in points if t0_ns <= point[0] <= t1_ns]
                if inside:
                    times = np.array([point[0] for point in inside], np.int64)
                    values = np.array([point[1] for point in inside], np.float64)
                    yield RecordedSamples(row.name, row.labels, times, values)

    def names(self, project: str) -> set[str]:
        """Names of recorded series."""
        query = select(t.series.c.name).where(t.series.c.project == project).distinct()
        with self._database.read() as connection:
            return set(connection.execute(query).scalars())

    def _held(self, project: str, run: str, t0_ns: int, t1_ns: int) -> Held | None:
        steps = self._spans.steps_around(project, run, t0_ns, t1_ns)
        return None if steps is None else self._telling.held(project, run, *steps)
