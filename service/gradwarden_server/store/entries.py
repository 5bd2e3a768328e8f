"""Reading the frame log: batches in the order of their positions, or those of a range of steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, func, literal, select

from gradwarden import wire
from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database

_PAGE = 64


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One batch of the log; ``shift_ns`` is to be added to its frames' own times.

    Its rank holds one of ``shards`` parts of the parameters. ``step0`` is its lowest step.
    """

    position: int
    ordinal: int
    rank: int
    shift_ns: int
    received_ns: int
    body: bytes
    shard: int
    shards: int
    step0: int

    def batch(self) -> wire.Batch:
        """Decode the body."""
        return wire.decode(self.body)


class LogReader:
    """Every method pages in short transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def after(self, project: str, run: str, position: int, limit: int) -> list[LogEntry]:
        """The next ``limit`` batches past a log position, in log order."""
        statement = (
            _entries(project, run)
            .where(t.frame_batch.c.position > position)
            .order_by(t.frame_batch.c.position)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [_entry(row) for row in connection.execute(statement)]

    def index(self, project: str, run: str, first: int, last: int) -> list[LogEntry]:
        """The batches that touch steps [first, last], without their bodies.

        Ordered by attempt, then log position, so that later attempts overwrite earlier ones.
        """
        statement = (
            _entries(project, run, literal(b"").label("body"))
            .where(t.frame_batch.c.step1 >= first, t.frame_batch.c.step0 <= last)
            .order_by(t.attempt.c.ordinal, t.frame_batch.c.position)
        )
        with self._database.read() as connection:
            return [_entry(row) for row in connection.execute(statement)]

    def bodies(self, project: str, run: str, positions: Sequence[int]) -> Iterator[LogEntry]:
        """The batches at these log positions, read in short transactions."""
        for start in range(0, len(positions), _PAGE):
            page = positions[start : start + _PAGE]
            statement = _entries(project, run).where(t.frame_batch.c.position.in_(page))
            with self._database.read() as connection:
                rows = connection.execute(statement).all()
            yield from map(_entry, rows)

    def layouts(self, project: str, run: str) -> list[str]:
        """The hashes of the layouts that the run's matrices follow, the newest first."""
        newest = func.max(t.frame_batch.c.position)
        statement = (
            select(t.frame_batch.c.layout)
            .join(t.run, t.run.c.id == t.frame_batch.c.run_id)
            .where(t.run.c.project == project, t.run.c.run == run, t.frame_batch.c.layout != "")
            .group_by(t.frame_batch.c.layout)
            .order_by(newest.desc())
        )
        with self._database.read() as connection:
            return list(connection.execute(statement).scalars())

    def span(self, project: str, run: str) -> tuple[int, int] | None:
        """The first and last step that the log holds of a run, or None."""
        statement = (
            select(func.min(t.frame_batch.c.step0), func.max(t.frame_batch.c.step1))
            .join(t.run, t.run.c.id == t.frame_batch.c.run_id)
            .where(t.run.c.project == project, t.run.c.run == run)
        )
        with self._database.read() as connection:
            low, high = connection.execute(statement).one()
        return None if low is None else (low, high)


def _entries(project: str, run: str, body: Any = t.frame_batch.c.body) -> Any:
    return (
        select(
            t.frame_batch.c.position,
            t.attempt.c.ordinal,
            t.stream.c.rank,
            t.frame_batch.c.shift_ns,
            t.frame_batch.c.received_ns,
            body,
            t.stream.c.shard,
            t.stream.c.shards,
            t.frame_batch.c.step0,
        )
        .join(t.stream, t.stream.c.id == t.frame_batch.c.stream_id)
        .join(t.attempt, t.attempt.c.id == t.stream.c.attempt_id)
        .join(t.run, t.run.c.id == t.frame_batch.c.run_id)
        .where(t.run.c.project == project, t.run.c.run == run)
    )


def _entry(row: Row[Any]) -> LogEntry:
    return LogEntry(**row._asdict())
