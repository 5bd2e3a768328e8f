"""What the evaluator reads of many runs, a statement for them all.

On SQLite rows come out as one JSON document, since each row that the driver steps over lets go
of the interpreter and has to wait for it again behind every busy thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, Boolean, Connection, LargeBinary, Select, bindparam, func, select

from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database
from gradwarden_server.store.log.entries import LogEntry
from gradwarden_server.store.records import RunRecord

BATCHES = 64
"""Of one run at a time: a batch of a large model is some megabytes."""
_BATCHES_TOGETHER = 128
_RUNS_TOGETHER = 1000


@dataclass(frozen=True, slots=True)
class Due:
    """A run that the evaluator must look at: unread batches, or alive and watched by time."""

    row: int
    run: str
    position: int


@dataclass(frozen=True, slots=True)
class Sign:
    """When one rank of a run's newest attempt was last heard of, and how."""

    rank: int
    last_seen_ns: int
    last_step: int | None
    last_step_ns: int | None
    heartbeat_ns: int | None
    phase: str | None
    ended: bool
    host: str


@dataclass(frozen=True, slots=True)
class Watched:
    """A run as it is now; ``ordinal`` and ``started_ns`` are its newest attempt's, if any."""

    run: RunRecord
    ordinal: int | None
    started_ns: int
    signs: Sequence[Sign] = ()


