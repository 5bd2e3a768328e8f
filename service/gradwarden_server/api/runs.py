"""Runs as people read them: the list, one run, its events, and commands to its ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import TypeAdapter, ValidationError

from gradwarden_server.api import bodies, schemas
from gradwarden_server.api.deps import CREDENTIALS, Admin, Parts, PartsDep, Reader, RunId
from gradwarden_server.api.plain import plain, rfc3339
from gradwarden_server.api.problems import Problem, invalid
from gradwarden_server.api.ranges import First, InTime, Last, only_one
from gradwarden_server.diagnosis import coverage
from gradwarden_server.store.records import RunRecord

router = APIRouter(prefix="/v1", tags=["runs"], dependencies=CREDENTIALS)

Status = Literal["running", "finished", "failed", "cancelled", "preempted"]
_PLAIN = TypeAdapter(dict[str, Any])
"""Writes what was built: to validate a thousand runs first would cost as much again."""
Limit = Annotated[int, Query(ge=1, le=1000)]


@router.get("/runs", summary="Runs of the project, newest first", response_model=schemas.RunList)
def list_runs(
    who: Reader,
    parts: PartsDep,
    state: Annotated[str, Query(max_length=200, description="Statuses, comma-separated")] = "",
    q: Annotated[
        str, Query(max_length=200, description="Part of run, name, job, model, owner")
    ] = "",
    cursor: Annotated[str | None, Query(pattern=r"^\d{1,18}$")] = None,
    limit: Limit = 50,
) -> Response:
    """One page; ``next_cursor`` asks for the next. Above 200 runs ``spark`` is left empty."""
    states = one_of("state", state, get_args(Status))
    query = q.replace("\x00", "")
    page = parts.fleet.page(who.project, status=states, query=query, before=cursor, limit=limit)
    items = parts.summaries.lines(who.project, page.items, time.time_ns())
    body = _PLAIN.dump_json({"items": items, "next_cursor": page.next_cursor})
    return Response(body, media_type="application/json")


@router.get("/runs/{run}", summary="One run")
def get_run(run: RunId, who: Reader, parts: PartsDep) -> schemas.RunDetail:
    """Everything that the run's page shows, but for heatmap, series and events."""
    record = known_run(parts, who.project, run)
    listed = parts.fleet.one(who.project, run)
    if listed is None:  # deleted meanwhile
        raise _unknown(run)
    line = parts.summaries.lines(who.project, [listed], time.time_ns())[0]
    layout = parts.history.layers(who.project, run)
    streams = parts.runs.streams(who.project, run)
    newest = max((s.ordinal for s in streams), default=0)
    return schemas.RunDetail(
        **line,
        layers=[
            schemas.LayerFace(
                i=i,
                name=p.name,
                layer=p.layer,
                block=p.block,
                kind=p.kind,
                params=math.prod(p.shape),
                dtype=p.dtype,
            )
            for i, p in enumerate(layout.parameters if layout else ())
        ],
        backward=list(layout.backward) if layout else [],
        attempts=[
            schemas.AttemptFace.model_validate(a, from_attributes=True)
            for a in parts.runs.attempts(who.project, run)
        ],
        ranks=[
            schemas.RankFace(
                rank=s.rank,
                group=s.group,
                shard=s.shard,
                shards=s.shards,
                host=s.host,
                place=dict(s.place),
                last_step=s.last_step,
                last_seen_at=rfc3339(s.last_seen_ns),
                heartbeat_at=rfc3339(s.heartbeat_ns),
                ended=s.ended,
            )
            for s in streams
            if s.ordinal == newest
        ],
        steps=parts.log.span(who.project, run),
        coverage=[
            schemas.CoverageFace(
                alert=c.alert, state=c.state, detail=c.detail, concerns=coverage.concerns(c)
            )
            for c in parts.judge.coverage(who.project, run) or ()
        ],
        unjudged=parts.judge.unjudged(who.project, run),
        config=dict(record.config),
    )


@router.get("/runs/{run}/events", summary="What happened in a run, in time order")
def list_events(
    run: RunId,
    who: Reader,
    parts: PartsDep,
    times: InTime,
    first: First = None,
    last: Last = None,
) -> schemas.EventList:
    """The newest thousand within the steps, or the time, asked for."""
    known_run(parts, who.project, run)
    only_one({"from": first, "to": last}, times)
    return schemas.EventList(
        items=[
            schemas.EventFace(
                step=e.step,
                time_ns=e.time_ns,
                rank=e.rank,
                attempt=e.ordinal,
                kind=e.kind,
                text=describe(e.kind, e.data),
                data=plain(dict(e.data)),
            )
            for e in parts.runs.events(who.project, run, first, last, times.bounds)
        ]
    )


@router.post("/runs/{run}/commands", status_code=201, summary="Ask something of a rank")
async def issue_command(
    run: RunId, body: bodies.CommandBody, who: Admin, parts: PartsDep
) -> schemas.CommandAnswer:
    """It rides on the next answer to that rank, expires after ten minutes, and is audited.

    Arguments by kind: checksums and capture {steps}, speak {on}, schedule {every, early, preset},
    halt {reason}; pause and resume have none. A halt is done where the run's Guard allows it.
    """
    try:
        args = bodies.command_args(body.kind, body.args)
    except ValidationError as error:
        raise invalid("invalid-arguments", error.errors(), within=["args"]) from None
    if body.kind == "schedule" and not args:
        detail = "args: {}; give at least one of every, early, preset"
        raise Problem("invalid-arguments", detail, field="args")
    issued = await parts.written(
        parts.commands.issue(
            who.project,
            run,
            body.rank,
            body.kind,
            args,
            now_ns=time.time_ns(),
            actor=who.actor,
        )
    )
    if issued is None:
        raise _unknown(run)
    return schemas.CommandAnswer(id=issued)


def one_of(field: str, text: str, known: Collection[str]) -> tuple[str, ...]:
    """The words of a comma-separated filter, or the problem that one is not known."""
    words = tuple(filter(None, text.split(",")))
    if not set(words) <= set(known):
        detail = f"{field}: {text[:100]!r}; any of {', '.join(known)}, comma-separated"
        raise Problem("malformed", detail, field=field)
    return words


def known_run(parts: Parts, project: str, run: str) -> RunRecord:
    """The run, or the problem that there is none."""
    record = parts.runs.get(project, run)
    if record is None:
        raise _unknown(run)
    return record


def describe(kind: str, data: Mapping[str, Any]) -> str:
    """An event in words."""
    match kind, data:
        case _, {"text": str(text)}:
            words = text
        case "finish", {"status": status, "error": str(error)} if error:
            words = f"{status}: {error}"
        case "finish", {"status": status}:
            words = str(status)
        case "checkpoint", {"path": path, "ok": ok}:
            words = f"{path}" if ok else f"{path}: failed"
        case "lr", {"from": before, "to": after}:
            words = f"learning rate {before} -> {after}"
        case "mark", {"name": name, "value": value}:
            words = f"{name} = {value}"
        case (("skip" | "dropped"), {"reason": reason}):
            words = f"{data['frames']} frames: {reason}" if "frames" in data else str(reason)
        case "local_nonfinite", {"parameters": [*names]}:
            words = f"its own gradients were non-finite: {', '.join(map(str, names[:5]))}"
        case "phase", {"name": name, "seconds": seconds}:
            words = f"{name}: {seconds} s"
        case _:
            words = kind
    return str(plain(words))[:500]


def _unknown(run: str) -> Problem:
    return Problem("not-found", f"run: {run[:128]!r}; this project has no run of that name")
