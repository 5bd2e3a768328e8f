"""Maintenance windows: planned work, once or every week, during which messages wait."""

from __future__ import annotations

import time
from datetime import datetime
from datetime import time as TimeOfDay
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from gradwarden_server.api.deps import CREDENTIALS, Admin, PartsDep, Reader
from gradwarden_server.api.plain import rfc3339
from gradwarden_server.api.problems import Problem
from gradwarden_server.api.silences import (
    MatcherTexts,
    check_scope,
    check_span,
    nanoseconds,
    parsed,
)
from gradwarden_server.model import Maintenance
from gradwarden_server.weekly import DAYS, LONGEST_SECONDS, Span, Weekly

router = APIRouter(prefix="/v1/maintenance", tags=["alerts"], dependencies=CREDENTIALS)

_FURTHEST_NS = 3660 * 86_400 * 1_000_000_000

Number = Annotated[int, Path(ge=1, le=2**62)]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
State = Literal["scheduled", "active", "ended"]


class WeeklyBody(BaseModel):
    """When it comes back: a time of day on days of the week, by the clocks of a time zone."""

    model_config = ConfigDict(extra="forbid")

    days: Annotated[list[Day], Field(min_length=1, max_length=7)]
    at: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$", description="Such as 02:00")]
    duration_seconds: Annotated[int, Field(ge=60, le=LONGEST_SECONDS)]
    time_zone: Annotated[str, Field(min_length=1, max_length=64)] = "UTC"


class MaintenanceBody(BaseModel):
    """What is not to be heard while work goes on, once or every week."""

    model_config = ConfigDict(extra="forbid")

    matchers: MatcherTexts
    comment: Annotated[str, Field(min_length=1, max_length=4096)]
    starts_at: datetime | None = Field(None, description="Default: now")
    ends_at: datetime | None = Field(None, description="Of a weekly one: none after this")
    duration_seconds: float | None = Field(
        None, gt=0, description="In place of ends_at, where it comes once"
    )
    weekly: WeeklyBody | None = None


class WindowFace(BaseModel):
    """One window, in UTC."""

    starts_at: str | None
    ends_at: str | None


class MaintenanceFace(BaseModel):
    """One planned work."""

    id: int
    state: State
    matchers: list[str]
    starts_at: str | None
    ends_at: str | None
    weekly: WeeklyBody | None
    open: WindowFace | None = Field(description="The window that is open now")
    next: WindowFace | None = Field(description="The next one to open")
    author: str
    comment: str


class MaintenanceList(BaseModel):
    """Planned work, the newest first."""

    items: list[MaintenanceFace]


@router.get("", summary="Maintenance windows of the project")
def list_maintenance(
    who: Reader, parts: PartsDep, state: Annotated[State | None, Query()] = None
) -> MaintenanceList:
    """The newest first; those that are over stay readable."""
    now_ns = time.time_ns()
    faces = [_face(one, now_ns) for one in parts.maintenance.list(who.project)]
    return MaintenanceList(items=[one for one in faces if state in (None, one.state)])


@router.get("/{number}", summary="One maintenance window")
def get_maintenance(number: Number, who: Reader, parts: PartsDep) -> MaintenanceFace:
    """Also one that is over."""
    found = parts.maintenance.get(who.project, number)
    if found is None:
        raise _unknown(number)
    return _face(found, time.time_ns())


@router.post("", summary="Plan work during which messages wait", status_code=201)
async def add_maintenance(body: MaintenanceBody, who: Admin, parts: PartsDep) -> MaintenanceFace:
    """Alerts fire on, and are told when a window closes, if they still do. Audited."""
    now_ns = time.time_ns()
    starts_ns = now_ns if body.starts_at is None else nanoseconds(body.starts_at)
    ends_ns = None if body.ends_at is None else nanoseconds(body.ends_at)
    if starts_ns > now_ns + _FURTHEST_NS:
        what = f"starts_at: {rfc3339(starts_ns)} is more than ten years ahead"
        raise Problem("malformed", what, field="starts_at")
    weekly = None
    if body.weekly is None:
        if (body.ends_at is None) == (body.duration_seconds is None):
            raise Problem(
                "malformed", "ends_at: give it, duration_seconds or weekly", field="ends_at"
            )
        if body.duration_seconds is not None:
            ends_ns = starts_ns + round(body.duration_seconds * 1e9)
        check_span(starts_ns, ends_ns or 0, now_ns)
    else:
        if body.duration_seconds is not None:
            what = "duration_seconds: of one that comes every week it is said in weekly"
            raise Problem("malformed", what, field="duration_seconds")
        if ends_ns is not None and ends_ns <= max(starts_ns, now_ns):
            what = f"ends_at: {rfc3339(ends_ns)} is over before it begins"
            raise Problem("malformed", what, field="ends_at")
        weekly = await run_in_threadpool(_weekly, body.weekly)
    wanted = parsed(body.matchers)
    check_scope(wanted)
    number = await parts.written(
        parts.maintenance.add(
            who.project, wanted, starts_ns, ends_ns, weekly, who.actor, body.comment, now_ns
        )
    )
    parts.judge.wake()
    return await run_in_threadpool(get_maintenance, number, who, parts)


@router.delete("/{number}", summary="End planned work for good")
async def end_maintenance(number: Number, who: Admin, parts: PartsDep) -> MaintenanceFace:
    """It stays readable. Alerts that it held back and that still fire are told. Audited."""
    await parts.written(parts.maintenance.end(who.project, number, who.actor, time.time_ns()))
    parts.judge.wake()
    return await run_in_threadpool(get_maintenance, number, who, parts)


def _weekly(body: WeeklyBody) -> Weekly:
    try:
        ZoneInfo(body.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        what = f"weekly.time_zone: {body.time_zone!r} is not known here; such as Europe/Berlin, UTC"
        raise Problem("malformed", what, field="weekly.time_zone") from None
    days = frozenset(DAYS.index(day) for day in body.days)
    at = TimeOfDay.fromisoformat(body.at)
    return Weekly(days, at, body.duration_seconds, body.time_zone)


def _face(one: Maintenance, now_ns: int) -> MaintenanceFace:
    weekly = None
    if one.weekly is not None:
        weekly = WeeklyBody.model_validate(
            {
                "days": [DAYS[day] for day in sorted(one.weekly.days)],
                "at": f"{one.weekly.at:%H:%M}",
                "duration_seconds": one.weekly.seconds,
                "time_zone": one.weekly.zone,
            }
        )
    return MaintenanceFace(
        id=one.id,
        state=one.state(now_ns),
        matchers=[str(matcher) for matcher in one.matchers],
        starts_at=rfc3339(one.starts_ns),
        ends_at=rfc3339(one.ended_ns or one.ends_ns),
        weekly=weekly,
        open=_window(one.window(now_ns)),
        next=_window(one.next_window(now_ns)),
        author=one.author,
        comment=one.comment,
    )


def _window(span: Span | None) -> WindowFace | None:
    if span is None:
        return None
    return WindowFace(starts_at=rfc3339(span[0]), ends_at=rfc3339(span[1]))


def _unknown(number: int) -> Problem:
    return Problem("not-found", f"maintenance: {number}; this project has no such window")
