"""Runs, attempts, streams and layouts: who is training, where, and what rows mean."""

from __future__ import annotations

import time
from collections.abc import Collection
from concurrent.futures import Future
from typing import Any

from sqlalchemy import Connection, Row, and_, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from gradwarden import wire
from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database
from gradwarden_server.store.errors import RunAlreadyLive, UnknownStream
from gradwarden_server.store.records import (
    LIVE_NS,
    AttemptRecord,
    EventRecord,
    Heartbeat,
    RunPage,
    RunRecord,
    Started,
    StartRequest,
    StreamRecord,
)

_CLOCK_WINDOW_NS = 600 * 1_000_000_000
_FACTS = (
    "name",
    "training_job",
    "model",
    "dataset",
    "cluster",
    "queue",
    "owner",
    "team",
    "environment",
    "git_commit",
    "cost_per_hour",
    "target_loss",
)


class RunStore:
    """Every method takes the project first, so that isolation is structural."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def start(self, project: str, request: StartRequest, received_ns: int) -> Future[Started]:
        """Register a stream; idempotent by (run, attempt, rank, nonce).

        The future raises RunAlreadyLive when another live process holds the same rank.
        """
        return self._database.write(
            lambda connection: _start(connection, project, request, received_ns), key=request.run
        )

    def heartbeat(self, project: str, beat: Heartbeat, received_ns: int) -> Future[None]:
        """Note a sign of life; the future raises UnknownStream or RunAlreadyLive."""
        return self._database.write(
            lambda connection: _heartbeat(connection, project, beat, received_ns), key=beat.run
        )

    def put_layout(self, project: str, layout: wire.Layout) -> Future[str]:
        """Keep a layout under its hash; the same layout twice is one row."""

        def job(connection: Connection) -> str:
            ensure_project(connection, project)
            row = {"project": project, "hash": layout.hash, "body": layout.to_json()}
            connection.execute(insert_or_ignore(connection, t.layout).values(row))
            return layout.hash

        return self._database.write(job)

    def layout(self, project: str, digest: str) -> wire.Layout | None:
        """The layout of that hash, or None."""
        query = select(t.layout.c.body).where(
            t.layout.c.project == project, t.layout.c.hash == digest
        )
        with self._database.read() as connection:
            body = connection.execute(query).scalar_one_or_none()
        return None if body is None else wire.Layout.from_json(body)

    def get(self, project: str, run: str) -> RunRecord | None:
        """One run by its identifier, or None."""
        statement = select(t.run).where(t.run.c.project == project, t.run.c.run == run)
        with self._database.read() as connection:
            row = connection.execute(statement).one_or_none()
        return None if row is None else _run(row)

    def attempts(self, project: str, run: str) -> list[AttemptRecord]:
        """The attempts of a run in order, with what each later one superseded."""
        last_step = (
            select(t.stream.c.attempt_id, func.max(t.stream.c.last_step).label("last_step"))
            .group_by(t.stream.c.attempt_id)
            .subquery()
        )
        statement = (
            select(t.attempt, last_step.c.last_step)
            .join(t.run, t.run.c.id == t.attempt.c.run_id)
            .outerjoin(last_step, last_step.c.attempt_id == t.attempt.c.id)
            .where(t.run.c.project == project, t.run.c.run == run)
            .order_by(t.attempt.c.ordinal)
        )
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
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
        statement = (
            select(t.stream, t.attempt.c.ordinal)
            .join(t.attempt, t.attempt.c.id == t.stream.c.attempt_id)
            .join(t.run, t.run.c.id == t.stream.c.run_id)
            .where(t.run.c.project == project, t.run.c.run == run)
            .order_by(t.attempt.c.ordinal, t.stream.c.rank)
        )
        with self._database.read() as connection:
            rows = connection.execute(statement).mappings().all()
        names = StreamRecord.__dataclass_fields__
        return [StreamRecord(**{name: row[name] for name in names}) for row in rows]

    def events(
        self,
        project: str,
        run: str,
        first: int | None = None,
        last: int | None = None,
        limit: int = 1000,
    ) -> list[EventRecord]:
        """The newest ``limit`` events of a run within steps [first, last], in time order."""
        statement = (
            select(t.event, t.attempt.c.ordinal)
            .join(t.attempt, t.attempt.c.id == t.event.c.attempt_id)
            .join(t.run, t.run.c.id == t.event.c.run_id)
            .where(t.run.c.project == project, t.run.c.run == run)
        )
        if first is not None:
            statement = statement.where(t.event.c.step >= first)
        if last is not None:
            statement = statement.where(t.event.c.step <= last)
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

    def list(
        self,
        project: str,
        *,
        status: Collection[str] = (),
        query: str = "",
        before: str | None = None,
        limit: int = 50,
    ) -> RunPage:
        """Runs, newest first; ``query`` matches run, name, job, model or owner in part."""
        statement = select(t.run).where(t.run.c.project == project)
        if status:
            statement = statement.where(t.run.c.status.in_(status))
        if query:
            columns = (
                t.run.c.run,
                t.run.c.name,
                t.run.c.training_job,
                t.run.c.model,
                t.run.c.owner,
            )
            statement = statement.where(
                or_(*(column.icontains(query, autoescape=True) for column in columns))
            )
        if before is not None:
            statement = statement.where(t.run.c.id < int(before))
        statement = statement.order_by(t.run.c.id.desc()).limit(limit + 1)
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        items = [_run(row) for row in rows[:limit]]
        return RunPage(items, str(items[-1].id) if len(rows) > limit else None)


def insert_or_ignore(connection: Connection, table: Any) -> Any:
    """An INSERT that leaves an existing row alone, in the dialect at hand."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


