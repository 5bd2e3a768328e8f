"""Reads that nobody waits for any more: they end at their next look into the database.

Who serves a reader says so with :func:`unless`; every read transaction begins with
:func:`check`, so that no page loop has to be told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event

_left: ContextVar[Event | None] = ContextVar("left", default=None)


class Abandoned(Exception):
    """The reader left before its answer was complete."""


@contextmanager
def unless(left: Event) -> Iterator[None]:
    """Reads of this context, and of threads that were given it, end once ``left`` is set."""
    token = _left.set(left)
    try:
        yield
    finally:
        _left.reset(token)


def check() -> None:
    """Raises Abandoned: whoever asked has left."""
    left = _left.get()
    if left is not None and left.is_set():
        raise Abandoned
