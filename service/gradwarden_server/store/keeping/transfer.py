"""A whole database copied into another, of either kind, page by page.

A page is some rows in the order of their key, read within one snapshot of the source and
written in one transaction, so after a crash the highest key in the target is where to go on.
Values travel as they are stored: JSON as its text, floats and bytes bit for bit.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Integer,
    Row,
    Select,
    Table,
    Text,
    bindparam,
    cast,
    func,
    insert,
    select,
    text,
    tuple_,
    type_coerce,
)

from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database, clock_ns
from gradwarden_server.store.errors import StoreError

Progress = Callable[[str, int, int], None]
"""Told of (what, rows done, rows in all) as the work goes on."""

_PAGE_BYTES = 4 << 20
_PAGE_KEYS = 500
_TEXT_ROWS = 64
_LOCK = 7229342


class NotCopied(StoreError):
    """The copy cannot begin, or is not the same as its source; the text says what to do."""


def silent(what: str, done: int, total: int) -> None:
    """Progress for nobody."""


def copy(source: Database, target: Database, progress: Progress = silent) -> dict[str, int]:
    """Copy every table, and verify counts and checksums; rows by table.

    Both are migrated, and nobody else writes to them: the caller holds the files.

    Raises:
        NotCopied: a service uses one of them, or the target holds something else.
    """
    with snapshot(source) as reading:
        refuse_served(reading, "source")
        with alone(target):
            return copy_rows(reading, target, progress)


@contextmanager
def snapshot(database: Database) -> Iterator[Connection]:
    """One view of a database for as long as it takes."""
    engine = database.engine
    if database.kind == "postgresql":
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    with engine.connect() as connection, connection.begin():
        yield connection


def refuse_served(connection: Connection, name: str) -> None:
    """Refuse a PostgreSQL on which services are at work; they hold leases.

    Raises:
        NotCopied: one is.
    """
    if connection.dialect.name == "sqlite":
        return  # the file's lock says so
    now_ns = clock_ns(connection)
    holders = select(t.lease.c.holder).where(t.lease.c.expires_ns > now_ns).distinct()
    found = connection.execute(holders).scalars().all()
    if found:
        raise NotCopied(
            f"the {name} is used by {', '.join(found[:3])}; stop every service on it, "
            "wait fifteen seconds where one was killed, and run this again"
        )


@contextmanager
def alone(target: Database) -> Iterator[None]:
    """Keep other copies away from a PostgreSQL.

    Raises:
        NotCopied: one is under way, or services are at work there.
    """
    if target.kind != "postgresql":
        yield
        return
    guard = target.connect_alone()
    try:
        (mine,) = guard.execute(f"SELECT pg_try_advisory_lock({_LOCK})").fetchone()
        if not mine:
            raise NotCopied("another copy into this database is under way; let it finish")
        with snapshot(target) as connection:
            refuse_served(connection, "target")
        yield
    finally:
        guard.close()


def copy_rows(source: Connection, target: Database, progress: Progress) -> dict[str, int]:
    """Copy what the target lacks of a snapshot, and verify all of it.

    Raises:
        NotCopied: the target holds something else.
    """
    tables = t.metadata.sorted_tables
    counts = {table.name: _count(source, table) for table in tables}
    for table in tables:
        _refuse_others(source, target, table)
    for table in tables:
        _copy_table(source, target, table, counts[table.name], progress)
    _number_on(target)
    for table in tables:
        verify(source, target, table, counts[table.name], progress)
    return counts


def verify(
    source: Connection, target: Database, table: Table, total: int, progress: Progress
) -> None:
    """Compare count and checksum of a table.

    Raises:
        NotCopied: they differ.
    """
    what = f"verify {table.name}"
    with snapshot(target) as reading:
        theirs = checksum(reading, table, lambda done: progress(what, done // 2, total))
    ours = checksum(source, table, lambda done: progress(what, (total + done) // 2, total))
    if ours != theirs:
        raise NotCopied(
            f"table {table.name} has {ours[0]} rows with checksum {ours[1]:016x} in the source and "
            f"{theirs[0]} with {theirs[1]:016x} in the target; the source changed between two "
            "runs of the copy: begin anew with an empty target"
        )


def checksum(
    connection: Connection, table: Table, told: Callable[[int], None] = lambda done: None
) -> tuple[int, int]:
    """How many rows a table has, and a sum over them that is the same on every database."""
    count = total = 0
    for page in _pages(connection, table, None):
        for row in page:
            plain = [(zlib.crc32(v), len(v)) if isinstance(v, bytes) else v for v in row]
            total += zlib.crc32(repr(plain).encode("utf-8", "surrogatepass")) * 0x9E3779B1
        count += len(page)
        told(count)
    return count, total & 0xFFFFFFFFFFFFFFFF


def _copy_table(
    source: Connection, target: Database, table: Table, total: int, progress: Progress
) -> None:
    with target.engine.connect() as connection, connection.begin():
        after = _last_key(connection, table)
        done = _count(connection, table)
    progress(table.name, done, total)
    names = [f"v_{column.name}" for column in table.columns]
    for page in _pages(source, table, after):
        rows = [dict(zip(names, row, strict=True)) for row in page]
        with target.engine.connect() as connection, connection.begin():
            connection.execute(_insert(table, target.kind), rows)
        done += len(rows)
        progress(table.name, done, total)


def _refuse_others(source: Connection, target: Database, table: Table) -> None:
    """What the target has of a table must be the beginning of what the source has."""
    with snapshot(target) as connection:
        last = _last_key(connection, table)
        if last is None:
            return
        mine = connection.execute(_row_at(table, connection, last)).all()
        held = _count(connection, table)
    theirs = source.execute(_row_at(table, source, last)).all()
    upto = source.execute(
        select(func.count()).select_from(table).where(_key(table, source) <= _bound(last))
    ).scalar_one()
    if held != upto or sorted(map(repr, mine)) != sorted(map(repr, theirs)):
        raise NotCopied(
            f"the target holds other data: its table {table.name} has {held} rows that are not "
            "the first of the source; name an empty database"
        )


def _pages(connection: Connection, table: Table, after: Any) -> Iterator[Sequence[Row[Any]]]:
    """Rows in the order of their key, some megabytes at a time; rows of one key together."""
    rows = _rows(table, connection.dialect.name).order_by(*_order(table, connection))
    key = _key(table, connection)
    if not _numbered(table):
        rows = rows.limit(_TEXT_ROWS)
        while True:
            page = connection.execute(rows if after is None else rows.where(key > _bound(after)))
            found = page.all()
            if not found:
                return
            yield found
            names = [column.name for column in table.primary_key.columns]
            after = tuple(getattr(found[-1], name) for name in names)
    lowest = -1 if after is None else after
    while True:
        upto = _page_end(connection, table, lowest)
        if upto is None:
            return
        yield connection.execute(rows.where(key > lowest, key <= upto)).all()
        lowest = upto


def _page_end(connection: Connection, table: Table, after: int) -> int | None:
    """The last key of the next page: one, or as many as some megabytes allow."""
    key = _key(table, connection)
    sized = [func.length(c) for c in table.columns if c.name == "body" and not _is_json(c)]
    weight = func.coalesce(func.sum(sized[0]), 0) if sized else func.count()
    heads = select(key, weight).where(key > after).group_by(key).order_by(key).limit(_PAGE_KEYS)
    upto, total = None, 0
    for number, size in connection.execute(heads):
        total += int(size)
        if upto is not None and total > _PAGE_BYTES:
            break
        upto = int(number)
    return upto


def _numbered(table: Table) -> bool:
    """Whether its key begins with a row number; all of one number are one unit then."""
    return next(iter(table.primary_key.columns)).type.python_type is int


def _order(table: Table, connection: Connection) -> list[Any]:
    columns: list[Any] = list(table.primary_key.columns)
    if _numbered(table) or connection.dialect.name == "sqlite":
        return columns
    # By bytes, as SQLite does, whatever the language of the database.
    return [column.collate("C") for column in columns]


def _key(table: Table, connection: Connection) -> Any:
    columns = _order(table, connection)
    return tuple_(*columns) if len(columns) > 1 and not _numbered(table) else columns[0]


def _bound(key: Any) -> Any:
    if not isinstance(key, tuple):
        return key
    return tuple_(*key) if len(key) > 1 else key[0]


def _last_key(connection: Connection, table: Table) -> Any:
    if _numbered(table):
        return connection.execute(select(func.max(_key(table, connection)))).scalar_one()
    newest = [column.desc() for column in _order(table, connection)]
    last = select(*table.primary_key.columns).order_by(*newest).limit(1)
    row = connection.execute(last).one_or_none()
    return None if row is None else tuple(row)


def _row_at(table: Table, connection: Connection, key: Any) -> Select[Any]:
    return _rows(table, connection.dialect.name).where(_key(table, connection) == _bound(key))


def _rows(table: Table, kind: str) -> Select[Any]:
    return select(*(_stored(column, kind) for column in table.columns))


def _is_json(column: Column[Any]) -> bool:
    return isinstance(column.type, JSON)


def _stored(column: Column[Any], kind: str) -> Any:
    if not _is_json(column):
        return column
    plain: Any = cast(column, Text) if kind == "postgresql" else type_coerce(column, Text)
    return plain.label(column.name)


def _insert(table: Table, kind: str) -> Any:
    values: dict[str, Any] = {}
    for column in table.columns:
        given: Any = bindparam(
            f"v_{column.name}", type_=Text() if _is_json(column) else column.type
        )
        values[column.name] = cast(given, JSON) if _is_json(column) and kind != "sqlite" else given
    return insert(table).values(values)


def _count(connection: Connection, table: Table) -> int:
    return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def _number_on(target: Database) -> None:
    """Let PostgreSQL number new rows after the copied ones."""
    if target.kind != "postgresql":
        return
    with target.engine.connect() as connection, connection.begin():
        for table in t.metadata.sorted_tables:
            if "id" in table.c and isinstance(table.c.id.type, Integer):
                connection.execute(
                    text(
                        f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), "
                        f"coalesce((SELECT max(id) FROM {table.name}), 0) + 1, false)"
                    )
                )
