"""Silences: what somebody does not want to hear for a while, and who takes care of an alert."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from gradwarden_server import matchers
from gradwarden_server.api.alert_schemas import SilencePreview
from gradwarden_server.api.deps import CREDENTIALS, Admin, Parts, PartsDep, Reader
from gradwarden_server.api.faces import faces
from gradwarden_server.api.plain import rfc3339
from gradwarden_server.api.problems import Problem
from gradwarden_server.model import Silence

router = APIRouter(prefix="/v1", tags=["alerts"], dependencies=CREDENTIALS)

MOST_MATCHERS = 32
_PREVIEWED = 500
_DAY_NS = 86_400 * 1_000_000_000
_LONGEST_DAYS = 366
_LOOKED_BACK_DAYS = 7

SilenceId = Annotated[int, Path(ge=1, le=2**62)]
MatcherTexts = Annotated[
    list[str],
    Field(
        min_length=1,
        max_length=MOST_MATCHERS,
        description='As in Prometheus: alertname="RunStalled", run_name=~"gpt.*", team!=""',
    ),
]


class SilenceBody(BaseModel):
    """What is not to be heard, and for how long."""

    model_config = ConfigDict(extra="forbid")

    matchers: MatcherTexts
    starts_at: datetime | None = Field(None, description="Default: now")
    ends_at: datetime | None = None
    duration_seconds: float | None = Field(None, gt=0, description="In place of ends_at")
    comment: Annotated[str, Field(min_length=1, max_length=4096)]


class SilenceChange(BaseModel):
    """Until when a silence is to last."""

    model_config = ConfigDict(extra="forbid")

    ends_at: datetime | None = None
    extend_seconds: float | None = Field(
        None, gt=0, description="In place of ends_at: so much longer than now is said"
    )


class SilenceFace(BaseModel):
    """One silence."""

    id: int
    state: Literal["pending", "active", "expired"]
    matchers: list[str]
    starts_at: str | None
    ends_at: str | None
    author: str
    comment: str


class SilenceList(BaseModel):
    """Silences, the latest end first."""

    items: list[SilenceFace]


@router.get("/silences", summary="Silences of the project")
def list_silences(
    who: Reader,
    parts: PartsDep,
    state: Annotated[Literal["pending", "active", "expired"] | None, Query()] = None,
) -> SilenceList:
    """The latest end first; those that are over stay readable."""
    now_ns = time.time_ns()
    faces = [_face(silence, now_ns) for silence in parts.silences.list(who.project)]
    return SilenceList(items=[one for one in faces if state in (None, one.state)])


@router.get("/silences/preview", summary="What a silence would hold back now")
def preview_silence(
    who: Reader,
    parts: PartsDep,
    matcher: Annotated[list[str], Query(min_length=1, max_length=MOST_MATCHERS)],
) -> SilencePreview:
    """The open alerts that all matchers match, and how many fired in the past 7 days that did."""
    wanted = parsed(matcher)
    page = parts.ledger.list(who.project, ("pending", "firing"), limit=_PREVIEWED)
    held = [alert for alert in page.items if matchers.all_match(wanted, alert.labels)]
    since_ns = time.time_ns() - _LOOKED_BACK_DAYS * _DAY_NS
    past = parts.casebook.firing_since(who.project, since_ns)
    return SilencePreview(
        items=faces(parts, who.project, held),
        next_cursor=None,
        past_7d=sum(matchers.all_match(wanted, labels) for labels in past),
    )


@router.get("/silences/{silence}", summary="One silence")
def get_silence(silence: SilenceId, who: Reader, parts: PartsDep) -> SilenceFace:
    """Also one that is over."""
    found = parts.silences.get(who.project, silence)
    if found is None:
        raise _unknown(silence)
    return _face(found, time.time_ns())


@router.post("/silences", summary="Hold messages back for a while", status_code=201)
async def add_silence(body: SilenceBody, who: Admin, parts: PartsDep) -> SilenceFace:
    """Alerts that it covers fire on and are told when it ends, if they still do. Audited."""
    now_ns = time.time_ns()
    starts_ns = now_ns if body.starts_at is None else nanoseconds(body.starts_at)
    if (body.ends_at is None) == (body.duration_seconds is None):
        raise Problem("malformed", "ends_at: give it or duration_seconds", field="ends_at")
    if body.ends_at is not None:
        ends_ns = nanoseconds(body.ends_at)
    else:
        ends_ns = starts_ns + round((body.duration_seconds or 0) * 1e9)
    wanted = parsed(body.matchers)
    silence = await added(parts, who.project, wanted, (starts_ns, ends_ns), who.actor, body.comment)
    found = await run_in_threadpool(parts.silences.get, who.project, silence)
    assert found is not None
    return _face(found, now_ns)


@router.patch("/silences/{silence}", summary="Let a silence last longer, or end sooner")
async def move_silence(
    silence: SilenceId, body: SilenceChange, who: Admin, parts: PartsDep
) -> SilenceFace:
    """Only one that is not over. Audited."""
    now_ns = time.time_ns()
    found = await run_in_threadpool(parts.silences.get, who.project, silence)
    if found is None:
        raise _unknown(silence)
    if (body.ends_at is None) == (body.extend_seconds is None):
        raise Problem("malformed", "ends_at: give it or extend_seconds", field="ends_at")
    if body.ends_at is not None:
        ends_ns = nanoseconds(body.ends_at)
    else:
        ends_ns = found.ends_ns + round((body.extend_seconds or 0) * 1e9)
    check_span(found.starts_ns, ends_ns, now_ns)
    if found.state(now_ns) == "expired" or not await parts.written(
        parts.silences.move(who.project, silence, ends_ns, who.actor, now_ns)
    ):
        what = f"silence: {silence} is over since {rfc3339(found.ends_ns)}; make a new one"
        raise Problem("malformed", what, field="silence")
    parts.judge.wake()
    moved = await run_in_threadpool(parts.silences.get, who.project, silence)
    assert moved is not None
    return _face(moved, now_ns)


@router.delete("/silences/{silence}", summary="End a silence now")
async def expire_silence(silence: SilenceId, who: Admin, parts: PartsDep) -> SilenceFace:
    """It stays readable. Alerts that it held back and that still fire are told. Audited."""
    now_ns = time.time_ns()
    await parts.written(parts.silences.expire(who.project, silence, who.actor, now_ns))
    parts.judge.wake()
    found = await run_in_threadpool(parts.silences.get, who.project, silence)
    if found is None:
        raise _unknown(silence)
    return _face(found, now_ns)


async def added(
    parts: Parts,
    project: str,
    wanted: tuple[matchers.Matcher, ...],
    span_ns: tuple[int, int],
    author: str,
    comment: str,
) -> int:
    """Keep a silence and let it act at once; its id.

    Raises:
        Problem: it would hold back nothing, or everything.
    """
    now_ns = time.time_ns()
    starts_ns, ends_ns = span_ns
    check_span(starts_ns, ends_ns, now_ns)
    check_scope(wanted)
    write = parts.silences.add(project, wanted, starts_ns, ends_ns, author, comment, now_ns)
    silence = await parts.written(write)
    parts.judge.wake()
    return silence


def check_span(starts_ns: int, ends_ns: int, now_ns: int) -> None:
    """Refuse a time that is over before it begins, or that lasts for years.

    Raises:
        Problem: it does.
    """
    if ends_ns <= max(starts_ns, now_ns):
        raise Problem(
            "malformed", f"ends_at: {rfc3339(ends_ns)} is over before it begins", field="ends_at"
        )
    if ends_ns - starts_ns > _LONGEST_DAYS * _DAY_NS:
        what = f"ends_at: at most {_LONGEST_DAYS} days after starts_at; change the rule instead"
        raise Problem("malformed", what, field="ends_at")


def check_scope(wanted: tuple[matchers.Matcher, ...]) -> None:
    """Refuse matchers that hold everything back.

    Raises:
        Problem: they do.
    """
    if all(matchers.all_match((matcher,), {}) for matcher in wanted):
        what = "matchers: at least one must ask for something; these match whatever there is"
        raise Problem("malformed", what, field="matchers")


def parsed(texts: list[str]) -> tuple[matchers.Matcher, ...]:
    """Matchers as people write them."""
    try:
        return tuple(matchers.parse(text) for text in texts)
    except matchers.BadMatcher as error:
        raise Problem("malformed", f"matchers: {error}", field="matchers") from None


def _face(silence: Silence, now_ns: int) -> SilenceFace:
    return SilenceFace(
        id=silence.id,
        state=silence.state(now_ns),
        matchers=[str(matcher) for matcher in silence.matchers],
        starts_at=rfc3339(silence.starts_ns),
        ends_at=rfc3339(silence.ends_ns),
        author=silence.author,
        comment=silence.comment,
    )


def nanoseconds(moment: datetime) -> int:
    """Since the epoch; a time without a zone is UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def _unknown(silence: int) -> Problem:
    return Problem("not-found", f"silence: {silence}; this project has no such silence")
