"""Who is told by which route, and what became of the messages."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel

from gradwarden_server.api.deps import CREDENTIALS, Admin, PartsDep, Reader
from gradwarden_server.api.plain import rfc3339
from gradwarden_server.api.problems import Problem
from gradwarden_server.api.runs import one_of
from gradwarden_server.store.alerts.letters import Letter

router = APIRouter(prefix="/v1", tags=["alerts"], dependencies=CREDENTIALS)

STATES = ("waiting", "sent", "standing", "superseded", "dead")
_FAR = 2**62


class EscalationFace(BaseModel):
    """The second receiver of a route."""

    receiver: str
    after_seconds: float


class RouteFace(BaseModel):
    """One route; a time that is null follows from the severity of the alerts."""

    receiver: str
    matchers: list[str]
    group_by: list[str] | None
    group_wait_seconds: float | None
    group_interval_seconds: float | None
    repeat_interval_seconds: float
    cool_down_seconds: float
    goes_on: bool
    escalate: EscalationFace | None


class RouteList(BaseModel):
    """Routes in their order."""

    items: list[RouteFace]


class LetterFace(BaseModel):
    """One message to one receiver."""

    id: int
    receiver: str
    group_key: str
    severity: str
    state: str
    status: str
    summary: str
    attempts: int
    created_at: str | None
    next_try_at: str | None
    last_try_at: str | None
    detail: str | None


class LetterList(BaseModel):
    """Messages, the newest first."""

    items: list[LetterFace]
    next_cursor: str | None = None


class RetryFace(BaseModel):
    """A message that is sent once more."""

    id: int
    state: str


@router.get("/routes", summary="By which routes alerts find people")
def list_routes(
    who: Reader,
    parts: PartsDep,
    label: Annotated[
        list[str] | None,
        Query(max_length=64, description="NAME=VALUE: only routes that such alerts take"),
    ] = None,
) -> RouteList:
    """Of a file without routes: one to each receiver, for the severities that it asks for."""
    routes = parts.routing.routes if label is None else parts.routing.of(_labels(label))
    return RouteList(
        items=[
            RouteFace(
                receiver=route.receiver,
                matchers=[str(matcher) for matcher in route.matchers],
                group_by=None if route.group_by is None else list(route.group_by),
                group_wait_seconds=route.group_wait_seconds,
                group_interval_seconds=route.group_interval_seconds,
                repeat_interval_seconds=route.repeat_interval_seconds,
                cool_down_seconds=route.cool_down_seconds,
                goes_on=route.goes_on,
                escalate=None
                if route.escalate is None
                else EscalationFace(
                    receiver=route.escalate.receiver, after_seconds=route.escalate.after_seconds
                ),
            )
            for route in routes
        ]
    )


@router.get("/deliveries", summary="Messages to receivers, the newest first")
def list_deliveries(
    who: Reader,
    parts: PartsDep,
    state: Annotated[str, Query(max_length=100, description="States, comma-separated")] = "",
    cursor: Annotated[int | None, Query(ge=1, le=_FAR)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> LetterList:
    """``dead`` was given up, ``superseded`` was replaced by a later one before it arrived."""
    states = one_of("state", state, STATES)
    found = parts.letters.list(who.project, states, limit + 1, cursor)
    more = len(found) > limit
    return LetterList(
        items=[_face(letter) for letter in found[:limit]],
        next_cursor=str(found[limit - 1].id) if more else None,
    )


@router.post("/deliveries/{delivery}/retry", summary="Send a dead letter once more")
async def retry(
    delivery: Annotated[int, Path(ge=1, le=_FAR)], who: Admin, parts: PartsDep
) -> RetryFace:
    """Only the last word of a group: an older one would ring for what may be over. Audited."""
    outcome = await parts.written(
        parts.letters.retry(who.project, delivery, who.actor, time.time_ns())
    )
    if outcome == "unknown":
        raise Problem("not-found", f"delivery: {delivery}; this project has no such message")
    if outcome == "not dead":
        raise Problem(
            "not-dead", f"delivery: {delivery}; it was not given up: see GET /v1/deliveries"
        )
    if outcome == "replaced":
        raise Problem(
            "not-dead",
            f"delivery: {delivery}; a later message of its group says all there is to say: "
            "retry that one where it is dead",
        )
    parts.messenger.wake()
    return RetryFace(id=delivery, state="waiting")


def _labels(texts: list[str]) -> dict[str, str]:
    labels = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise Problem("malformed", f"label: {text!r}; write NAME=VALUE", field="label")
        labels[name] = value
    return labels


def _face(letter: Letter) -> LetterFace:
    waits = letter.state == "waiting"
    return LetterFace(
        id=letter.id,
        receiver=letter.receiver,
        group_key=letter.group_key,
        severity=letter.severity,
        state=letter.state,
        status=letter.status,
        summary=letter.summary,
        attempts=letter.attempts,
        created_at=rfc3339(letter.created_ns),
        next_try_at=rfc3339(letter.not_before_ns) if waits else None,
        last_try_at=rfc3339(letter.at_ns),
        detail=letter.detail,
    )
