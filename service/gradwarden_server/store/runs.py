"""Runs, attempts, streams and layouts: who is training, where, and what rows mean."""

from __future__ import annotations

import threading
from collections.abc import Collection
from concurrent.futures import Future
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, select

from gradwarden import wire
from gradwarden_server.store import streams
from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database
from gradwarden_server.store.log import arrivals
from gradwarden_server.store.log.arrivals import Arrival, Beat, Start
from gradwarden_server.store.records import (
    AttemptRecord,
    EventRecord,
    Heartbeat,
    RunRecord,
    Started,
    StartRequest,
    StreamRecord,
)

_PARAMETERS_KEPT = 500_000
"""Of all layouts in memory together: some hundred megabytes, whoever sends how many."""

# The evaluator asks these of every live run, every second, so they are put together once.
_MINE = (
    t.run.c.project == bindparam("of_project"),
    t.run.c.run == bindparam("of_run"),
    t.run.c.deleted_ns.is_(None),
)
_RUN = select(t.run).where(*_MINE)
_ATTEMPTS = (
    select(
        t.attempt,
        select(func.max(t.stream.c.last_step))
        .where(t.stream.c.attempt_id == t.attempt.c.id)
        .scalar_subquery()
        .label("last_step"),
    )
    .join(t.run, t.run.c.id == t.attempt.c.run_id)
    .where(*_MINE)
    .order_by(t.attempt.c.ordinal)
)
_STREAMS = (
    select(
        *(
            t.attempt.c.ordinal if name == "ordinal" else t.stream.c[name]
            for name in StreamRecord.__dataclass_fields__
        )
    )
    .join_from(t.stream, t.attempt, t.attempt.c.id == t.stream.c.attempt_id)
    .join(t.run, t.run.c.id == t.stream.c.run_id)
    .where(*_MINE)
    .order_by(t.attempt.c.ordinal, t.stream.c.rank)
)


class RunStore:
    """Every method takes the project first, so that isolation is structural."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # A layout is named by its content, so a copy never goes stale.
        self._layouts: dict[tuple[str, str], wire.Layout] = {}
        self._kept = 0
        self._lock = threading.Lock()

    def start(self, project: str, request: StartRequest, received_ns: int) -> Future[Started]:
        """Register a stream; idempotent by (run, attempt, rank, nonce).

        The future raises RunAlreadyLive when another live process holds the same rank.
        """
        arrival: Arrival = Start(project, request, received_ns)
        return self._database.write_together(arrivals.take, arrival, key=arrivals.KEY)

    def heartbeat(self, project: str, beat: Heartbeat, received_ns: int) -> Future[None]:
        """Note a sign of life; the future raises UnknownStream or RunAlreadyLive."""
        arrival: Arrival = Beat(project, beat, received_ns)
        return self._database.write_together(arrivals.take, arrival, key=arrivals.KEY)

    def put_layout(self, project: str, layout: wire.Layout) -> Future[str]:
        """Keep a layout under its hash; the same layout twice is one row."""

        def job(connection: Connection) -> str:
            streams.ensure_project(connection, project)
            row = {"project": project, "hash": layout.hash, "body": layout.to_json()}
            connection.execute(streams.insert_or_ignore(connection, t.layout).values(row))
            return layout.hash

        return self._database.write(job, key=f"layout {layout.hash}")

    def layout(self, project: str, digest: str) -> wire.Layout | None:
        """The layout of that hash, or None; frames without a matrix name none."""
        if not digest:
            return None
        known = self._layouts.get((project, digest))
        if known is not None:
            return known
        query = select(t.layout.c.body).where(
            t.layout.c.project == project, t.layout.c.hash == digest
        )
        with self._database.read() as connection:
            body = connection.execute(query).scalar_one_or_none()
        if body is None:
            return None
        layout = wire.Layout.from_json(body)
        with self._lock:
            if (project, digest) not in self._layouts:
                self._layouts[project, digest] = layout
                self._kept += len(layout.parameters)
            while self._kept > _PARAMETERS_KEPT:
                oldest = self._layouts.pop(next(iter(self._layouts)))
                self._kept -= len(oldest.parameters)
        return layout

    def get(self, project: str, run: str) -> RunRecord | None:
        """One run by its identifier, or None."""
        with self._database.read() as connection:
            row = connection.execute(_RUN, {"of_project": project, "of_run": run}).one_or_none()
        return None if row is None else record(row)

    def attempts(self, project: str, run: str) -> list[AttemptRecord]:
        """The attempts of a run in order, with what each later one superseded."""
        with self._database.read() as connection:
            rows = connection.execute(_ATTEMPTS, {"of_project": project, "of_run": run}).all()
        records: list[AttemptRecord] = []
        redone: int | None = None
        for row in reversed(rows):
            superseded = (
                redone - 1
                if redone is not None and row.last_step is not None and row.last_step >= redone
                else None
            )
            records.append(
                AttemptRecord(
                    ordinal=row.ordinal,
                    attempt=row.attempt,
                    parent=row.parent,
                    status=row.status,
                    first_step=row.first_step,
                    last_step=row.last_step,
                    started_ns=row.started_ns,
                    ended_ns=row.ended_ns,
                    superseded_after=superseded,
                )
            )
            redone = row.first_step if redone is None else min(redone, row.first_step)
        return records[::-1]

    def streams(self, project: str, run: str) -> list[StreamRecord]:
        """Every rank of every attempt, by attempt and rank."""
        key = {"of_project": project, "of_run": run}
        with self._database.read() as connection:
            rows = connection.execute(_STREAMS, key).all()
        return [StreamRecord(*row) for row in rows]

    def events(
        self,
        project: str,
        run: str,
        first: int | None = None,
        last: int | None = None,
        times_ns: tuple[int, int] | None = None,
        limit: int = 1000,
        kinds: Collection[str] = (),
    ) -> list[EventRecord]:
        """The newest ``limit`` events of a run within steps [first, last], in time order, and
        within [t0, t1] of series time; of these kinds, or of all.
        """
        statement = (
            select(t.event, t.attempt.c.ordinal)
            .join(t.attempt, t.attempt.c.id == t.event.c.attempt_id)
            .join(t.run, t.run.c.id == t.event.c.run_id)
            .where(t.run.c.project == project, t.run.c.run == run, t.run.c.deleted_ns.is_(None))
        )
        if first is not None:
            statement = statement.where(t.event.c.step >= first)
        if last is not None:
            statement = statement.where(t.event.c.step <= last)
        if times_ns is not None:
            statement = statement.where(t.event.c.time_ns.between(*times_ns))
        if kinds:
            statement = statement.where(t.event.c.kind.in_(kinds))
        statement = statement.order_by(t.event.c.time_ns.desc(), t.event.c.id.desc()).limit(limit)
        with self._database.read() as connection:
            rows = connection.execute(statement).mappings().all()
        names = EventRecord.__dataclass_fields__
        return [EventRecord(**{name: row[name] for name in names}) for row in reversed(rows)]

    def projects(self) -> list[str]:
        """Every project that ever wrote."""
        with self._database.read() as connection:
            return list(
                connection.execute(select(t.project.c.name).order_by(t.project.c.name)).scalars()
            )


def record(row: Row[Any]) -> RunRecord:
    """The record of a row of the table of runs."""
    return RunRecord(**{name: getattr(row, name) for name in RunRecord.__dataclass_fields__})
