"""What trainers send: starts, layouts, frames, heartbeats, and acks of commands."""

from __future__ import annotations

import json
import math
import time
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from gradwarden import wire
from gradwarden_server import logs
from gradwarden_server.api import bodies, schemas
from gradwarden_server.api.access import Principal
from gradwarden_server.api.deps import CREDENTIALS, Ingester, Parts, PartsDep
from gradwarden_server.api.plain import plain
from gradwarden_server.api.problems import Problem
from gradwarden_server.model import run_path
from gradwarden_server.store.records import Ack, Heartbeat, StartRequest
from gradwarden_server.telemetry import span

router = APIRouter(prefix="/v1", tags=["trainer"], dependencies=CREDENTIALS)

_FRAMES = wire.MEDIA_TYPE.partition(";")[0]
# Above this a body is worth a thread: it may inflate a thousandfold.
_INLINE_BYTES = 8 << 10
# What a hostile document can make plain code raise; a message is judged, never trusted.
_ABSURD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@router.post("/start", summary="Register one rank of one attempt of one run")
async def start(body: bodies.StartBody, who: Ingester, parts: PartsDep) -> schemas.StartAnswer:
    """Idempotent by (run, attempt, rank, nonce). 409 run-already-live names the holder."""
    logs.bind(run=body.run)
    request = StartRequest(**body.model_dump())
    now_ns = time.time_ns()
    started = await parts.written(parts.runs.start(who.project, request, now_ns))
    return schemas.StartAnswer(
        run=started.run,
        attempt=started.attempt,
        ordinal=started.ordinal,
        url=parts.settings.url + run_path(who.project, started.run),
        commands=await _open_commands(parts, who.project, body.run, body.rank),
    )


@router.post(
    "/layouts",
    summary="Say what the rows of a matrix mean",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    },
)
async def put_layout(request: Request, who: Ingester, parts: PartsDep) -> schemas.LayoutAnswer:
    """Once per run and layout; the same layout twice is one."""
    raw = await request.body()
    limits = _limits(parts)
    layout = await run_in_threadpool(lambda: wire.Layout.from_json(_json(raw), limits))
    digest = await parts.written(parts.runs.put_layout(who.project, layout))
    return schemas.LayoutAnswer(hash=digest)


@router.post(
    "/ingest",
    summary="Send frames",
    response_model_exclude_none=True,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                wire.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}},
                "application/json": {"schema": {"type": "object"}},
            },
        }
    },
)
async def ingest(request: Request, who: Ingester, parts: PartsDep) -> schemas.IngestAnswer:
    """Exactly once by (stream, seq); answered only after the commit is durable."""
    return await take_in(request, who, parts)


async def take_in(request: Request, who: Principal, parts: Parts) -> schemas.IngestAnswer:
    """Check one message and make it durable."""
    wait = parts.backlog()
    if wait is not None:
        raise Problem(
            "backlogged",
            "frames came faster than they can be compacted; nothing of this message is stored, "
            f"send it again in {math.ceil(wait)} s",
            {"Retry-After": str(math.ceil(wait))},
        )
    as_json = _check_media_type(request)
    raw = await request.body()
    if len(raw) > _INLINE_BYTES:
        message = await run_in_threadpool(_check, raw, as_json, _limits(parts))
    else:
        message = _check(raw, as_json, _limits(parts))
    header = message.header
    key, nonfinite = header.stream, _nonfinite(message)
    logs.bind(run=key.run)
    with (
        span("commit", run=key.run, frames=header.n),
        parts.telemetry.ingest_commit_seconds.time(),
    ):
        append = parts.frames.append(who.project, header, message.data, time.time_ns())
        if nonfinite or _lost(header):

            def hurry(kept: Future[Ack]) -> None:
                if _was_stored(kept):
                    parts.judge.hurry(who.project, key.run)

            append.add_done_callback(hurry)
        ack = await parts.written(append)
    parts.telemetry.ingest_frames.inc(ack.stored)
    if ack.stored:
        parts.telemetry.add_nonfinite(who.project, key.run, nonfinite)
    return schemas.IngestAnswer(
        stored=ack.stored,
        duplicate=ack.duplicate,
        batch_seconds=parts.pace.batch_seconds(header.n),
        commands=await _open_commands(parts, who.project, key.run, key.rank),
    )


