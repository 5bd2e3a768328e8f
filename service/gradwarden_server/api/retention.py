"""What a project keeps and for how long, deletion of runs, and room given back."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from gradwarden_server.api.deps import CREDENTIALS, Admin, PartsDep, Reader, RunId
from gradwarden_server.api.problems import Problem
from gradwarden_server.store.keeping.retention import Policy
from gradwarden_server.store.keeping.vacuum import NotOnline

router = APIRouter(prefix="/v1", tags=["retention"], dependencies=CREDENTIALS)

Days = Annotated[float | None, Field(gt=0, le=36500, allow_inf_nan=False)]
_VACUUM_SECONDS = 5.0


class RetentionFace(BaseModel):
    """Days for which a project keeps what; null is for ever."""

    model_config = ConfigDict(extra="forbid")

    raw_days: Days = Field(description="Every value of every layer")
    rollup_days: Days = Field(description="Roll-ups over 16 steps; wider ones stay with the run")
    run_days: Days = Field(description="Runs with all that they have")


class VacuumAnswer(BaseModel):
    """The database after a few seconds of work; ask again while ``free_bytes`` is not 0."""

    size_bytes: int
    free_bytes: int


@router.get("/retention", summary="What the project keeps, and for how long")
def get_retention(who: Reader, parts: PartsDep) -> RetentionFace:
    """The defaults where nobody set anything."""
    return RetentionFace(**asdict(parts.retention.get(who.project)))


@router.put("/retention", summary="Say what the project keeps")
async def put_retention(body: RetentionFace, who: Admin, parts: PartsDep) -> RetentionFace:
    """Audited. What is older than this goes for good, beginning now."""
    try:
        policy = Policy(**body.model_dump())
    except ValueError as error:
        field = str(error).partition(":")[0]
        raise Problem("invalid-arguments", str(error), field=field) from None
    await parts.written(parts.retention.put(who.project, policy, time.time_ns(), who.actor))
    parts.janitor.wake()
    return body


@router.delete("/runs/{run}", status_code=204, summary="Delete a run with all that it has")
async def delete_run(run: RunId, who: Admin, parts: PartsDep) -> Response:
    """Nobody sees it from now on; its alerts are resolved, and its trainer gets run-deleted.

    Audited. The rows go within the next minutes, and with the last of them its name is free
    again; if its trainer still lives, a day later.
    """
    now_ns = time.time_ns()
    if not await parts.written(parts.removal.delete(who.project, run, now_ns, who.actor)):
        raise Problem("not-found", f"run: {run[:128]!r}; this project has no run of that name")
    parts.judge.wake()
    parts.janitor.wake()
    return Response(status_code=204)


@router.post("/admin/vacuum", summary="Give the room of deleted rows back to the disk")
def vacuum(who: Admin, parts: PartsDep) -> VacuumAnswer:
    """Works for a few seconds in small writes, while ingest goes on."""
    try:
        room = parts.janitor.vacuum(_VACUUM_SECONDS)
    except NotOnline as error:
        raise Problem("not-online", str(error)) from None
    return VacuumAnswer(size_bytes=room.size, free_bytes=room.free)
