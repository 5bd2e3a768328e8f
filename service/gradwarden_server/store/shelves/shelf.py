"""Where the values of segments lie: in tables of the database, or in a series engine beside it.

What a segment says apart from values, its spine, is always in the database, and so is which
shelf its values were put on: an installation can begin to use another one at any time, and
what is old is read where it lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gradwarden_server.joins import Matrix
from gradwarden_server.store.errors import Unavailable
from gradwarden_server.store.shelves.built import Built

Row = NDArray[np.float32]
Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Filed:
    """A segment as a shelf knows it.

    Its number may have belonged to another one before, which was given up; together with the
    moment of its claim it is its own.
    """

    id: int
    claimed_ns: int
    shelf: str
    run: str
    attempt: str
    rank: int
    step0: int
    step1: int

    @property
    def place(self) -> str:
        """Where it belongs, for people."""
        return f"run {self.run!r}, rank {self.rank}, steps {self.step0} to {self.step1}"


class Shelf(Protocol):
    """One place for values. What it does not hold of a segment it leaves out.

    Every method raises Unavailable while the place cannot be used, and those that read raise
    Damaged where what they find is not what was put.
    """

    @property
    def name(self) -> str:
        """What the rows of its segments say; empty for the database's own tables."""

    def ready(self) -> None:
        """Raise Unavailable if nothing can be put now."""

    def put(self, project: str, filed: Filed, made: Built) -> int:
        """Keep the values of a segment in the making; what they weigh in the database, in bytes.

        When it returns they are durable. It is called once for a claim: whatever keeps it from
        returning, the claim is given up, and what was kept of it is dropped.
        """

    def row(self, segments: Sequence[Filed], quantity: str, row: int) -> Mapping[int, Row]:
        """Of each segment, by its id, the [m] values of one row of a column."""

    def columns(
        self, segment: Filed, quantities: Sequence[str]
    ) -> Iterator[tuple[str, int, Matrix]]:
        """Columns in parts: quantity, first row, [rows, m]."""

    def words(self, segment: Filed, name: str) -> Words | None:
        """[n, W] 64-bit words."""

    def rollups(
        self, segments: Sequence[Filed], width: int, quantity: str, aggregates: Sequence[str]
    ) -> Mapping[int, Mapping[str, Matrix]]:
        """Of each segment, by its id, [rows, buckets] of each aggregate."""


class SeriesEngine(Shelf, Protocol):
    """A shelf outside of the database, which nothing leaves by itself."""

    def drop(self, segments: Sequence[Filed], held: str = "") -> None:
        """Drop what segments do not hold any more.

        ``held`` is "rollup" to drop the values, "coarse" the narrow roll-ups too, "" everything.
        """

    def holding(self, narrower: str, after: tuple[int, int]) -> list[tuple[int, int]]:
        """Some segments, in order past ``after``, with something that ``narrower`` does not hold.

        As (id, claimed_ns); an empty list when there are no more.
        """


class Shelves:
    """Every shelf there is, and on which of them new segments are put."""

    def __init__(self, tables: Shelf, series: SeriesEngine | None = None) -> None:
        self.series = series
        self.current: Shelf = series or tables
        self._by_name = {shelf.name: shelf for shelf in (tables, series) if shelf is not None}

    def of(self, segment: Filed) -> Shelf:
        """The shelf that a segment was put on.

        Raises:
            Unavailable: this service was not told where that is.
        """
        shelf = self._by_name.get(segment.shelf)
        if shelf is None:
            raise Unavailable(
                f"{segment.place}: its values lie in {segment.shelf}, and this service does not "
                "know where that is; set GRADWARDEN_SERIES to what it was"
            )
        return shelf

    def row(self, segments: Sequence[Filed], quantity: str, row: int) -> Mapping[int, Row]:
        """As :meth:`Shelf.row`, wherever each segment lies."""
        found: dict[int, Row] = {}
        for shelf, some in self._apart(segments):
            found |= shelf.row(some, quantity, row)
        return found

    def rollups(
        self, segments: Sequence[Filed], width: int, quantity: str, aggregates: Sequence[str]
    ) -> Mapping[int, Mapping[str, Matrix]]:
        """As :meth:`Shelf.rollups`, wherever each segment lies."""
        found: dict[int, Mapping[str, Matrix]] = {}
        for shelf, some in self._apart(segments):
            found |= shelf.rollups(some, width, quantity, aggregates)
        return found

    def _apart(self, segments: Sequence[Filed]) -> list[tuple[Shelf, list[Filed]]]:
        by_name: dict[str, list[Filed]] = {}
        for segment in segments:
            by_name.setdefault(segment.shelf, []).append(segment)
        return [(self.of(some[0]), some) for some in by_name.values()]
