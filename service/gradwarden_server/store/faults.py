"""What a driver's error means to us: away for now, no room left, or damaged.

Anything else is a mistake of ours and stays as it is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from gradwarden_server.store.errors import DatabaseDamaged, DiskFull, StoreError, Unavailable

# Gone, locked or full: the same write may succeed later, unlike one that broke a constraint.
_AWAY = (OperationalError, InterfaceError, PoolTimeout)
_SQLITE_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_POSTGRES_FULL = "53100"
_POSTGRES_DAMAGED = ("XX001", "XX002")


def meaning(error: BaseException, place: str) -> StoreError | None:
    """Our error for one of the driver's, or None for a mistake of ours.

    Args:
        error: As it was raised.
        place: The file of the database, or "PostgreSQL".
    """
    if isinstance(error, StoreError):
        return error
    found = _meaning(error, place)
    if found is not None:
        found.__cause__ = error
    return found


@contextmanager
def told(place: str) -> Iterator[None]:
    """Raise what the driver's errors mean.

    Raises:
        Unavailable, DiskFull, DatabaseDamaged: instead of the driver's own.
    """
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        found = meaning(error, place)
        if found is None:
            raise
        raise found from error


def _meaning(error: BaseException, place: str) -> StoreError | None:
    cause = error.orig if isinstance(error, DBAPIError) else None
    if isinstance(cause, sqlite3.Error):
        # The low byte is the kind, the rest its detail; errors of the module itself have none.
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return DiskFull(place)
        if code in _SQLITE_DAMAGED:
            return DatabaseDamaged(place, str(cause))
    state = getattr(cause, "sqlstate", None)
    if state == _POSTGRES_FULL:
        return DiskFull(place)
    if state in _POSTGRES_DAMAGED:
        return DatabaseDamaged(place, str(cause).partition("\n")[0])
    if isinstance(error, _AWAY):
        name = getattr(cause, "sqlite_errorname", None) or type(cause or error).__name__
        return Unavailable(f"the database cannot be used now: {name}")
    return None
