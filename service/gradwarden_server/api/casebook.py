"""What people do about alerts, and what became of earlier ones."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from gradwarden_server.api import tallies
from gradwarden_server.api.alert_schemas import (
    AlertFace,
    AlertStatsList,
    SaidFace,
    SimilarFace,
    SimilarList,
)
from gradwarden_server.api.alerts import known_alert
from gradwarden_server.api.deps import CREDENTIALS, Admin, AlertId, Parts, PartsDep, Reader
from gradwarden_server.api.faces import faces, stepped_ns
from gradwarden_server.api.plain import plain, rfc3339
from gradwarden_server.api.problems import Problem
from gradwarden_server.model import Alert
from gradwarden_server.store.alerts.casebook import Said

router = APIRouter(prefix="/v1/alerts", tags=["alerts"], dependencies=CREDENTIALS)

_DAY_NS = 86_400 * 1_000_000_000
_SIMILAR_DAYS = 90
_LOOKED_AT = 1000


def _written(text: str) -> str:
    text = str(plain(text)).strip()
    if not text:
        raise ValueError("write something")
    return text


Note = Annotated[str, Field(max_length=4096), AfterValidator(_written)]


class NoteBody(BaseModel):
    """What somebody has to say of an alert."""

    model_config = ConfigDict(extra="forbid")

    text: Note


class AckBody(BaseModel):
    """What the one who takes care has to say, if anything."""

    model_config = ConfigDict(extra="forbid")

    note: Note | None = None


@router.get("/stats", summary="How often each alert came, and whether anybody acted on it")
def alert_stats(
    who: Reader,
    parts: PartsDep,
    days: Annotated[float, Query(gt=0, le=366)] = 30,
) -> AlertStatsList:
    """Alerts that fired in these days, those first that people were told of most and acted on
    least. Times are medians and 90th percentiles over the incidents of which they are known."""
    since_ns = time.time_ns() - round(days * _DAY_NS)
    outcomes = parts.casebook.outcomes(who.project, since_ns)
    return tallies.tallied(days, outcomes, lambda alert: stepped_ns(parts, alert))


@router.post("/{alert}/ack", summary="Say that you take care of an alert")
async def acknowledge(
    alert: AlertId, who: Admin, parts: PartsDep, body: AckBody | None = None
) -> AlertFace:
    """The first one counts; the alert fires on until its cause is gone. Audited."""
    now_ns = time.time_ns()
    note = (body.note if body is not None else None) or ""
    done = parts.care.acknowledge(who.project, [alert], who.actor, now_ns, note)
    if not await parts.written(done):
        raise Problem("not-found", f"alert: {alert}; this project has no such open alert")
    return await run_in_threadpool(_face, parts, who.project, alert)


@router.post("/{alert}/notes", summary="Write something down about an alert", status_code=201)
async def add_note(alert: AlertId, body: NoteBody, who: Admin, parts: PartsDep) -> SaidFace:
    """It stands in the timeline, also of an alert that is over. Audited."""
    now_ns = time.time_ns()
    done = parts.database.write(
        lambda conn: parts.ledger.note(who.project, conn, alert, who.actor, body.text, now_ns)
    )
    if not await parts.written(done):
        raise Problem("not-found", f"alert: {alert}; this project has no such alert")
    return SaidFace(at=rfc3339(now_ns), by=who.actor, text=body.text)


@router.get("/{alert}/similar", summary="Earlier alerts like this one, and how they ended")
def similar_alerts(
    alert: AlertId,
    who: Reader,
    parts: PartsDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
) -> SimilarList:
    """Of the same name in the past 90 days: the same layer and cause first, then the newest."""
    mine = known_alert(parts, who.project, alert).alert
    since_ns = time.time_ns() - _SIMILAR_DAYS * _DAY_NS
    found = parts.casebook.alike(who.project, mine.alertname, since_ns, _LOOKED_AT)
    others = [one for one in found if one.id != alert]
    others.sort(key=lambda one: len(_alike(one, mine) - {"run"}), reverse=True)
    shown = others[:limit]
    said = parts.casebook.said(who.project, [one.id or 0 for one in shown])
    return SimilarList(items=[_similar(one, mine, said.get(one.id or 0, [])) for one in shown])


def _alike(one: Alert, mine: Alert) -> set[str]:
    """In what two alerts of a name agree."""
    same = {
        name
        for name in ("layer", "cause")
        if one.annotations.get(name) and one.annotations.get(name) == mine.annotations.get(name)
    }
    return same | ({"run"} if one.run is not None and one.run == mine.run else set())


def _similar(one: Alert, mine: Alert, said: list[Said]) -> SimilarFace:
    over = one.resolved_ns is not None and one.fired_ns is not None
    return SimilarFace(
        id=one.id or 0,
        run=one.run,
        run_name=one.labels.get("run_name"),
        severity=one.severity,
        state=one.state,
        layer=one.annotations.get("layer"),
        cause=one.annotations.get("cause"),
        summary=one.annotations.get("summary"),
        fired_at=rfc3339(one.fired_ns),
        resolved_at=rfc3339(one.resolved_ns),
        reason=one.reason,
        seconds_to_resolve=((one.resolved_ns or 0) - (one.fired_ns or 0)) / 1e9 if over else None,
        alike=sorted(_alike(one, mine)),
        acknowledged_by=one.acked_by,
        notes=[SaidFace(at=rfc3339(s.at_ns), by=s.by, text=s.text) for s in said],
    )


def _face(parts: Parts, project: str, alert: int) -> AlertFace:
    [face] = faces(parts, project, [known_alert(parts, project, alert).alert])
    return face
