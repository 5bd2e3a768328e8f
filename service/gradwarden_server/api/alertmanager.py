"""The part of Alertmanager's v2 API that amtool, Grafana and scripts ask: alerts and silences.

Field names are Alertmanager's. A silence's number is told as a UUID, for its clients want one.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from gradwarden_server import matchers, telemetry
from gradwarden_server.api import silences as ours
from gradwarden_server.api.deps import CREDENTIALS, Admin, Parts, PartsDep, Reader
from gradwarden_server.api.plain import rfc3339
from gradwarden_server.api.problems import Problem
from gradwarden_server.model import Alert, Silence

router = APIRouter(prefix="/api/v2", tags=["alertmanager"], dependencies=CREDENTIALS)

_MOST = 10_000
_PREFIX = "silence "

Filters = Annotated[list[str] | None, Query(alias="filter", max_length=ours.MOST_MATCHERS)]
Flag = Annotated[bool, Query()]
SilenceUuid = Annotated[UUID, Path(description="As the list of silences tells it")]


class MatcherBody(BaseModel):
    """One matcher."""

    name: str
    value: str
    isRegex: bool = False
    isEqual: bool = True


class PostedSilence(BaseModel):
    """A silence as Alertmanager's clients post it; with an ``id`` it takes that one's place."""

    model_config = ConfigDict(extra="ignore")

    id: UUID | None = None
    matchers: Annotated[list[MatcherBody], Field(min_length=1, max_length=ours.MOST_MATCHERS)]
    startsAt: datetime
    endsAt: datetime
    createdBy: Annotated[str, Field(max_length=128)]
    comment: Annotated[str, Field(max_length=4096)]


@router.get("/status", summary="What answers here")
def status(who: Reader, parts: PartsDep) -> dict[str, Any]:
    """It is gradwarden, and no cluster."""
    return {
        "cluster": {"status": "disabled", "name": "", "peers": []},
        "config": {"original": ""},
        "uptime": rfc3339(parts.started_ns),
        "versionInfo": {
            "version": telemetry.package_version(),
            **dict.fromkeys(("branch", "buildDate", "buildUser", "goVersion", "revision"), ""),
        },
    }


@router.get("/receivers", summary="Who is told")
def receivers(who: Reader, parts: PartsDep) -> list[dict[str, str]]:
    """The receivers of the file."""
    return [{"name": receiver.name} for receiver in parts.receivers]


@router.get("/alerts", summary="Alerts that fire")
def list_alerts(
    who: Reader,
    parts: PartsDep,
    filters: Filters = None,
    active: Flag = True,
    silenced: Flag = True,
    inhibited: Flag = True,
    receiver: Annotated[str | None, Query(max_length=1024)] = None,
) -> list[dict[str, Any]]:
    """Notes are left out: nobody is told of them."""
    return _alerts(parts, who.project, filters, (active, silenced, inhibited), receiver)


@router.get("/alerts/groups", summary="Alerts that fire, by run")
def list_groups(
    who: Reader,
    parts: PartsDep,
    filters: Filters = None,
    active: Flag = True,
    silenced: Flag = True,
    inhibited: Flag = True,
    receiver: Annotated[str | None, Query(max_length=1024)] = None,
) -> list[dict[str, Any]]:
    """One group a run and receiver."""
    found = _alerts(parts, who.project, filters, (active, silenced, inhibited), receiver)
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for alert in found:
        for told in alert["receivers"] or [{"name": ""}]:
            groups.setdefault((alert["labels"].get("run", ""), told["name"]), []).append(alert)
    return [
        {"labels": {"run": run} if run else {}, "receiver": {"name": name}, "alerts": alerts}
        for (run, name), alerts in groups.items()
    ]


@router.get("/silences", summary="Silences")
def list_silences(who: Reader, parts: PartsDep, filters: Filters = None) -> list[dict[str, Any]]:
    """Those that are over as well; a filter asks for matchers that hold for these labels."""
    now_ns = time.time_ns()
    wanted = ours.parsed(filters or [])
    return [
        _silence(silence, now_ns)
        for silence in parts.silences.list(who.project)
        if all(
            any(m.name == w.name and w.matches({w.name: m.value}) for m in silence.matchers)
            for w in wanted
        )
    ]


@router.post("/silences", summary="Make or replace a silence")
async def post_silence(body: PostedSilence, who: Admin, parts: PartsDep) -> dict[str, str]:
    """The one that is replaced ends now. Audited."""
    try:
        wanted = tuple(
            matchers.Matcher(m.name, m.value, m.isRegex, m.isEqual) for m in body.matchers
        )
    except matchers.BadMatcher as error:
        raise Problem("malformed", f"matchers: {error}", field="matchers") from None
    if body.id is not None and await _get(parts, who.project, body.id) is None:
        raise _unknown(body.id)
    span_ns = ours.nanoseconds(body.startsAt), ours.nanoseconds(body.endsAt)
    author = body.createdBy or who.actor
    made = await ours.added(parts, who.project, wanted, span_ns, author, body.comment)
    if body.id is not None:
        now_ns = time.time_ns()
        await parts.written(parts.silences.expire(who.project, body.id.int, who.actor, now_ns))
    return {"silenceID": str(UUID(int=made))}


@router.get("/silence/{silence}", summary="One silence")
async def get_silence(silence: SilenceUuid, who: Reader, parts: PartsDep) -> dict[str, Any]:
    """Also one that is over."""
    found = await _get(parts, who.project, silence)
    if found is None:
        raise _unknown(silence)
    return _silence(found, time.time_ns())


@router.delete("/silence/{silence}", summary="End a silence now")
async def delete_silence(silence: SilenceUuid, who: Admin, parts: PartsDep) -> Response:
    """Audited."""
    if await _get(parts, who.project, silence) is None:
        raise _unknown(silence)
    now_ns = time.time_ns()
    await parts.written(parts.silences.expire(who.project, silence.int, who.actor, now_ns))
    parts.judge.wake()
    return Response(status_code=200)


def _alerts(
    parts: Parts,
    project: str,
    filters: list[str] | None,
    shown: tuple[bool, bool, bool],
    receiver: str | None,
) -> list[dict[str, Any]]:
    wanted = ours.parsed(filters or [])
    name = None if receiver is None else matchers.Matcher("receiver", receiver, is_regex=True)
    active, silenced, inhibited = shown
    page = parts.ledger.list(project, ("firing",), limit=_MOST)
    found = []
    for alert in page.items:
        muted = alert.muted.startswith(_PREFIX), bool(alert.muted)
        visible = silenced if muted[0] else inhibited if muted[1] else active
        if alert.severity == "note" or not visible or not matchers.all_match(wanted, alert.labels):
            continue
        told = parts.routing.receivers(alert.labels)
        if name is None or any(name.matches({"receiver": one}) for one in told):
            found.append(_alert(alert, told, parts.settings.url))
    return found


def _alert(alert: Alert, told: list[str], url: str) -> dict[str, Any]:
    silence = alert.muted.removeprefix(_PREFIX) if alert.muted.startswith(_PREFIX) else ""
    cause = alert.muted.rpartition(" ")[2] if alert.muted and not silence else ""
    fired_at = rfc3339(alert.fired_ns)
    return {
        "annotations": dict(alert.annotations),
        "endsAt": "0001-01-01T00:00:00.000Z",
        "fingerprint": alert.fingerprint,
        "generatorURL": alert.annotations.get("dashboard_url", url),
        "labels": dict(alert.labels),
        "receivers": [{"name": name} for name in told],
        "startsAt": fired_at,
        "status": {
            "inhibitedBy": [cause] if cause else [],
            "mutedBy": [],
            "silencedBy": [str(UUID(int=int(silence)))] if silence else [],
            "state": "suppressed" if alert.muted else "active",
        },
        "updatedAt": fired_at,
    }


def _silence(silence: Silence, now_ns: int) -> dict[str, Any]:
    return {
        "comment": silence.comment,
        "createdBy": silence.author,
        "endsAt": rfc3339(silence.ends_ns),
        "id": str(UUID(int=silence.id)),
        "matchers": [
            {"isEqual": m.is_equal, "isRegex": m.is_regex, "name": m.name, "value": m.value}
            for m in silence.matchers
        ],
        "startsAt": rfc3339(silence.starts_ns),
        "status": {"state": silence.state(now_ns)},
        "updatedAt": rfc3339(silence.starts_ns),
    }


async def _get(parts: Parts, project: str, silence: UUID) -> Silence | None:
    if silence.int >= 2**62:
        return None
    return await run_in_threadpool(parts.silences.get, project, silence.int)


def _unknown(silence: UUID) -> Problem:
    return Problem("not-found", f"silence: {silence}; this project has no such silence")
