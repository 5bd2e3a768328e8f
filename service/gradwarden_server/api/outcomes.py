"""How a run ended, where a person knows better than its trainer."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from gradwarden_server.api.deps import CREDENTIALS, Admin, PartsDep, Reader, RunId
from gradwarden_server.api.plain import rfc3339
from gradwarden_server.api.problems import Problem
from gradwarden_server.api.runs import known_run
from gradwarden_server.store.outcomes import Settled

router = APIRouter(prefix="/v1/runs", tags=["runs"], dependencies=CREDENTIALS)


class OutcomeBody(BaseModel):
    """A person's word."""

    model_config = ConfigDict(extra="forbid")

    outcome: Literal["good", "bad"]
    reason: Annotated[str, Field(max_length=200)] = ""


class OutcomeFace(BaseModel):
    """How a run counts for the objective on training success."""

    outcome: Literal["good", "bad", "not counted", "open"]
    reason: str
    ended_at: str | None
    marked_by: str | None


@router.get("/{run}/outcome", summary="How a run ended")
def get_outcome(run: RunId, who: Reader, parts: PartsDep) -> OutcomeFace:
    """``open`` while it may still go on."""
    known_run(parts, who.project, run)
    return _face(parts.outcomes.of(who.project, run))


@router.post("/{run}/outcome", summary="Say how a run ended")
async def mark(run: RunId, body: OutcomeBody, who: Admin, parts: PartsDep) -> OutcomeFace:
    """It holds from now on, whatever the trainer says later. Audited."""
    reason = body.reason or f"marked {body.outcome}"
    good = body.outcome == "good"
    write = parts.outcomes.mark(who.project, run, good, reason, time.time_ns(), who.actor)
    if not await parts.written(write):
        raise Problem("not-found", f"run: {run[:128]!r}; this project has no run of that name")
    return _face(await run_in_threadpool(parts.outcomes.of, who.project, run))


def _face(settled: Settled | None) -> OutcomeFace:
    if settled is None:
        return OutcomeFace(outcome="open", reason="", ended_at=None, marked_by=None)
    words: dict[bool | None, Literal["good", "bad", "not counted"]] = {
        True: "good",
        False: "bad",
        None: "not counted",
    }
    return OutcomeFace(
        outcome=words[settled.good],
        reason=settled.reason,
        ended_at=rfc3339(settled.ended_ns),
        marked_by=settled.actor if settled.marked else None,
    )
