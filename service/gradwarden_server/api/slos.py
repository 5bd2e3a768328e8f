"""Objectives: what is left of each budget, how fast it goes, and who spends it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from gradwarden_server.api.budgeting import Standing
from gradwarden_server.api.deps import CREDENTIALS, Parts, PartsDep, Reader
from gradwarden_server.api.plain import Number, number, rfc3339
from gradwarden_server.api.problems import Problem
from gradwarden_server.promql.errors import ExecutionError, QueryError
from gradwarden_server.querying.budgets import Share
from gradwarden_server.slo.budget import Budget, Burn, Word
from gradwarden_server.slo.compile import ALERT
from gradwarden_server.slo.objective import Objective

router = APIRouter(prefix="/v1/slos", tags=["slos"], dependencies=CREDENTIALS)

SloId = Annotated[str, Path(max_length=63, description="The objective's identifier")]
_SECOND_NS = 1_000_000_000


class PeriodFace(BaseModel):
    """What a budget is for."""

    kind: Literal["rolling", "calendar"]
    days: float


class BurnFace(BaseModel):
    """One pair of windows; rates are null where nothing happened in them."""

    severity: Literal["page", "ticket"]
    long_s: int
    short_s: int
    long: Number | None = Field(description="Times the allowed rate over the long window")
    short: Number | None
    limit: float
    word: Word


class PartFace(BaseModel):
    """The budget of one part, such as one environment."""

    labels: dict[str, str]
    current: float | None = Field(description="Share of good events in the period")
    budget_left: float | None = Field(description="Below 0 where more was spent than there was")
    good: float
    total: float
    burn: list[BurnFace]
    sentence: str
    enough_data: bool


class SloFace(BaseModel):
    """One objective; its figures are those of the part with the least left."""

    id: str
    name: str
    description: str
    service: str
    sli: str = Field(description="What is counted, in a word")
    target: float
    window: PeriodFace
    at_most: str | None = Field(description="Of a budget by count: '1 of 50'")
    current: float | None
    budget_left: float | None
    burn: list[BurnFace]
    sentence: str
    enough_data: bool
    alerts: list[int] = Field(description="Open alerts that say so")
    parts: list[PartFace]
    error: str | None = Field(description="Why it cannot be answered")


class SloList(BaseModel):
    """Every objective that is on."""

    items: list[SloFace]


class SloDetail(SloFace):
    """One objective with where it comes from."""

    file: str
    good_query: str
    bad_query: str
    total_query: str
    min_events: float
    on: bool


class MomentFace(BaseModel):
    """The budget at one moment; ``budget_left`` null where nothing had happened before it."""

    t: str | None
    budget_left: float | None
    good: float
    total: float


class HistoryFace(BaseModel):
    """A budget over its last period."""

    items: list[MomentFace]


class SpenderFace(BaseModel):
    """A run that spent some of the budget."""

    run: str
    run_name: str | None
    owner: str | None
    bad: float
    share: float = Field(description="Of all that was spent")


class SpenderList(BaseModel):
    """The runs that spent most, the first first."""

    items: list[SpenderFace]


@router.get("", summary="Objectives and their budgets")
def list_slos(who: Reader, parts: PartsDep) -> SloList:
    """As they stood at most ten seconds ago."""
    firing = _firing(parts, who.project)
    standings = parts.budgets.standings(who.project)
    return SloList(items=[SloFace(**_face(one, firing)) for one in standings])


@router.get("/{slo}", summary="One objective")
def get_slo(slo: SloId, who: Reader, parts: PartsDep) -> SloDetail:
    """Also one that is not switched on; it has no budget then."""
    objective = _known(parts, slo)
    found = [s for s in parts.budgets.standings(who.project) if s.objective.id == objective.id]
    standing = found[0] if found else Standing(objective, ())
    return SloDetail(
        **_face(standing, _firing(parts, who.project)),
        file=objective.file,
        good_query=objective.good,
        bad_query=objective.bad,
        total_query=objective.total,
        min_events=objective.min_events,
        on=objective.on,
    )


@router.get("/{slo}/history", summary="A budget over its period")
def get_history(
    slo: SloId,
    who: Reader,
    parts: PartsDep,
    points: Annotated[int, Query(ge=2, le=1000)] = 500,
) -> HistoryFace:
    """All parts together; each moment looks back over the period before it."""
    objective = _known(parts, slo)
    try:
        moments = parts.budgets.reader(who.project).history(objective, points)
    except (QueryError, ExecutionError) as error:
        raise _unanswerable(objective, error) from None
    return HistoryFace(
        items=[
            MomentFace(
                t=rfc3339(m.time_s * _SECOND_NS), budget_left=m.left, good=m.good, total=m.total
            )
            for m in moments
        ]
    )


@router.get("/{slo}/spenders", summary="Runs that spend a budget")
def get_spenders(slo: SloId, who: Reader, parts: PartsDep) -> SpenderList:
    """At most ten; none where the objective does not add up over runs."""
    objective = _known(parts, slo)
    try:
        found = parts.budgets.reader(who.project).spenders(objective)
    except (QueryError, ExecutionError) as error:
        raise _unanswerable(objective, error) from None
    return SpenderList(
        items=[
            SpenderFace(
                run=s.labels.get("run", ""),
                run_name=s.labels.get("run_name"),
                owner=s.labels.get("owner"),
                bad=s.bad,
                share=s.share,
            )
            for s in found
        ]
    )


def _face(standing: Standing, firing: dict[str, list[int]]) -> dict[str, Any]:
    objective = standing.objective
    worst = standing.shares[0].budget if standing.shares else None
    count = objective.count
    return {
        "id": objective.id,
        "name": objective.name,
        "description": objective.description,
        "service": objective.service,
        "sli": objective.unit,
        "target": objective.target,
        "window": PeriodFace(kind=objective.period.kind, days=objective.period.days),
        "at_most": None if count is None else f"{count.bad} of {count.of}",
        "current": None if worst is None else worst.current,
        "budget_left": None if worst is None else worst.left,
        "burn": [] if worst is None else _burns(worst),
        "sentence": "" if worst is None else worst.sentence,
        "enough_data": worst is not None and worst.enough,
        "alerts": firing.get(objective.id, []),
        "parts": [_part(share) for share in standing.shares],
        "error": standing.error or None,
    }


def _part(share: Share) -> PartFace:
    budget = share.budget
    return PartFace(
        labels=dict(share.labels),
        current=budget.current,
        budget_left=budget.left,
        good=budget.events.total - budget.events.bad,
        total=budget.events.total,
        burn=_burns(budget),
        sentence=budget.sentence,
        enough_data=budget.enough,
    )


def _burns(budget: Budget) -> list[BurnFace]:
    return [_burn(burn) for burn in budget.burn]


def _burn(burn: Burn) -> BurnFace:
    return BurnFace(
        severity=burn.pair.urgency,
        long_s=burn.pair.long_s,
        short_s=burn.pair.short_s,
        long=number(burn.long),
        short=number(burn.short),
        limit=burn.pair.factor,
        word=burn.word,
    )


def _firing(parts: Parts, project: str) -> dict[str, list[int]]:
    """Open alerts about budgets, by objective."""
    found: dict[str, list[int]] = {}
    for alert in parts.casebook.firing(project, ALERT):
        if alert.id is not None:
            found.setdefault(alert.labels.get("slo", ""), []).append(alert.id)
    return found


def _known(parts: Parts, slo: str) -> Objective:
    objective = parts.budgets.find(slo)
    if objective is None:
        known = ", ".join(one.id for one in parts.budgets.objectives) or "none"
        raise Problem("not-found", f"slo: {slo!r}; there are {known}")
    return objective


def _unanswerable(objective: Objective, error: Exception) -> Problem:
    return Problem("invalid-arguments", f"slo: {objective.id}: {error}", field="slo")