@router.post("/heartbeat", summary="A sign of life between frames")
async def heartbeat(
    body: bodies.HeartbeatBody, who: Ingester, parts: PartsDep
) -> schemas.CommandsAnswer:
    """Every ten seconds; the answer carries open commands."""
    logs.bind(run=body.run)
    beat = Heartbeat(**body.model_dump())
    await parts.written(parts.runs.heartbeat(who.project, beat, time.time_ns()))
    return schemas.CommandsAnswer(
        commands=await _open_commands(parts, who.project, body.run, body.rank)
    )


@router.post("/commands/{command}/ack", status_code=204, summary="A command was carried out")
async def ack_command(
    command: int, body: bodies.CommandAckBody, who: Ingester, parts: PartsDep
) -> Response:
    """Twice is fine."""
    acked = parts.commands.ack(who.project, body.run, body.rank, command, time.time_ns())
    if not await parts.written(acked):
        raise Problem("not-found", f"no command {command} for rank {body.rank} of run {body.run}")
    return Response(status_code=204)


async def _open_commands(
    parts: Parts, project: str, run: str, rank: int
) -> list[schemas.CommandFace]:
    now_ns = time.time_ns()
    held = parts.commands.peek(project, run, rank, now_ns)
    if held is None:
        held = await run_in_threadpool(parts.commands.open, project, run, rank, now_ns)
    return [schemas.CommandFace(id=c.id, kind=c.kind, args=dict(c.args)) for c in held]


def _check_media_type(request: Request) -> bool:
    """Whether the body is the plain JSON form; refuses what is neither form."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise Problem(
            "unsupported-media-type",
            f"Content-Encoding: {encoding[:40]!r}; the payload is compressed already",
        )
    stated = request.headers.get("content-type", "")
    kind, _, rest = stated.partition(";")
    kind = kind.strip().lower()
    if kind == "application/json":
        return True
    if kind != _FRAMES:
        raise Problem(
            "unsupported-media-type",
            f"Content-Type: {stated[:80]!r}; send {wire.MEDIA_TYPE} or application/json",
        )
    parameters = dict(p.strip().partition("=")[::2] for p in rest.split(";") if p.strip())
    asked = parameters.get("version", str(wire.VERSION)).strip('"')
    if asked not in map(str, wire.READABLE):
        raise Problem(
            "unsupported-version",
            f"version: {asked[:20]!r}; this service reads up to {wire.VERSION}, upgrade it",
            field="version",
        )
    return False


def _check(raw: bytes, as_json: bool, limits: wire.Limits) -> wire.Message:
    """The message in its binary form, with events that any database and any page can hold."""
    try:
        if as_json:
            raw = wire.encode(wire.from_json(_json(raw), limits))
        message = wire.check(raw, limits)
        if any(plain(dict(e)) != e for events in message.header.events for e in events):
            message = wire.check(wire.encode(_cleaned(message.batch())), limits)
        return message
    except wire.WireError:
        raise
    except _ABSURD as error:
        raise Problem("malformed", f"body: {type(error).__name__}; send a wire message") from error


def _cleaned(batch: wire.Batch) -> wire.Batch:
    frames = [
        replace(frame, events=tuple(plain(dict(event)) for event in frame.events))
        for frame in batch.frames
    ]
    return replace(batch, frames=tuple(frames))


def _json(raw: bytes) -> Any:
    def refuse(name: str) -> float:
        raise ValueError(f"bare {name}; send non-finite numbers as text")

    try:
        return json.loads(raw, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        detail = f"body: {str(error)[:120]}; send JSON in UTF-8"
        raise Problem("malformed", detail, field="body") from None


def _nonfinite(message: wire.Message) -> int:
    """NaN and Inf values that a batch reports; a row that was not observed counts none."""
    count = 0
    for name in ("nan", "inf"):
        column = message.column(name)
        if column.count(0) < len(column):
            planes = np.frombuffer(column, dtype=np.uint8).reshape(4, -1)
            counts = np.ascontiguousarray(planes.T).view("<f4")
            count += int(counts[np.isfinite(counts) & (counts > 0)].sum(dtype=np.float64))
    return count


def _was_stored(append: Future[Ack]) -> bool:
    return not append.cancelled() and append.exception() is None and append.result().stored > 0


def _lost(header: wire.Header) -> bool:
    """Whether a loss is not finite, which the header says in words."""
    return any(isinstance(loss, str) for loss in header.scalars.get("loss", ()))


def _limits(parts: Parts) -> wire.Limits:
    return wire.Limits(payload_bytes=parts.settings.max_payload_bytes)
