"""Alerts and receivers: what fired, who was told, and whether the line to them works."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.concurrency import run_in_threadpool

from gradwarden_server.api import schemas
from gradwarden_server.api.alert_schemas import AlertDetail, AlertList, DeliveryFace
from gradwarden_server.api.bodies import Identifier
from gradwarden_server.api.deps import CREDENTIALS, Admin, AlertId, Parts, PartsDep, Reader
from gradwarden_server.api.faces import faces
from gradwarden_server.api.plain import rfc3339
from gradwarden_server.api.problems import Problem
from gradwarden_server.api.runs import one_of
from gradwarden_server.api.timelines import timeline
from gradwarden_server.model import Quiet, Severity
from gradwarden_server.store.alerts.ledger import AlertStory, BadCursor

router = APIRouter(prefix="/v1", tags=["alerts"], dependencies=CREDENTIALS)


@router.get("/alerts", summary="Alerts of the project, newest first")
def list_alerts(
    who: Reader,
    parts: PartsDep,
    state: Annotated[str, Query(max_length=100, description="States, comma-separated")] = "",
    run: Identifier | None = None,
    severity: Severity | None = None,
    alertname: Annotated[str | None, Query(max_length=128)] = None,
    muted: Annotated[
        bool | None, Query(description="Only what something holds back, or nothing does")
    ] = None,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> AlertList:
    """One page; ``next_cursor`` asks for the next."""
    states = one_of("state", state, ("pending", "firing", "resolved"))
    try:
        page = parts.ledger.list(
            who.project, states, run, severity, limit, cursor, alertname=alertname, muted=muted
        )
    except BadCursor as error:
        raise Problem("malformed", f"cursor: {cursor!r}; {error}", field="cursor") from None
    return AlertList(items=faces(parts, who.project, page.items), next_cursor=page.next_cursor)


@router.get("/alerts/{alert}", summary="One alert with its timeline and deliveries")
def get_alert(alert: AlertId, who: Reader, parts: PartsDep) -> AlertDetail:
    """A resolved alert keeps its page. The timeline has transitions, messages, what people said
    and what held messages back, each with its reason, oldest first."""
    story = known_alert(parts, who.project, alert)
    [face] = faces(parts, who.project, [story.alert])
    return AlertDetail(
        **face.model_dump(),
        timeline=timeline(story, partial(explained, parts, who.project)),
        deliveries=[
            DeliveryFace(
                receiver=d.receiver,
                state=d.state,
                attempts=d.attempts,
                at=rfc3339(d.at_ns),
                ok=d.ok,
                detail=d.detail,
            )
            for d in story.deliveries
        ],
    )


def known_alert(parts: Parts, project: str, alert: int) -> AlertStory:
    """An alert with all that happened to it.

    Raises:
        Problem: the project has no such alert.
    """
    story = parts.ledger.get(project, alert)
    if story is None:
        raise Problem("not-found", f"alert: {alert}; this project has no such alert")
    return story


def explained(parts: Parts, project: str, muted: str) -> str:
    """What holds an alert back, and who wanted it for what reason."""
    kind, _, number = muted.partition(" ")
    found: Quiet | None = None
    if kind == "silence" and number.isdecimal():
        found = parts.silences.get(project, int(number))
    elif kind == "maintenance" and number.isdecimal():
        found = parts.maintenance.get(project, int(number))
    return muted if found is None else f"{muted} of {found.author}: {found.comment}"


@router.get("/receivers", summary="Who is told")
def list_receivers(who: Reader, parts: PartsDep) -> schemas.ReceiverList:
    """The receivers of the file; their URLs may be credentials and are not shown."""
    return schemas.ReceiverList(
        items=[
            schemas.ReceiverFace(
                name=r.name, type=r.type, severities=list(r.severities), links=r.links
            )
            for r in parts.receivers
        ]
    )


@router.post("/receivers/{name}/test", summary="Send a test message now")
async def test_receiver(
    name: Annotated[str, Path(max_length=128)], who: Admin, parts: PartsDep
) -> schemas.ReceiverTest:
    """Past the outbox, once; the answer says how it went."""
    try:
        receipt = await run_in_threadpool(parts.messenger.test, name, who.project)
    except KeyError:
        known = ", ".join(r.name for r in parts.receivers) or "none is configured"
        raise Problem("not-found", f"receiver: {name!r}; known: {known}") from None
    latency_ms = round(receipt.duration_seconds * 1000, 1)
    return schemas.ReceiverTest(ok=receipt.ok, latency_ms=latency_ms, detail=receipt.detail)
