"""Values of segments in the database's own tables, as packed and checked bodies."""

from __future__ import annotations

import contextlib
import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Select, Table, insert, select

from gradwarden_server.joins import Matrix
from gradwarden_server.store import tables as t
from gradwarden_server.store.columns import codec
from gradwarden_server.store.database import Database, Priority
from gradwarden_server.store.errors import Damaged
from gradwarden_server.store.shelves.built import Built
from gradwarden_server.store.shelves.shelf import Filed, Row, Words

_WRITE_BYTES = 2 << 20

T = TypeVar("T")
_Page = list[tuple[Table, tuple[Any, ...]]]


class TableShelf:
    """The tables ``chunk`` and ``rollup``; what a segment put there goes with its row."""

    name = ""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ready(self) -> None:
        """Whoever claims a segment learns by that whether the database can be used."""

    def put(self, project: str, filed: Filed, made: Built) -> int:
        """Store chunks and roll-ups, in small transactions."""
        for page in _pages(_rows(filed.id, made)):
            job = partial(_insert, page=page)
            self._database.write(job, Priority.COMPACTION).result()
        return made.bytes - len(made.body)

    def row(self, segments: Sequence[Filed], quantity: str, row: int) -> Mapping[int, Row]:
        """Of each segment the values of one row: only its part of its chunk is unpacked.

        Most are whole, so they are unpacked together; who is damaged is found out after.
        """
        block, at = divmod(row, codec.BLOCK_ROWS)
        statement = select(t.chunk.c.segment_id, t.chunk.c.crc32, t.chunk.c.body).where(
            t.chunk.c.segment_id.in_([s.id for s in segments]),
            t.chunk.c.quantity == quantity,
            t.chunk.c.block == block,
        )
        by_id = {s.id: s for s in segments}
        what = _rows_of(quantity, block)
        found = [tuple(row) for row in self._read(statement, segments)]
        if all(zlib.crc32(body) == crc32 for _, crc32, body in found):
            with contextlib.suppress(codec.Corrupt):
                rows = codec.unpack_rows([body for *_, body in found], at)
                return dict(zip([number for number, *_ in found], rows, strict=True))
        one = partial(_unpack_row, row=at)
        return {
            number: checked(by_id[number], what, crc32, body, one) for number, crc32, body in found
        }

    def columns(
        self, segment: Filed, quantities: Sequence[str]
    ) -> Iterator[tuple[str, int, Matrix]]:
        """Chunk by chunk."""
        statement = (
            select(t.chunk.c.quantity, t.chunk.c.block, t.chunk.c.crc32, t.chunk.c.body)
            .where(t.chunk.c.segment_id == segment.id, t.chunk.c.quantity.in_(quantities))
            .order_by(t.chunk.c.quantity, t.chunk.c.block)
        )
        for found in self._read(statement, quantities):
            what = _rows_of(found.quantity, found.block)
            rows = checked(segment, what, found.crc32, found.body, codec.unpack)
            yield found.quantity, found.block * codec.BLOCK_ROWS, rows

    def words(self, segment: Filed, name: str) -> Words | None:
        """One chunk."""
        statement = select(t.chunk.c.crc32, t.chunk.c.body).where(
            t.chunk.c.segment_id == segment.id, t.chunk.c.quantity == name
        )
        for found in self._read(statement, [name]):
            return checked(segment, name, found.crc32, found.body, codec.unpack_words)
        return None

    def rollups(
        self, segments: Sequence[Filed], width: int, quantity: str, aggregates: Sequence[str]
    ) -> Mapping[int, Mapping[str, Matrix]]:
        """Of each segment what is stored of these; counts that follow from its steps are not."""
        columns = (t.rollup.c[name] for name in ("segment_id", "aggregate", "crc32", "body"))
        statement = select(*columns).where(
            t.rollup.c.segment_id.in_([s.id for s in segments]),
            t.rollup.c.width == width,
            t.rollup.c.quantity == quantity,
            t.rollup.c.aggregate.in_(aggregates),
        )
        by_id = {s.id: s for s in segments}
        found: dict[int, dict[str, Matrix]] = {}
        for row in self._read(statement, segments):
            what = f"{row.aggregate} of {quantity} over {width} steps"
            told = checked(by_id[row.segment_id], what, row.crc32, row.body, codec.unpack)
            found.setdefault(row.segment_id, {})[row.aggregate] = told
        return found

    def _read(self, statement: Select[Any], wanted: Sequence[object]) -> Sequence[Any]:
        if not wanted:
            return []
        with self._database.read() as connection:
            return connection.execute(statement).all()


def checked(segment: Filed, what: str, crc32: int, body: bytes, unpack: Callable[[bytes], T]) -> T:
    """A stored body, unpacked.

    Raises:
        Damaged: it is not what was stored.
    """
    if zlib.crc32(body) != crc32:
        raise Damaged(segment.place, what, "its checksum does not match")
    try:
        return unpack(body)
    except codec.Corrupt as error:
        raise Damaged(segment.place, what, str(error)) from None


def _unpack_row(body: bytes, row: int) -> Row:
    return codec.unpack_rows([body], row)[0]


def _rows_of(quantity: str, block: int) -> str:
    return f"{quantity} of rows {block * codec.BLOCK_ROWS} and on"


def _rows(segment_id: int, made: Built) -> Iterator[tuple[Table, tuple[Any, ...]]]:
    """Rows of both tables, their values in the order of its columns; the last is the body."""
    for *key, body in made.chunks:
        yield t.chunk, (segment_id, *key, zlib.crc32(body), body)
    for *key, body in made.rollups:
        yield t.rollup, (segment_id, *key, zlib.crc32(body), body)


def _pages(rows: Iterator[tuple[Table, tuple[Any, ...]]]) -> Iterator[_Page]:
    """Rows, as many as one short transaction takes."""
    page: _Page = []
    size = 0
    for table, values in rows:
        page.append((table, values))
        size += len(values[-1]) + 100
        if size >= _WRITE_BYTES:
            yield page
            page, size = [], 0
    if page:
        yield page


def _insert(connection: Connection, page: _Page) -> None:
    """Hundreds of rows a segment: to the driver of SQLite they go as they are."""
    for table, rows in itertools.groupby(page, key=lambda row: row[0]):
        values = [row for _, row in rows]
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(_INSERTS[table.name], values)
        else:
            names = table.columns.keys()
            connection.execute(insert(table), [dict(zip(names, v, strict=True)) for v in values])


def _plain_insert(table: Table) -> str:
    places = ", ".join("?" * len(table.columns))
    return f"INSERT INTO {table.name} ({', '.join(table.columns.keys())}) VALUES ({places})"


_INSERTS = {table.name: _plain_insert(table) for table in (t.chunk, t.rollup)}
