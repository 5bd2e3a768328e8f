"""Giving room that deleted rows left behind back to the operating system."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass

from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url

from gradwarden_server.store.database import Database
from gradwarden_server.store.keeping.sweep import WRITE_SECONDS, Broom

_PAGES = 32
_INCREMENTAL = 2


class NotOnline(Exception):
    """This database cannot be vacuumed beside a running service; the text says how it can."""


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of an SQLite file, and how many of them hold nothing."""

    size: int
    free: int


def room(database: Database) -> Room:
    """How large an SQLite file is, and how much of it is free."""
    with database.read() as connection:
        page = _pragma(connection, "page_size")
        return Room(
            page * _pragma(connection, "page_count"), page * _pragma(connection, "freelist_count")
        )


def vacuum_some(broom: Broom, seconds: float) -> Room:
    """Give back what is free for some seconds, in small writes; what is left after them.

    Raises:
        NotOnline: the file was made without room for this, or it is no file.
    """
    database = broom.database
    if database.kind != "sqlite":
        raise NotOnline("run gradwarden db vacuum on PostgreSQL itself; services may go on")
    with database.read() as connection:
        if _pragma(connection, "auto_vacuum") != _INCREMENTAL:
            raise NotOnline(
                "this file was made before pages could be given back one by one; "
                "stop the service once and run gradwarden db vacuum"
            )
    until = time.monotonic() + seconds
    while broom.once(_some_pages) and time.monotonic() < until:
        pass
    _checkpoint(database)
    return room(database)


def vacuum_alone(database: Database) -> None:
    """Rewrite an SQLite file that nobody else has open; let PostgreSQL vacuum and analyze."""
    if database.kind == "sqlite":
        with _alone(database) as file:
            file.execute(f"PRAGMA auto_vacuum={_INCREMENTAL}")
            file.execute("VACUUM")
            file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return
    connection = database.connect_alone()
    try:
        connection.execute("VACUUM (ANALYZE)")
    finally:
        connection.close()


def _some_pages(connection: Connection) -> int:
    """Free pages for some milliseconds; how many."""
    until = time.monotonic() + WRITE_SECONDS
    before = left = _pragma(connection, "freelist_count")
    while left and time.monotonic() < until:
        for _ in range(_PAGES):
            # One at a time: the driver takes a statement without columns one step and no further.
            connection.exec_driver_sql("PRAGMA incremental_vacuum(1)")
        left = _pragma(connection, "freelist_count")
    return before - left


def _checkpoint(database: Database) -> None:
    """Move the log of changes into the file, which only then becomes smaller."""
    with _alone(database) as file:
        file.execute("PRAGMA busy_timeout=2000").fetchall()
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _alone(database: Database) -> closing[sqlite3.Connection]:
    """A connection outside of every pool, each statement its own transaction."""
    path = make_url(database.url).database
    assert path is not None
    return closing(sqlite3.connect(path, isolation_level=None))


def _pragma(connection: Connection, name: str) -> int:
    return int(connection.execute(text(f"PRAGMA {name}")).scalar_one())
