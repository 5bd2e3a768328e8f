"""The shadow period: whose pages are tickets, how often they would have paged, and its end."""

from __future__ import annotations

import time
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from gradwarden_server.alerting.promotion import Report, RuleReport
from gradwarden_server.api.deps import CREDENTIALS, Admin, PartsDep, Reader
from gradwarden_server.api.plain import rfc3339
from gradwarden_server.api.problems import Problem

router = APIRouter(prefix="/v1/shadow", tags=["alerts"], dependencies=CREDENTIALS)


class RuleShadowFace(BaseModel):
    """What becomes of the pages of one rule."""

    alert: str
    pages: bool = Field(description="False: they are delivered as tickets, would have paged")
    would_have_paged: int = Field(description="Alerts that were tickets and would have paged")
    promoted_at: str | None
    promoted_by: str | None


class ShadowFace(BaseModel):
    """A project's shadow period, and its rules one by one."""

    state: Literal["shadow", "live"]
    why: str
    days: float = Field(description="Since the project's first write")
    wanted_days: float
    finished_runs: int
    would_have_paged: int
    rules: list[RuleShadowFace]


class PromoteBody(BaseModel):
    """What is to page from now on."""

    model_config = ConfigDict(extra="forbid")

    alert: str | None = Field(None, max_length=128, description="One rule; null for the project")


@router.get("", summary="Whether pages wake people already")
def get_shadow(who: Reader, parts: PartsDep) -> ShadowFace:
    """In the first days of a project, pages are delivered as tickets and counted."""
    return _face(parts.shadows.report(who.project, time.time_ns()))


@router.post("/promote", summary="Let pages wake people from now on")
async def promote(body: PromoteBody, who: Admin, parts: PartsDep) -> ShadowFace:
    """Audited. Tickets that stand and would have paged become pages at once."""
    now_ns = time.time_ns()
    try:
        write = parts.shadows.promote(who.project, body.alert, now_ns, who.actor)
    except LookupError:
        raise Problem("not-found", f"alert: {body.alert!r}; no rule has that name") from None
    await parts.written(write)
    parts.judge.wake()
    return _face(await run_in_threadpool(parts.shadows.report, who.project, now_ns))


def _face(report: Report) -> ShadowFace:
    return ShadowFace(
        state="shadow" if report.period else "live",
        why=_why(report),
        days=report.progress.days,
        wanted_days=report.progress.wanted_days,
        finished_runs=report.progress.finished_runs,
        would_have_paged=sum(rule.would_have_paged for rule in report.rules),
        rules=[_rule(rule) for rule in report.rules],
    )


def _rule(rule: RuleReport) -> RuleShadowFace:
    by = rule.promoted
    return RuleShadowFace(
        alert=rule.alert,
        pages=rule.pages,
        would_have_paged=rule.would_have_paged,
        promoted_at=None if by is None else rfc3339(by.at_ns),
        promoted_by=None if by is None else by.actor,
    )


def _why(report: Report) -> str:
    if report.period:
        return f"{report.progress.words}; pages are tickets until then, or until they are promoted"
    if report.ended is not None:
        return f"promoted by {report.ended.actor} at {rfc3339(report.ended.at_ns)}"
    if report.progress.wanted_days <= 0:
        return "GRADWARDEN_SHADOW_DAYS is 0: there is no shadow period"
    return f"{report.progress.words}: the shadow period is over"
