"""ClickHouse as the series engine: the values and roll-ups of segments, beside a database.

The database keeps what has to be changed in transactions: the log, spines, runs, alerts. A
segment is sealed there only after ClickHouse has its values, so while ClickHouse is away the
log grows and nothing is lost.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gradwarden_server.joins import Matrix
from gradwarden_server.store.columns import codec, rollup
from gradwarden_server.store.columns.rollup import Ints
from gradwarden_server.store.errors import Damaged
from gradwarden_server.store.shelves import clickhouse_schema as schema
from gradwarden_server.store.shelves import rowbinary
from gradwarden_server.store.shelves.built import Built
from gradwarden_server.store.shelves.clickhouse_engines import Engine, Spoiled
from gradwarden_server.store.shelves.shelf import Filed, Row, Words
from gradwarden_server.store.shelves.spine import Spine

_INSERT_BYTES = 16 << 20
_DROPPED = 256  # segments that one statement drops
_LISTED = 100_000

_OWN = ("project", "run", "attempt", "rank", "segment", "made")
_COLUMNS = {
    schema.VALUES: (*_OWN, "quantity", "row", "rows", "steps", "values"),
    schema.ROLLUPS: (*_OWN, "width", "quantity", "row", "rows", "steps", *rollup.AGGREGATES),
    schema.WORDS: (*_OWN, "name", "width", "words"),
}


class ClickHouseShelf:
    """A :class:`gradwarden_server.store.shelves.shelf.SeriesEngine`."""

    name = "clickhouse"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._prepared = False

    def ready(self) -> None:
        """Ask whether ClickHouse is there, and make the tables once."""
        self._prepare()
        self.engine.query("SELECT 1")

    def close(self) -> None:
        """Let go of the engine."""
        self.engine.close()

    def put(self, project: str, filed: Filed, made: Built) -> int:
        """Insert the values; the database holds none of them."""
        self._prepare()
        own = _own(project, filed)
        self._insert(schema.VALUES, _values(own, made))
        self._insert(schema.ROLLUPS, _rollups(own, made))
        self._insert(schema.WORDS, _words(own, made))
        return 0

    def row(self, segments: Sequence[Filed], quantity: str, row: int) -> Mapping[int, Row]:
        """One row of each."""
        where = f"quantity = {_quoted(quantity)} AND row = {row}"
        what = f"{quantity} of row {row}"
        return dict(self._select(schema.VALUES, (), ["values"], segments, where, what))

    def columns(
        self, segment: Filed, quantities: Sequence[str]
    ) -> Iterator[tuple[str, int, Matrix]]:
        """Whole columns, in one query."""
        if not quantities:
            return
        names = ", ".join(map(_quoted, quantities))
        numbers = (f"toUInt32(indexOf([{names}], quantity))", "row", "rows")
        where, what = f"quantity IN ({names})", ", ".join(quantities)
        rows_of: dict[int, list[tuple[Any, ...]]] = {}
        for _, at, *rest in self._select(
            schema.VALUES, numbers, ["values"], [segment], where, what
        ):
            rows_of.setdefault(at, []).append(tuple(rest))
        for at, rows in rows_of.items():
            quantity = quantities[at - 1]
            yield quantity, 0, _stacked(segment, quantity, rows)[0]

    def words(self, segment: Filed, name: str) -> Words | None:
        """All words of one name."""
        where = f"name = {_quoted(name)}"
        told = self._select(schema.WORDS, ["width"], ["words"], [segment], where, name, "u8")
        for _, width, words in told:
            return np.asarray(words, np.uint64).reshape(-1, width)
        return None

    def rollups(
        self, segments: Sequence[Filed], width: int, quantity: str, aggregates: Sequence[str]
    ) -> Mapping[int, Mapping[str, Matrix]]:
        """All rows of each segment."""
        where = f"quantity = {_quoted(quantity)} AND width = {width}"
        what = f"{quantity} over {width} steps"
        numbers = ("row", "rows")
        by_id = {s.id: s for s in segments}
        rows_of: dict[int, list[tuple[Any, ...]]] = {}
        for number, *rest in self._select(
            schema.ROLLUPS, numbers, aggregates, segments, where, what
        ):
            rows_of.setdefault(number, []).append(tuple(rest))
        return {
            number: dict(zip(aggregates, _stacked(by_id[number], what, rows), strict=True))
            for number, rows in rows_of.items()
        }

    def drop(self, segments: Sequence[Filed], held: str = "") -> None:
        """Delete rows of segments; of none that is not named."""
        narrow = f" AND width = {rollup.WIDTHS[0]}"
        tables = {schema.VALUES: "", schema.WORDS: ""}
        if held != "rollup":
            tables[schema.ROLLUPS] = narrow if held == "coarse" else ""
        if segments:
            self._prepare()
        for start in range(0, len(segments), _DROPPED):
            which = _which(segments[start : start + _DROPPED])
            for table, more in tables.items():
                self.engine.execute(f"DELETE FROM {table} WHERE {which}{more}")

    def holding(self, narrower: str, after: tuple[int, int]) -> list[tuple[int, int]]:
        """Segments with values, or with narrow roll-ups."""
        self._prepare()
        tables = (
            [f"{schema.ROLLUPS} WHERE width = {rollup.WIDTHS[0]} AND"]
            if narrower == "coarse"
            else [f"{table} WHERE" for table in (schema.VALUES, schema.WORDS)]
        )
        each = [f"SELECT segment, made FROM {t} (segment, made) > {after}" for t in tables]
        answer = self.engine.query(
            f"SELECT DISTINCT segment, made FROM ({' UNION ALL '.join(each)}) "
            f"ORDER BY segment, made LIMIT {_LISTED}"
        )
        return [(segment, made) for segment, made in rowbinary.read(answer, "<Qq", "")]

    def _prepare(self) -> None:
        if not self._prepared:
            for statement in schema.CREATE:
                self.engine.execute(statement)
            self._prepared = True

    def _insert(self, table: str, rows: Iterable[bytes]) -> None:
        """A few large inserts."""
        body = bytearray()
        for row in rows:
            body += row
            if len(body) >= _INSERT_BYTES:
                self.engine.insert(table, _COLUMNS[table], bytes(body))
                body.clear()
        if body:
            self.engine.insert(table, _COLUMNS[table], bytes(body))

    def _select(
        self,
        table: str,
        numbers: Sequence[str],
        arrays: Sequence[str],
        segments: Sequence[Filed],
        where: str,
        what: str,
        kind: str = "f4",
    ) -> Iterator[tuple[Any, ...]]:
        """Segment id, 32-bit numbers and arrays of each row."""
        if not segments:
            return
        columns = ", ".join(("segment", *numbers, *arrays))
        statement = f"SELECT {columns} FROM {table} WHERE {_which(segments)} AND {where}"
        fixed, types = "<Q" + "I" * len(numbers), " ".join([kind] * len(arrays))
        try:
            yield from rowbinary.read(self.engine.query(statement), fixed, types)
        except (Spoiled, ValueError) as error:
            raise Damaged(segments[0].place, what, str(error)) from error


def _own(project: str, filed: Filed) -> bytes:
    """What all rows of a segment begin with."""
    names = b"".join(map(rowbinary.text, (project, filed.run, filed.attempt)))
    numbers = _u32(filed.rank), filed.id.to_bytes(8, "little"), _i64(filed.claimed_ns)
    return names + b"".join(numbers)


def _values(own: bytes, made: Built) -> Iterator[bytes]:
    told = made.spine
    rows = _u32(told.parameters)
    for quantity, block, body in made.chunks:
        if quantity not in told.columns:
            continue  # words
        key, steps = own + rowbinary.text(quantity), rowbinary.array(_steps(told, quantity))
        for row, values in enumerate(codec.unpack(body), block * codec.BLOCK_ROWS):
            yield key + _u32(row) + rows + steps + rowbinary.array(values)


def _rollups(own: bytes, made: Built) -> Iterator[bytes]:
    told = made.spine
    rows = _u32(told.parameters)
    for (width, quantity), parts in itertools.groupby(made.rollups, key=lambda r: r[:2]):
        arrays = {aggregate: codec.unpack(body) for *_, aggregate, body in parts}
        steps = np.sort(_steps(told, quantity))
        numbers, starts = rollup.buckets(steps, width)
        sizes = np.diff(np.append(starts, steps.size)).astype(np.float32)
        shape = (told.parameters, numbers.size)
        # What follows from the steps alone is told to people all the same.
        arrays.setdefault("count", np.broadcast_to(sizes, shape))
        arrays.setdefault("nonfinite", np.zeros(shape, np.float32))
        key = own + _u32(width) + rowbinary.text(quantity)
        began = rowbinary.array(numbers * width)
        for row in range(told.parameters):
            told_of = [rowbinary.array(arrays[name][row]) for name in rollup.AGGREGATES]
            yield key + _u32(row) + rows + began + b"".join(told_of)


def _words(own: bytes, made: Built) -> Iterator[bytes]:
    for name, _, body in made.chunks:
        if name not in made.spine.columns:
            words = codec.unpack_words(body)
            flat = rowbinary.array(words.astype("<u8").reshape(-1))
            yield own + rowbinary.text(name) + _u32(words.shape[1]) + flat


def _steps(told: Spine, quantity: str) -> Ints:
    return told.steps[told.frames_of(quantity)]


def _stacked(segment: Filed, what: str, rows: Sequence[tuple[Any, ...]]) -> list[Matrix]:
    """[rows, m] of each array, from (row, rows, array...) in any order, each once or more.

    Raises:
        Damaged: one is missing.
    """
    by_row = {row[0]: row[2:] for row in rows}
    expected = rows[0][1]
    if sorted(by_row) != list(range(expected)):
        raise Damaged(segment.place, what, f"{len(by_row)} of {expected} rows are there")
    ordered = [by_row[row] for row in range(expected)]
    return [np.stack(arrays) for arrays in zip(*ordered, strict=True)]


def _which(segments: Sequence[Filed]) -> str:
    """The order of the tables begins with the run."""
    runs = ", ".join(sorted({_quoted(s.run) for s in segments}))
    pairs = ", ".join(f"({s.id}, {s.claimed_ns})" for s in segments)
    return f"run IN ({runs}) AND (segment, made) IN ({pairs})"


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _i64(value: int) -> bytes:
    return value.to_bytes(8, "little", signed=True)
