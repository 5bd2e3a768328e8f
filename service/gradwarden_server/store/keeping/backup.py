"""A backup is one SQLite file of the whole database, whatever kind that is; and back.

It is written beside its name, verified, made durable and only then renamed, so that a file of
that name is a whole backup.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import make_url

from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database
from gradwarden_server.store.errors import StoreError
from gradwarden_server.store.keeping.transfer import Progress, alone, copy_rows, silent, snapshot

_PAGES = 512


class NotBackedUp(StoreError):
    """The backup or restore cannot be done, or did not come out whole; the text says why."""


def backup(database: Database, file: Path, progress: Progress = silent) -> dict[str, int]:
    """Write a backup while the database is in use; rows by table.

    Raises:
        NotBackedUp: the file exists, or what was written is not whole.
    """
    if file.exists():
        raise NotBackedUp(f"{file} exists; name another file, or remove it first")
    part = file.with_name(file.name + ".part")
    _forget(part)
    try:
        if database.kind == "sqlite":
            counts = _of_file(_path(database), part, progress)
        else:
            counts = _of_rows(database, part, progress)
        check_file(part)
        if counts != row_counts(part):
            raise NotBackedUp(f"{part} does not hold every row; is the disk full or failing?")
        _settle(part, file)
    except BaseException:
        _forget(part)
        raise
    return counts


def restore(
    file: Path, database: Database, force: bool = False, progress: Progress = silent
) -> dict[str, int]:
    """Make a database what a backup says, and bring it to the newest schema; rows by table.

    The caller holds the database. Onto PostgreSQL a restore that was cut off goes on.

    Raises:
        NotBackedUp: the file is no whole backup, or something is there already.
        NotCopied: a service is at work on the PostgreSQL, or it holds other data.
    """
    check_file(file)
    if database.kind == "sqlite":
        _into_file(file, _path(database), force, progress)
        database.migrate()
    else:
        _into_rows(file, database, force, progress)
    return row_counts(file)


def check_file(file: Path) -> None:
    """Raise NotBackedUp unless a file is a whole database of this product."""
    if not file.is_file():
        raise NotBackedUp(f"{file} is not there; name a file that gradwarden db backup wrote")
    try:
        with closing(_reading(file)) as opened:
            found = opened.execute("PRAGMA integrity_check(1)").fetchone()[0]
            revision = opened.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.DatabaseError as error:
        raise NotBackedUp(f"{file} is no backup of gradwarden: {error}") from None
    if found != "ok" or revision is None:
        raise NotBackedUp(f"{file} is damaged: {found}")


def row_counts(file: Path) -> dict[str, int]:
    """Rows of each table in a backup; a table that its schema had not yet is left out."""
    with closing(_reading(file)) as opened:
        there = {row[0] for row in opened.execute("SELECT name FROM sqlite_master")}
        names = [table.name for table in t.metadata.sorted_tables if table.name in there]
        return {n: opened.execute(f'SELECT count(*) FROM "{n}"').fetchone()[0] for n in names}


def _of_file(path: Path, part: Path, progress: Progress) -> dict[str, int]:
    """Page by page within one read transaction, which writers do not wait for."""
    with closing(sqlite3.connect(path, isolation_level=None)) as source:
        source.execute("BEGIN")
        names = [table.name for table in t.metadata.sorted_tables]
        counts = {n: source.execute(f'SELECT count(*) FROM "{n}"').fetchone()[0] for n in names}
        _pages(source, part, progress)
        source.execute("ROLLBACK")
    return counts


def _of_rows(database: Database, part: Path, progress: Progress) -> dict[str, int]:
    target = Database(f"sqlite:///{part}")
    try:
        target.migrate()
        with snapshot(database) as reading:
            counts = copy_rows(reading, target, progress)
    finally:
        target.close()
    with closing(sqlite3.connect(part, isolation_level=None)) as written:
        written.execute("PRAGMA journal_mode=DELETE").fetchall()
    return counts


def _pages(source: sqlite3.Connection, part: Path, progress: Progress) -> None:
    def told(_status: int, left: int, total: int) -> None:
        progress("pages", total - left, total)

    with closing(sqlite3.connect(part, isolation_level=None)) as target:
        source.backup(target, pages=_PAGES, progress=told, sleep=0)
        # One file, not one with a log beside it.
        target.execute("PRAGMA journal_mode=DELETE").fetchall()


def _into_file(file: Path, path: Path, force: bool, progress: Progress) -> None:
    if path.exists() and path.stat().st_size and not force:
        raise NotBackedUp(f"{path} exists; give --force to replace it for good")
    part = path.with_name(path.name + ".part")
    _forget(part)
    try:
        with closing(_reading(file)) as source:
            _pages(source, part, progress)
        check_file(part)
        _retire(path)
        _settle(part, path)
    except BaseException:
        _forget(part)
        raise


def _into_rows(file: Path, database: Database, force: bool, progress: Progress) -> None:
    """By way of a copy: the backup may be of an older schema, and stays as it is."""
    part = file.with_name(file.name + ".part")
    _forget(part)
    try:
        with closing(_reading(file)) as source:
            _pages(source, part, silent)
        opened = Database(f"sqlite:///{part}")
        try:
            opened.migrate()
            database.migrate()
            with alone(database), snapshot(opened) as reading:
                if force:
                    _empty(database)
                copy_rows(reading, database, progress)
        finally:
            opened.close()
    finally:
        _forget(part)


def _empty(database: Database) -> None:
    names = ", ".join(f'"{table.name}"' for table in t.metadata.sorted_tables)
    with database.engine.connect() as connection, connection.begin():
        connection.execute(text(f"TRUNCATE {names}"))


def _retire(path: Path) -> None:
    """Take the log of a file that is about to be replaced: the next one must not read it."""
    if path.exists():
        with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(path)) as old:
            old.execute("PRAGMA journal_mode=DELETE").fetchall()
    for ending in ("-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


def _settle(part: Path, file: Path) -> None:
    """Give a durable file its name."""
    for ending in ("-wal", "-shm"):
        part.with_name(part.name + ending).unlink(missing_ok=True)
    _sync(part)
    os.replace(part, file)
    _sync(file.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _forget(part: Path) -> None:
    for ending in ("", "-wal", "-shm", "-journal", ".lock"):
        part.with_name(part.name + ending).unlink(missing_ok=True)


def _reading(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)


def _path(database: Database) -> Path:
    path = make_url(database.url).database
    assert path is not None
    return Path(path)
