"""Alerts and receivers: what fired, who was told, and whether the line to them works."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.concurrency import run_in_threadpool

from gradwarden_server.api import schemas
from gradwarden_server.api.bodies import Identifier
from gradwarden_server.api.deps import CREDENTIALS, Admin, PartsDep, Reader
from gradwarden_server.api.plain import rfc3339
from gradwarden_server.api.problems import Problem
from gradwarden_server.api.runs import one_of
from gradwarden_server.model import Alert, Severity
from gradwarden_server.store.ledger import BadCursor

router = APIRouter(prefix="/v1", tags=["alerts"], dependencies=CREDENTIALS)


@router.get("/alerts", summary="Alerts of the project, newest first")
def list_alerts(
    who: Reader,
    parts: PartsDep,
    state: Annotated[str, Query(max_length=100, description="States, comma-separated")] = "",
    run: Identifier | None = None,
    severity: Severity | None = None,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> schemas.AlertList:
    """One page; ``next_cursor`` asks for the next."""
    states = one_of("state", state, ("pending", "firing", "resolved"))
    try:
        page = parts.ledger.list(who.project, states, run, severity, limit, cursor)
    except BadCursor as error:
        raise Problem("malformed", f"cursor: {cursor!r}; {error}", field="cursor") from None
    return schemas.AlertList(
        items=[face(alert) for alert in page.items],
        next_cursor=page.next_cursor,
    )


@router.get("/alerts/{alert}", summary="One alert with its timeline and deliveries")
def get_alert(
    alert: Annotated[int, Path(ge=1, le=2**62)], who: Reader, parts: PartsDep
) -> schemas.AlertDetail:
    """A resolved alert keeps its page."""
    story = parts.ledger.get(who.project, alert)
    if story is None:
        raise Problem("not-found", f"alert: {alert}; this project has no such alert")
    return schemas.AlertDetail(
        **face(story.alert).model_dump(),
        timeline=[
            schemas.TransitionFace(
                at=rfc3339(t.at_ns),
                from_=t.from_state,
                to=t.to_state,
                reason=t.reason,
                annotations=dict(t.annotations),
            )
            for t in story.timeline
        ],
        deliveries=[
            schemas.DeliveryFace(
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


def face(alert: Alert) -> schemas.AlertFace:
    """An alert as it is told."""
    return schemas.AlertFace(
        id=alert.id or 0,
        alertname=alert.alertname,
        severity=alert.severity,
        state=alert.state,
        labels=dict(alert.labels),
        annotations=dict(alert.annotations),
        active_at=rfc3339(alert.active_ns),
        fired_at=rfc3339(alert.fired_ns),
        resolved_at=rfc3339(alert.resolved_ns),
        reason=alert.reason,
        fingerprint=alert.fingerprint,
        muted=alert.muted or None,
        acknowledged_at=rfc3339(alert.acked_ns),
        acknowledged_by=alert.acked_by,
    )