class _Read:
    """A statement, and the same with all rows as one JSON document."""

    def __init__(self, statement: Select[Any]) -> None:
        self._plain = statement
        self._casts: list[tuple[int, Callable[[Any], Any]]] = []
        columns: list[Any] = []
        for at, column in enumerate(statement.subquery().c):
            if isinstance(column.type, LargeBinary):
                self._casts.append((at, bytes.fromhex))
                columns.append(func.hex(column))
            elif isinstance(column.type, JSON):
                columns.append(func.json(column))
            else:
                if isinstance(column.type, Boolean):
                    self._casts.append((at, bool))
                columns.append(column)
        self._packed = select(func.json_group_array(func.json_array(*columns)))

    def all(self, connection: Connection, asked: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """Every row."""
        if connection.dialect.name != "sqlite":
            return connection.execute(self._plain, asked).all()
        rows: list[list[Any]] = json.loads(connection.execute(self._packed, asked).scalar_one())
        for at, cast in self._casts:
            for row in rows:
                row[at] = cast(row[at])
        return rows

    def pages(
        self, connection: Connection, project: str, rows: Collection[int]
    ) -> Iterator[Sequence[Any]]:
        """Every row that concerns these runs of a project."""
        held = sorted(rows)
        for start in range(0, len(held), _RUNS_TOGETHER):
            page = held[start : start + _RUNS_TOGETHER]
            yield from self.all(connection, {"of_project": project, "rows": page})


_STORED = tuple(name for name in LogEntry.__dataclass_fields__ if name != "recalled")
_ROWS: Any = bindparam("rows", expanding=True)
_NEWEST = (
    select(func.max(t.attempt.c.ordinal))
    .where(t.attempt.c.run_id == t.run.c.id)
    .scalar_subquery()
    .correlate(t.run)
)
_DUE = _Read(
    select(t.run.c.id, t.run.c.run, t.run.c.position)
    .outerjoin(t.cursor, t.cursor.c.run_id == t.run.c.id)
    .where(
        t.run.c.project == bindparam("of_project"),
        t.run.c.deleted_ns.is_(None),
        (t.cursor.c.position.is_(None))
        | (t.cursor.c.position < t.run.c.position)
        | ((t.run.c.status == "running") & (t.run.c.last_seen_ns > bindparam("forsaken_ns")))
        | (t.run.c.last_seen_ns > bindparam("active_ns")),
    )
)
_RUNS = _Read(
    select(
        t.attempt.c.ordinal,
        t.attempt.c.started_ns.label("attempt_started_ns"),
        *(t.run.c[name] for name in RunRecord.__dataclass_fields__),
    )
    .outerjoin_from(
        t.run, t.attempt, (t.attempt.c.run_id == t.run.c.id) & (t.attempt.c.ordinal == _NEWEST)
    )
    .where(
        t.run.c.project == bindparam("of_project"),
        t.run.c.id.in_(_ROWS),
        t.run.c.deleted_ns.is_(None),
    )
)
_SIGNS = _Read(
    select(t.stream.c.run_id, *(t.stream.c[name] for name in Sign.__dataclass_fields__))
    .join_from(t.run, t.attempt, t.attempt.c.run_id == t.run.c.id)
    .join(t.stream, t.stream.c.attempt_id == t.attempt.c.id)
    .where(
        t.run.c.project == bindparam("of_project"),
        t.run.c.id.in_(_ROWS),
        t.attempt.c.ordinal == _NEWEST,
    )
    .order_by(t.stream.c.run_id, t.stream.c.rank)
)
_OF_ENTRY = {"ordinal": t.attempt.c.ordinal} | {
    name: t.stream.c[name] for name in ("rank", "group", "shard", "shards")
}
_FRESH = _Read(
    select(
        t.frame_batch.c.run_id,
        *(_OF_ENTRY[n] if n in _OF_ENTRY else t.frame_batch.c[n] for n in _STORED),
    )
    .join_from(t.cursor, t.frame_batch, t.frame_batch.c.run_id == t.cursor.c.run_id)
    .join(t.stream, t.stream.c.id == t.frame_batch.c.stream_id)
    .join(t.attempt, t.attempt.c.id == t.stream.c.attempt_id)
    .join(t.run, t.run.c.id == t.cursor.c.run_id)
    .where(
        t.run.c.project == bindparam("of_project"),
        t.cursor.c.run_id.in_(_ROWS),
        t.frame_batch.c.position > t.cursor.c.position,
        t.frame_batch.c.position <= t.cursor.c.position + BATCHES,
    )
    .order_by(t.frame_batch.c.run_id, t.frame_batch.c.position)
)


class WatchedRuns:
    """Every method takes the project first, and reads in short transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def due(self, project: str, active_since_ns: int, forsaken_ns: int = 0) -> list[Due]:
        """Runs with batches past their cursor, or active since ``active_since_ns``.

        A run that did not end stays due until nobody heard it since ``forsaken_ns``.
        """
        asked = {
            "of_project": project,
            "active_ns": active_since_ns,
            "forsaken_ns": forsaken_ns,
        }
        with self._database.read() as connection:
            return [Due(*row) for row in _DUE.all(connection, asked)]

    def heard(self, project: str, since_ns: int) -> list[tuple[str, int, bool, str]]:
        """Runs under way that were heard since a moment: when last, and whether they page.

        Each is its identifier, that time, the run's own wish to page and its environment.
        """
        run = t.run.c
        query = select(run.run, run.last_seen_ns, run.page, run.environment).where(
            run.project == project,
            run.status == "running",
            run.last_seen_ns >= since_ns,
            run.deleted_ns.is_(None),
        )
        with self._database.read() as connection:
            return [(row[0], row[1], row[2], row[3]) for row in connection.execute(query)]

    def runs(
        self, project: str, rows: Collection[int], signs_of: Collection[int]
    ) -> dict[int, Watched]:
        """Runs by row, those in ``signs_of`` with the signs of life of their ranks."""
        with self._database.read() as connection:
            signs: dict[int, list[Sign]] = {}
            for row, *values in _SIGNS.pages(connection, project, signs_of):
                sign = Sign(*values)
                signs.setdefault(row, []).append(sign)
            found = {}
            for ordinal, started_ns, *values in _RUNS.pages(connection, project, rows):
                run = RunRecord(*values)
                found[run.id] = Watched(run, ordinal, started_ns or 0, signs.get(run.id, ()))
            return found

    def fresh(self, project: str, behind: Mapping[int, int]) -> dict[int, list[LogEntry]]:
        """By row of a run, batches past its cursor that are in the log, at most ``BATCHES``.

        What is already compacted is left out, which shows as a gap in the positions.

        Args:
            project: Whose runs.
            behind: How many batches each run is behind.
        """
        found: dict[int, list[LogEntry]] = {}
        for rows in _together(behind):
            with self._database.read() as connection:
                for row, *values in _FRESH.pages(connection, project, rows):
                    found.setdefault(row, []).append(LogEntry(*values))
        return found


def _together(behind: Mapping[int, int]) -> Iterator[list[int]]:
    """Runs whose batches are read at once, so that they fit into memory."""
    rows: list[int] = []
    batches = 0
    for row, count in behind.items():
        rows.append(row)
        batches += min(count, BATCHES)
        if batches >= _BATCHES_TOGETHER:
            yield rows
            rows, batches = [], 0
    if rows:
        yield rows
