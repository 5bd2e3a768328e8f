"""Rows in every table of a database, whatever its schema: made from the columns alone."""

from __future__ import annotations

import json
import math
import zlib
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    insert,
    select,
)

WORDS = ("Zug", "apfel", "Äpfel", "zug", "Apfel", "_", "éclair", "日本", "B", "b")
"""In an order that no two collations agree on."""


def reflected(connection: Connection) -> MetaData:
    """The schema as the database has it."""
    found = MetaData()
    found.reflect(connection)
    return found


def fill(connection: Connection, rows: int = 7, spread: int = 1) -> None:
    """Put ``rows`` rows into every table but alembic's; every reference leads somewhere.

    ``spread`` is how many row numbers lie between two rows, as after deletions.
    """
    made = reflected(connection)
    for table in made.sorted_tables:
        if table.name != "alembic_version":
            values = [_row(table, made, n, spread) for n in range(rows)]
            connection.execute(insert(table), values)


def contents(connection: Connection, leave_out: dict[str, set[str]] | None = None) -> Any:
    """Every row of every table by its name, without the columns named by their tables."""
    found = {}
    for table in reflected(connection).sorted_tables:
        if table.name == "alembic_version":
            continue
        hidden = (leave_out or {}).get(table.name, set())
        columns = [column for column in table.columns if column.name not in hidden]
        rows = connection.execute(select(*columns)).all()
        found[table.name] = sorted(repr(tuple(_plain(value) for value in row)) for row in rows)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value


def _row(table: Table, made: MetaData, n: int, spread: int) -> dict[str, Any]:
    return {column.name: _value(table, column, made, n, spread) for column in table.columns}


def _value(table: Table, column: Column[Any], made: MetaData, n: int, spread: int) -> Any:
    for key in column.foreign_keys:
        there = key.column.table
        return _value(there, there.c[key.column.name], made, n, spread)
    kind = column.type
    if column.name == "id":
        return 1 + n * spread
    if column.nullable and n % 3 == 2:
        return None
    if isinstance(kind, JSON):
        return {"n": n, "tiny": 1e-300, "text": WORDS[n % len(WORDS)], "null": None}
    if isinstance(kind, Boolean):
        return n % 2 == 0
    if isinstance(kind, Float):
        return math.pi * 10.0 ** (n * 20 % 600 - 300)
    if isinstance(kind, LargeBinary):
        return bytes(range(256)) * (1 + n)
    if column.name == "crc32":
        return zlib.crc32(bytes(range(256)) * (1 + n))
    if isinstance(kind, Integer):
        return n if column.name in _SMALL else n + (n << 20)
    length = getattr(kind, "length", None) or 1000
    return f"{WORDS[n % len(WORDS)]}{n}"[:length]


_SMALL = {"ordinal", "rank", "block", "width", "group", "shard", "shards"}
