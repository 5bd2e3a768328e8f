"""Reading segments: what a stream said over many steps, column by column.

Spines are read from the database, values from the shelf that each segment was put on. What is
damaged is refused by name, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import BigInteger, ColumnElement, Select, bindparam, select

from gradwarden_server.joins import Matrix
from gradwarden_server.store import tables as t
from gradwarden_server.store.cache import Cache
from gradwarden_server.store.columns import codec, rollup
from gradwarden_server.store.columns.rollup import Ints
from gradwarden_server.store.database import Database
from gradwarden_server.store.shelves import spine
from gradwarden_server.store.shelves.shelf import Filed, Row, Shelves, Words
from gradwarden_server.store.shelves.shelf_tables import TableShelf, checked
from gradwarden_server.store.shelves.spine import Spine

RAW = "raw"
"""Of a segment whose values are all still held."""

_Rolled = tuple[Ints, Mapping[str, Matrix]]

_PAGE = 64
_ROW_PAGE = 256  # a chunk each, of some tens of kilobytes
_NUMBERS = 512
_SEGMENT_BYTES = 1000


@dataclass(frozen=True, slots=True)
class Segment(Filed):
    """One sealed segment: it stands for its stream's batches from position0 to position1.

    Its rank holds one of ``shards`` parts of its group's parameters. ``held`` tells which of
    its values are still there: "raw" all, "rollup" no chunks, "coarse" no narrow roll-ups.
    """

    stream_id: int
    ordinal: int
    group: int
    shard: int
    shards: int
    position0: int
    position1: int
    t0_ns: int
    t1_ns: int
    frames: int
    matrices: int
    layout: str
    held: str


class SegmentReader:
    """Sealed segments of runs; reads page in short transactions."""

    def __init__(self, database: Database, cache: Cache, shelves: Shelves | None = None) -> None:
        """Without ``shelves`` only those segments can be read whose values are in tables."""
        self._database = database
        self._cache = cache
        self.shelves = shelves or Shelves(TableShelf(database))

    def index(self, project: str, run: str, first: int, last: int) -> list[Segment]:
        """The segments that touch steps [first, last], by attempt, then log position."""
        return self._listed(_TOUCHING, project, run, first, last)

    def past(self, project: str, run: str, position: int, until: int) -> list[Segment]:
        """The segments that hold batches of log positions in (position, until]."""
        return self._listed(_HOLDING, project, run, position + 1, until)

    def _listed(
        self, which: Select[Any], project: str, run: str, low: int, high: int
    ) -> list[Segment]:
        """Those of a statement over low and high; what was read of one before is taken as it was.

        Together with the moment of its claim a number is one segment's own, and of a sealed one
        nothing changes but what it holds.
        """
        asked = {"of_project": project, "of_run": run, "low": low, "high": high}
        with self._database.read() as connection:
            keys = [("segment", *row) for row in connection.execute(which, asked).all()]
            known: dict[Any, Segment | None] = {key: self._cache.get(key) for key in keys}
            missing = [key[1] for key, segment in known.items() if segment is None]
            for start in range(0, len(missing), _NUMBERS):
                page = missing[start : start + _NUMBERS]
                for row in connection.execute(_SEGMENTS, {"numbers": page}).all():
                    segment = Segment(*row)
                    key = ("segment", segment.id, segment.claimed_ns, segment.held)
                    known[key] = segment
                    self._cache.keep(key, segment, _SEGMENT_BYTES)
        return [segment for segment in map(known.get, keys) if segment is not None]

    def spines(self, segments: Sequence[Segment]) -> Iterator[tuple[Segment, Spine]]:
        """Each segment with its spine.

        Raises:
            Damaged: the body of one is.
        """
        for start in range(0, len(segments), _PAGE):
            page = segments[start : start + _PAGE]
            held = {s.id: self._cache.get(("spine", s.id)) for s in page}
            missing = [s for s in page if held[s.id] is None]
            statement = select(t.segment.c.id, t.segment.c.crc32, t.segment.c.body).where(
                t.segment.c.id.in_([s.id for s in missing])
            )
            by_id = {s.id: s for s in missing}
            rows: Sequence[Any] = ()
            if missing:
                with self._database.read() as connection:
                    rows = connection.execute(statement).all()
            for number, crc32, body in rows:
                found = checked(by_id[number], "its spine", crc32, body, spine.unpack)
                self._cache.keep(("spine", number), found, found.size)
                held[number] = found
            for segment in page:  # retention may have taken one away meanwhile
                spine_of: Spine | None = held[segment.id]
                if spine_of is not None:
                    yield segment, spine_of

    def row(
        self, told: Sequence[tuple[Segment, Spine]], quantity: str, row: int
    ) -> Iterator[tuple[Segment, Spine, Row]]:
        """[m] values of one row over the matrices that measured the column.

        Segments that have no such column, row or values any more are left out.

        Raises:
            Damaged: its values are.
        """
        some = [(s, p) for s, p in told if quantity in p.columns and row < p.parameters]
        for start in range(0, len(some), _ROW_PAGE):
            page = some[start : start + _ROW_PAGE]
            known: dict[int, Row | None] = {
                s.id: self._cache.get(("row", s.id, quantity, row)) for s, _ in page
            }
            missing = [
                s
                for s, p in page
                if known[s.id] is None and quantity not in p.constants and s.held == RAW
            ]
            known |= self.shelves.row(missing, quantity, row)
            for segment in missing:
                fresh = known[segment.id]
                if fresh is not None:
                    self._cache.keep(("row", segment.id, quantity, row), fresh, fresh.nbytes + 500)
            for segment, held in page:
                values = known[segment.id]
                if quantity in held.constants:
                    steps = held.measured[held.columns[quantity]].size
                    yield segment, held, codec.filled(1, steps, held.constants[quantity])[0]
                elif values is not None and segment.held == RAW:
                    yield segment, held, values

    def steps(self, told: Sequence[tuple[Segment, Spine]], column: str) -> Ints:
        """The steps at which these segments measured a column, end to end."""
        key = ("steps", column, *(segment.id for segment, _ in told))
        kept: Ints | None = self._cache.get(key)
        if kept is None:
            kept = np.concatenate([held.steps[held.frames_of(column)] for _, held in told])
            self._cache.keep(key, kept, kept.nbytes + 50 * len(told))
        return kept

    def matrices(self, segment: Segment, held: Spine, columns: Sequence[str]) -> Matrix:
        """[m, L, K] of these columns over the segment's matrices; NaN where not measured.

        Raises:
            Damaged: a chunk is.
        """
        found = np.full((segment.matrices, held.parameters, len(columns)), np.nan, np.float32)
        at = {c: held.measured[held.columns[c]] for c in columns if c in held.columns}
        for k, column in enumerate(columns):
            if column in held.constants:
                found[at[column], :, k] = np.uint32(held.constants[column]).view(np.float32)
        wanted = [c for c in at if c not in held.constants]
        for column, row, rows in self.shelves.of(segment).columns(segment, wanted):
            found[at[column], row : row + len(rows), columns.index(column)] = rows.T
        return found

    def column(self, segment: Segment, held: Spine, column: str) -> Matrix:
        """[m, L] of one column over the matrices that measured it.

        Raises:
            Damaged: a chunk is.
        """
        key = ("column", segment.id, column)
        kept: Matrix | None = self._cache.get(key)
        if kept is None:
            at = held.measured[held.columns[column]]
            kept = np.ascontiguousarray(self.matrices(segment, held, [column])[at, :, 0])
            self._cache.keep(key, kept, kept.nbytes)
        return kept

    def words(self, segment: Segment, name: str) -> Words:
        """[n, W] 64-bit words that were kept under this name; none where there were none.

        Raises:
            Damaged: they are.
        """
        found = self.shelves.of(segment).words(segment, name)
        return np.zeros((0, 0), np.uint64) if found is None else found

    def rollups(
        self,
        told: Sequence[tuple[Segment, Spine]],
        width: int,
        quantity: str,
        aggregates: Sequence[str],
    ) -> Iterator[tuple[Segment, Ints, Mapping[str, Matrix]]]:
        """Each segment with its bucket numbers and [buckets, rows] of each aggregate.

        Segments that do not have the column are left out.

        Raises:
            Damaged: a roll-up is.
        """
        kind = (width, quantity, *aggregates)
        some = [(s, p) for s, p in told if quantity in p.columns]
        for start in range(0, len(some), _PAGE):
            page = some[start : start + _PAGE]
            held: dict[int, _Rolled | None] = {
                s.id: self._cache.get(("rollup", s.id, *kind)) for s, _ in page
            }
            missing = [s for s, p in page if held[s.id] is None and quantity not in p.constants]
            stored = self.shelves.rollups(missing, width, quantity, aggregates)
            for segment, told_spine in page:
                rolled = held[segment.id]
                if rolled is None:
                    arrays = stored.get(segment.id, {})
                    rolled = _rolled(told_spine, width, quantity, aggregates, arrays)
                    size = 1000 + sum(array.nbytes for array in arrays.values())
                    self._cache.keep(("rollup", segment.id, *kind), rolled, size)
                yield segment, *rolled


def _segments() -> Select[Any]:
    tables = (t.segment, t.run, t.attempt, t.stream)  # the first that has a name has its value
    columns = [
        next(table.c[name] for table in tables if name in table.c)
        for name in Segment.__dataclass_fields__
    ]
    return (
        select(*columns)
        .join(t.stream, t.stream.c.id == t.segment.c.stream_id)
        .join(t.attempt, t.attempt.c.id == t.stream.c.attempt_id)
        .join(t.run, t.run.c.id == t.segment.c.run_id)
        .where(t.segment.c.id.in_(bindparam("numbers", expanding=True)))
    )


def _sealed(*where: ColumnElement[bool]) -> Select[Any]:
    """The sealed segments of a run by attempt, then log position: what is their own of each."""
    return (
        select(t.segment.c.id, t.segment.c.claimed_ns, t.segment.c.held)
        .join(t.stream, t.stream.c.id == t.segment.c.stream_id)
        .join(t.attempt, t.attempt.c.id == t.stream.c.attempt_id)
        .join(t.run, t.run.c.id == t.segment.c.run_id)
        .where(
            t.run.c.project == bindparam("of_project"),
            t.run.c.run == bindparam("of_run"),
            t.run.c.deleted_ns.is_(None),
            t.segment.c.sealed,
            *where,
        )
        .order_by(t.attempt.c.ordinal, t.segment.c.position0)
    )


_LOW, _HIGH = bindparam("low", type_=BigInteger), bindparam("high", type_=BigInteger)
_SEGMENTS = _segments()
_TOUCHING = _sealed(t.segment.c.step1 >= _LOW, t.segment.c.step0 <= _HIGH)
_HOLDING = _sealed(t.segment.c.position1 >= _LOW, t.segment.c.position0 <= _HIGH)


def _rolled(
    told: Spine,
    width: int,
    quantity: str,
    aggregates: Sequence[str],
    stored: Mapping[str, Matrix],
) -> _Rolled:
    """The buckets of a segment; what is not stored follows from its steps or its constant."""
    steps = np.sort(told.steps[told.frames_of(quantity)])
    numbers, starts = rollup.buckets(steps, width)
    sizes = np.diff(np.append(starts, steps.size)).astype(np.float32)[:, None]
    shape = (numbers.size, told.parameters)
    bits = told.constants.get(quantity)
    value = np.float32(np.nan) if bits is None else np.uint32(bits).view(np.float32)
    plain = bits is None or bool(np.isfinite(value))
    found: dict[str, Matrix] = {}
    for name in aggregates:
        if name in stored:
            found[name] = np.ascontiguousarray(stored[name].T)
        elif name == "count":
            found[name] = np.broadcast_to(sizes if plain else np.float32(0), shape)
        elif name == "nonfinite":
            found[name] = np.broadcast_to(sizes if np.isinf(value) else np.float32(0), shape)
        else:
            filling = value if plain else np.float32(np.nan)
            found[name] = np.broadcast_to(filling, shape)
    return numbers, found