def ensure_project(connection: Connection, project: str) -> None:
    """Make the project's row if this is its first write."""
    connection.execute(
        insert_or_ignore(connection, t.project).values(name=project, created_ns=time.time_ns())
    )


def find_stream(
    connection: Connection, project: str, run: str, attempt: str, rank: int
) -> Row[Any]:
    """The stream's row with its run's, the run's row locked.

    Raises:
        UnknownStream: there is none.
    """
    statement = (
        select(
            t.stream,
            t.attempt.c.ordinal,
            t.attempt.c.attempt,
            t.run.c.position,
            t.run.c.status.label("run_status"),
        )
        .join(t.attempt, t.attempt.c.id == t.stream.c.attempt_id)
        .join(t.run, t.run.c.id == t.stream.c.run_id)
        .where(
            t.run.c.project == project,
            t.run.c.run == run,
            t.attempt.c.attempt == attempt,
            t.stream.c.rank == rank,
        )
        .with_for_update(of=t.run)
    )
    row = connection.execute(statement).one_or_none()
    if row is None:
        raise UnknownStream(run, attempt, rank)
    return row


def check_holder(row: Row[Any], run: str, nonce: str, now_ns: int) -> None:
    """Refuse a process that is not the one which started this stream.

    Raises:
        RunAlreadyLive: another nonce holds it.
    """
    if row.nonce != nonce:
        raise _already_live(row, run, now_ns)


def _already_live(row: Row[Any], run: str, now_ns: int) -> RunAlreadyLive:
    seconds = max(0, now_ns - row.last_seen_ns) / 1e9
    return RunAlreadyLive(run, row.rank, row.host, row.pid, row.nonce, seconds)


def _start(
    connection: Connection, project: str, request: StartRequest, received_ns: int
) -> Started:
    ensure_project(connection, project)
    run_id = _ensure_run(connection, project, request, received_ns)
    attempt_id, ordinal, newest = _ensure_attempt(connection, run_id, request, received_ns)
    _ensure_stream(connection, run_id, attempt_id, request, received_ns)
    facts = {n: v for n in _FACTS if (v := getattr(request, n)) is not None}
    if newest and facts:
        connection.execute(update(t.run).where(t.run.c.id == run_id).values(facts))
    return Started(request.run, request.attempt, ordinal)


def _ensure_run(
    connection: Connection, project: str, request: StartRequest, received_ns: int
) -> int:
    query = (
        select(t.run.c.id)
        .where(t.run.c.project == project, t.run.c.run == request.run)
        .with_for_update()
    )
    found = connection.execute(query).scalar_one_or_none()
    if found is not None:
        return int(found)
    values = {
        **{name: getattr(request, name) for name in _FACTS},
        "project": project,
        "run": request.run,
        "name": request.name or request.run,
        "environment": request.environment or "dev",
        "config": dict(request.config),
        "world_size": request.world_size,
        "page": request.page,
        "status": "running",
        "started_ns": request.started_ns or received_ns,
        "last_seen_ns": received_ns,
        "position": 0,
    }
    connection.execute(insert_or_ignore(connection, t.run).values(values))
    return int(connection.execute(query).scalar_one())


