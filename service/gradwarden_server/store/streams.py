"""Streams in the making: one process announces itself as a rank of an attempt of a run."""

from __future__ import annotations

import time
from typing import Any, Protocol

from sqlalchemy import Connection, Row, and_, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from gradwarden_server.store import tables as t
from gradwarden_server.store.errors import RunAlreadyLive, RunDeleted
from gradwarden_server.store.records import LIVE_NS, Started, StartRequest

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


class Holder(Protocol):
    """The process that a stream belongs to."""

    rank: int
    nonce: str
    host: str
    pid: int
    last_seen_ns: int


def already_live(holder: Holder | Row[Any], run: str, now_ns: int) -> RunAlreadyLive:
    """The refusal of every other process that speaks for this stream."""
    seconds = max(0, now_ns - holder.last_seen_ns) / 1e9
    return RunAlreadyLive(run, holder.rank, holder.host, holder.pid, holder.nonce, seconds)


def start(connection: Connection, project: str, request: StartRequest, received_ns: int) -> Started:
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
        select(t.run.c.id, t.run.c.deleted_ns)
        .where(t.run.c.project == project, t.run.c.run == request.run)
        .with_for_update(key_share=True)
    )
    found = connection.execute(query).one_or_none()
    if found is not None:
        if found.deleted_ns is not None:
            raise RunDeleted(request.run)
        return int(found.id)
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
    return int(connection.execute(query).one().id)


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
            raise already_live(row, request.run, received_ns)
        if row is own and not request.takeover and not row.ended and row.seqs:
            # The same stream from two processes: their seqs would collide.
            raise already_live(row, request.run, received_ns)
        if row is not own:
            connection.execute(update(t.stream).where(t.stream.c.id == row.id).values(ended=True))
    values = {
        "nonce": request.nonce,
        "host": request.host,
        "pid": request.pid,
        "group": request.group,
        "shard": request.shard,
        "shards": request.shards,
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
