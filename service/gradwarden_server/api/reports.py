"""The fleet in figures, the report of a period, and the prices that turn hours into money."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from gradwarden_server.api.deps import CREDENTIALS, Admin, Parts, PartsDep, Reader
from gradwarden_server.api.plain import rfc3339
from gradwarden_server.api.problems import Problem
from gradwarden_server.api.reporting import gather
from gradwarden_server.api.silences import nanoseconds
from gradwarden_server.slo import report
from gradwarden_server.slo.report import Report
from gradwarden_server.store.costs import Price

router = APIRouter(prefix="/v1", tags=["reports"], dependencies=CREDENTIALS)

_DAY_NS = 86_400 * 1_000_000_000
_WEEK_NS = 7 * _DAY_NS
_LONGEST_DAYS = 400
_REPORTING_NS = 60 * 1_000_000_000
_FORMS = {"md": "text/markdown", "html": "text/html", "csv": "text/csv"}


class LeftFace(BaseModel):
    """What is left of one budget; null with too little data."""

    id: str
    budget_left: float | None


class IncidentCounts(BaseModel):
    """Pages and tickets: those that stand, and those that fired in the last two weeks."""

    open: int
    week: int
    prev_week: int


class NoiseFace(BaseModel):
    """What people were told of in 30 days, and whether anybody did anything."""

    acted: int
    ignored: int


class TelemetryCounts(BaseModel):
    """Of the runs that are under way, how many were heard of within a minute."""

    runs_reporting: int
    runs_known: int


class FleetFace(BaseModel):
    """The fleet in a handful of figures."""

    counts: dict[Literal["ok", "warn", "crit", "silent"], int]
    gpu_hours_at_risk: float = Field(
        description="Of runs that are not well: since their last checkpoint, or their start"
    )
    slos: list[LeftFace]
    incidents: IncidentCounts
    noise: NoiseFace
    silences_active: int
    telemetry: TelemetryCounts


class PriceBody(BaseModel):
    """What an hour of one GPU of a type costs."""

    model_config = ConfigDict(extra="forbid")

    gpu: Annotated[
        str, Field(min_length=1, max_length=128, description="As the driver names it; *")
    ]
    per_hour: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]


class PriceTable(BaseModel):
    """Prices by type; ``*`` stands for all that are not named."""

    model_config = ConfigDict(extra="forbid")

    items: Annotated[list[PriceBody], Field(max_length=200)]


@router.get("/fleet/summary", summary="The fleet in figures")
def fleet_summary(who: Reader, parts: PartsDep) -> FleetFace:
    """Health of the runs that are under way, and what concerns all of them."""
    now_ns = time.time_ns()
    page = parts.fleet.page(who.project, status=("running",), limit=1000)
    lines = parts.summaries.lines(who.project, page.items, now_ns)
    health: dict[Any, int] = {"ok": 0, "warn": 0, "crit": 0, "silent": 0}
    for line in lines:
        health[line["health"]] += 1
    ill = [r for r, line in zip(page.items, lines, strict=True) if line["health"] != "ok"]
    saved = parts.costs.saved_ns(who.project, [run.id for run in ill])
    hours = sum(
        run.world_size * max(0, run.last_seen_ns - saved.get(run.id, run.started_ns)) / 3.6e12
        for run in ill
    )
    week, open_ = parts.costs.fired(who.project, now_ns - _WEEK_NS, now_ns)
    before, _ = parts.costs.fired(who.project, now_ns - 2 * _WEEK_NS, now_ns - _WEEK_NS)
    acted, told = parts.casebook.acted(who.project, now_ns - 30 * _DAY_NS)
    current = parts.silences.current(who.project, now_ns)
    return FleetFace(
        counts=health,
        gpu_hours_at_risk=round(hours, 3),
        slos=[
            LeftFace(
                id=standing.objective.id,
                budget_left=standing.shares[0].budget.left if standing.shares else None,
            )
            for standing in parts.budgets.standings(who.project)
        ],
        incidents=IncidentCounts(open=open_, week=week, prev_week=before),
        noise=NoiseFace(acted=acted, ignored=told - acted),
        silences_active=sum(one.state(now_ns) == "active" for one in current),
        telemetry=TelemetryCounts(
            runs_reporting=sum(now_ns - run.last_seen_ns <= _REPORTING_NS for run in page.items),
            runs_known=len(page.items),
        ),
    )


@router.get("/report", summary="The report of a period", response_model=None)
def get_report(
    request: Request,
    who: Reader,
    parts: PartsDep,
    since: Annotated[datetime | None, Query(alias="from")] = None,
    to: datetime | None = None,
    form: Annotated[Literal["json", "md", "html", "csv"] | None, Query(alias="format")] = None,
) -> Response | dict[str, Any]:
    """The last whole week where no times are given; JSON unless ``format`` or Accept says else."""
    told = gather(parts, who.project, *period(since, to))
    wanted = form or _accepted(request.headers.get("accept", ""))
    if wanted == "json":
        return _plain(told)
    return Response(rendered(told, wanted), media_type=f"{_FORMS[wanted]}; charset=utf-8")


@router.get("/prices", summary="What GPUs cost")
def get_prices(who: Reader, parts: PartsDep) -> PriceTable:
    """Empty where nobody said so: reports then tell GPU-hours."""
    return _table(parts, who.project)


@router.put("/prices", summary="Say what GPUs cost")
async def put_prices(body: PriceTable, who: Admin, parts: PartsDep) -> PriceTable:
    """Replaces the table. Audited."""
    names = [item.gpu for item in body.items]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        what = f"items: {twice!r} stands twice; give each type one price"
        raise Problem("malformed", what, field="items")
    if len({item.currency for item in body.items}) > 1:
        what = "items: one currency for the whole table; sums over several mean nothing"
        raise Problem("malformed", what, field="items")
    prices = [Price(item.gpu, item.per_hour, item.currency) for item in body.items]
    await parts.written(parts.costs.put_prices(who.project, prices, time.time_ns(), who.actor))
    return body


def period(since: datetime | None, to: datetime | None) -> tuple[int, int]:
    """Begin and end of a report in nanoseconds.

    Raises:
        Problem: they are not in order, or too far apart.
    """
    now_ns = time.time_ns()
    if since is None and to is None:
        return report.week_before(now_ns)
    until_ns = now_ns if to is None else nanoseconds(to)
    since_ns = until_ns - _WEEK_NS if since is None else nanoseconds(since)
    if since_ns >= until_ns:
        what = f"from: {rfc3339(since_ns)} is not before {rfc3339(until_ns)}"
        raise Problem("malformed", what, field="from")
    if until_ns - since_ns > _LONGEST_DAYS * _DAY_NS:
        what = f"from: at most {_LONGEST_DAYS} days before to"
        raise Problem("malformed", what, field="from")
    return since_ns, until_ns


def rendered(told: Report, form: str) -> str:
    """A report as Markdown, HTML or CSV."""
    return {"md": report.markdown, "html": report.page, "csv": report.sheet}[form](told)


def _plain(told: Report) -> dict[str, Any]:
    body = asdict(told)
    for name in ("since", "until"):
        body[name] = rfc3339(body.pop(f"{name}_ns"))
    for face, model in zip(body["models"], told.models, strict=True):
        face |= {"gpu_hours_each": model.hours_each, "cost_each": model.cost_each}
    return {"title": told.title, "summary": told.summary, **body}


def _accepted(header: str) -> str:
    """The first of our formats that a client asks for; JSON otherwise."""
    for part in header.split(","):
        kind = part.partition(";")[0].strip()
        for form, media in _FORMS.items():
            if kind == media:
                return form
    return "json"


def _table(parts: Parts, project: str) -> PriceTable:
    return PriceTable(
        items=[
            PriceBody(gpu=p.gpu, per_hour=p.per_hour, currency=p.currency)
            for p in parts.costs.prices(project)
        ]
    )