def _ensure_attempt(
    connection: Connection, run_id: int, request: StartRequest, received_ns: int
) -> tuple[int, int, bool]:
    """The attempt's row number and ordinal, and whether it is this run's newest."""
    rows = connection.execute(
        select(t.attempt).where(t.attempt.c.run_id == run_id).order_by(t.attempt.c.ordinal)
    ).all()
    for row in rows:
        if row.attempt == request.attempt:
            return row.id, row.ordinal, row.ordinal == rows[-1].ordinal
    started_ns = request.started_ns or received_ns
    # A spool from before the newest attempt is history: it must not reopen an ended run.
    newest = all(row.started_ns <= started_ns for row in rows)
    ordinal = len(rows) + 1
    attempt_id = connection.execute(
        insert(t.attempt)
        .values(
            run_id=run_id,
            attempt=request.attempt,
            ordinal=ordinal,
            parent=request.parent or (rows[-1].attempt if rows else None),
            first_step=request.first_step,
            started_ns=started_ns,
            status="running",
        )
        .returning(t.attempt.c.id)
    ).scalar_one()
    if newest:
        connection.execute(
            update(t.run)
            .where(t.run.c.id == run_id)
            .values(status="running", ended_ns=None, world_size=request.world_size)
        )
    return int(attempt_id), ordinal, newest


def _ensure_stream(
    connection: Connection, run_id: int, attempt_id: int, request: StartRequest, received_ns: int
) -> None:
    holders = connection.execute(
        select(t.stream).where(
            t.stream.c.run_id == run_id,
            t.stream.c.rank == request.rank,
            or_(
                t.stream.c.attempt_id == attempt_id,
                and_(
                    t.stream.c.ended.is_(False),
                    # Only a heartbeat shows a process that lives now.
                    t.stream.c.heartbeat_ns > received_ns - LIVE_NS,
                ),
            ),
        )
    ).all()
    own = next((row for row in holders if row.attempt_id == attempt_id), None)
    for row in holders:
        if row.nonce == request.nonce:
            continue
        live = not row.ended and (row.heartbeat_ns or 0) > received_ns - LIVE_NS
        if live and not request.takeover:
            raise _already_live(row, request.run, received_ns)
        if row is own and not request.takeover and not row.ended and row.seqs:
            # The same stream from two processes: their seqs would collide.
            raise _already_live(row, request.run, received_ns)
        if row is not own:
            connection.execute(update(t.stream).where(t.stream.c.id == row.id).values(ended=True))
    values = {
        "nonce": request.nonce,
        "host": request.host,
        "pid": request.pid,
        "group": request.group,
        "place": dict(request.place),
        "last_seen_ns": received_ns,
    }
    if own is not None:
        connection.execute(update(t.stream).where(t.stream.c.id == own.id).values(values))
        return
    connection.execute(
        insert(t.stream).values(
            run_id=run_id,
            attempt_id=attempt_id,
            rank=request.rank,
            seqs=[],
            ended=False,
            **values,
        )
    )


def _heartbeat(connection: Connection, project: str, beat: Heartbeat, received_ns: int) -> None:
    row = find_stream(connection, project, beat.run, beat.attempt, beat.rank)
    check_holder(row, beat.run, beat.nonce, received_ns)
    values: dict[str, Any] = {
        "last_seen_ns": received_ns,
        "heartbeat_ns": received_ns,
        "phase": beat.phase,
        "clock": _windowed_minimum(row.clock, received_ns - beat.sent_ns, received_ns),
    }
    if beat.step is not None:
        values["last_step"] = max(beat.step, row.last_step or 0)
    connection.execute(update(t.stream).where(t.stream.c.id == row.id).values(values))
    connection.execute(
        update(t.run).where(t.run.c.id == row.run_id).values(last_seen_ns=received_ns)
    )


def _windowed_minimum(
    clock: dict[str, int | None] | None, sample: int, now_ns: int
) -> dict[str, int | None]:
    """The least of received minus sent over the current and the previous ten minutes."""
    if clock is None:
        return {"since": now_ns, "current": sample, "previous": None}
    since, current = clock["since"] or now_ns, clock["current"]
    if now_ns - since > _CLOCK_WINDOW_NS:
        return {"since": now_ns, "current": sample, "previous": current}
    return {**clock, "current": sample if current is None else min(current, sample)}


def _run(row: Row[Any]) -> RunRecord:
    return RunRecord(**{name: getattr(row, name) for name in RunRecord.__dataclass_fields__})
