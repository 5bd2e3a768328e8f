"""Work on many rows in small writes, between those of trainers.

A write lasts some milliseconds, and after it as long again belongs to others, so acks and
alerts wait for one of them at most. Each write leaves the database whole: who is killed
between two of them goes on, at the next start, where it stopped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, delete, select, tuple_

from gradwarden_server.store.database import Database, Priority

WRITE_SECONDS = 0.006
"""For so long one write goes on; the statement under way is finished."""
_ROWS = 8


class Stopped(Exception):
    """The process is about to end; what is left is done after its next start."""


Step = Callable[[Connection], int]
"""One write; it answers with how many rows it dealt with."""


class Broom:
    """Runs steps in writes of their own."""

    def __init__(self, database: Database, stopping: threading.Event) -> None:
        self.database = database
        self._stopping = stopping

    def once(self, step: Step) -> int:
        """One write.

        Raises:
            Stopped: it is done, and no other is to begin.
        """
        began = time.monotonic()
        done = self.database.write(step, Priority.COMPACTION).result()
        if self._stopping.wait(time.monotonic() - began):
            raise Stopped
        return done

    def sweep(self, step: Step) -> int:
        """Repeat a step until it finds nothing; how many rows in all.

        Raises:
            Stopped: before that.
        """
        total = 0
        while done := self.once(step):
            total += done
        return total


def deleting(table: Table, *where: ColumnElement[bool]) -> Step:
    """A step that deletes rows for some milliseconds."""
    keys = list(table.primary_key.columns)
    key: Any = keys[0] if len(keys) == 1 else tuple_(*keys)
    some = delete(table).where(key.in_(select(*keys).where(*where).limit(_ROWS)))

    def step(connection: Connection) -> int:
        until = time.monotonic() + WRITE_SECONDS
        done = 0
        while True:
            rows = connection.execute(some).rowcount
            done += rows
            if rows < _ROWS or time.monotonic() >= until:
                return done

    return step
