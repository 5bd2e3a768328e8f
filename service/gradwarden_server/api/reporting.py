"""What a period was: gathered from runs, incidents and budgets."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from gradwarden_server.alerting.coverage import ARMED, WATCHABLE
from gradwarden_server.api.budgeting import Standing
from gradwarden_server.api.deps import Parts
from gradwarden_server.api.faces import stepped_ns
from gradwarden_server.diagnosis.coverage import partly
from gradwarden_server.model import DRILL
from gradwarden_server.slo import report, wasted
from gradwarden_server.slo.report import ModelCost, Report, Spent, Times
from gradwarden_server.slo.wasted import Attempt, Incident, Training, Waste
from gradwarden_server.store.alerts.casebook import Outcome
from gradwarden_server.store.costs import ANY_GPU, HeldRun, Price

_TOP = 10
_TIMED = 500
_SECOND_NS = 1_000_000_000
_NOBODY = "(nobody)"


def gather(parts: Parts, project: str, since_ns: int, until_ns: int) -> Report:
    """The report of a period of a project."""
    before_ns = since_ns - (until_ns - since_ns)
    every = [
        one
        for one in parts.casebook.outcomes(project, before_ns)
        if one.alert.severity in ("page", "ticket") and one.alert.labels.get("environment") != DRILL
    ]
    mine = [one for one in every if since_ns <= (one.alert.fired_ns or 0) < until_ns]
    before = [one for one in every if (one.alert.fired_ns or 0) < since_ns]
    begun = {one.alert.id: stepped_ns(parts, one.alert) for one in mine[-_TIMED:]}
    runs = parts.costs.runs(project, since_ns, until_ns)
    prices = {price.gpu: price for price in parts.costs.prices(project)}
    by_run: dict[str | None, list[Outcome]] = {}
    for one in mine:
        by_run.setdefault(one.alert.run, []).append(one)
    trainings = {run.run: _training(run, by_run.get(run.run, ()), begun, until_ns) for run in runs}
    lost = wasted.wasted(trainings.values(), since_ns, until_ns)
    rates = {run.run: rate(run, prices) for run in runs}
    held = {run: wasted.held(one, since_ns, until_ns) for run, one in trainings.items()}
    pages = [one for one in mine if one.alert.severity == "page"]
    armed = [_armed(run) for run in runs]
    return Report(
        project=project,
        since_ns=since_ns,
        until_ns=until_ns,
        incidents=len(mine),
        incidents_before=len(before),
        pages=len(pages),
        tickets=len(mine) - len(pages),
        pages_acted=sum(one.noted or one.alert.acked_ns is not None for one in pages),
        detect=_times(
            (one.alert.fired_ns or 0) - begin
            for one in mine
            if (begin := begun.get(one.alert.id)) is not None
        ),
        acknowledge=_times(
            one.alert.acked_ns - (one.alert.fired_ns or 0)
            for one in mine
            if one.alert.acked_ns is not None
        ),
        resolve=_times(
            one.alert.resolved_ns - (one.alert.fired_ns or 0)
            for one in mine
            if one.alert.resolved_ns is not None
        ),
        currency=next((price.currency for price in prices.values()), ""),
        wasted=_sum("wasted", lost, rates),
        held=Spent("held", sum(held.values()), _cost(held.items(), rates)),
        causes=_grouped(lost, rates, "cause", Counter(one.alert.alertname for one in mine)),
        owners=_grouped(lost, rates, "owner", Counter(_owner(one) for one in mine)),
        models=_models(runs, held, rates, since_ns, until_ns),
        runs=len(runs),
        runs_watched=sum(one is True for one in armed),
        runs_partly=sum(one is False for one in armed),
        objectives=[_objective(s) for s in _standings(parts, project, until_ns)],
    )


def rate(run: HeldRun, prices: Mapping[str, Price]) -> float | None:
    """What an hour of one GPU of a run costs; None where neither table nor run says so."""
    price = prices.get(run.gpu) or prices.get(ANY_GPU)
    if price is not None:
        return price.per_hour
    if run.cost_per_hour is not None and not prices:
        return run.cost_per_hour / max(1, run.world_size)
    return None


def _training(
    run: HeldRun, outcomes: Sequence[Outcome], begun: Mapping[int | None, int | None], now_ns: int
) -> Training:
    attempts = []
    redone_from: int | None = None
    for held in reversed(run.attempts):
        last = held.first_step if held.last_step is None else held.last_step
        redone = 0 if redone_from is None else max(0, last - max(redone_from, held.first_step) + 1)
        ended_ns = held.ended_ns if held.ended_ns is not None else min(run.last_seen_ns, now_ns)
        steps = last - held.first_step + 1
        attempts.append(Attempt(held.status, held.started_ns, ended_ns, steps, redone))
        first = held.first_step
        redone_from = first if redone_from is None else min(redone_from, first)
    incidents = []
    for one in outcomes:
        alert = one.alert
        if alert.fired_ns is not None:
            begin_ns = begun.get(alert.id) or alert.active_ns
            urgency: Literal["page", "ticket"] = "page" if alert.severity == "page" else "ticket"
            times = begin_ns, alert.fired_ns, alert.resolved_ns
            incidents.append(Incident(alert.alertname, urgency, *times))
    owner = run.owner or _NOBODY
    return Training(run.run, owner, run.world_size, attempts[::-1], incidents)


def _models(
    runs: Sequence[HeldRun],
    held: Mapping[str, float],
    rates: Mapping[str, float | None],
    since_ns: int,
    until_ns: int,
) -> list[ModelCost]:
    by_model: dict[str, list[HeldRun]] = {}
    for run in runs:
        by_model.setdefault(run.model, []).append(run)
    made = []
    for model, mine in by_model.items():
        converged = sum(
            run.good is True and run.ended_ns is not None and since_ns <= run.ended_ns < until_ns
            for run in mine
        )
        hours = {run.run: held[run.run] for run in mine}
        cost = _cost(hours.items(), rates)
        made.append(ModelCost(model, len(mine), converged, sum(hours.values()), cost))
    return sorted(made, key=lambda one: -one.gpu_hours)[:_TOP]


def _grouped(
    lost: Sequence[Waste],
    rates: Mapping[str, float | None],
    by: str,
    incidents: Mapping[str, int],
) -> list[Spent]:
    groups: dict[str, list[Waste]] = {name: [] for name in incidents}
    for one in lost:
        groups.setdefault(getattr(one, by), []).append(one)
    made = []
    for name, mine in groups.items():
        total = _sum(name, mine, rates)
        made.append(Spent(name, total.gpu_hours, total.cost, incidents.get(name, 0)))
    return sorted(made, key=lambda s: (-s.gpu_hours, -s.incidents, s.name))[:_TOP]


def _sum(name: str, lost: Sequence[Waste], rates: Mapping[str, float | None]) -> Spent:
    hours = sum(one.gpu_hours for one in lost)
    return Spent(name, hours, _cost([(one.run, one.gpu_hours) for one in lost], rates))


def _cost(hours: Iterable[tuple[str, float]], rates: Mapping[str, float | None]) -> float | None:
    if all(price is None for price in rates.values()):
        return None
    total = 0.0
    for run, spent in hours:
        price = rates.get(run)
        if price is None and spent > 0:
            return None  # part of a cost would read as the whole
        total += spent * (price or 0.0)
    return total


def _times(lengths_ns: Iterable[int]) -> Times:
    held = sorted(max(0, ns) / 1e9 for ns in lengths_ns)
    if not held:
        return Times(0, None, None)
    return Times(len(held), held[(len(held) - 1) // 2], held[-(-len(held) * 9 // 10) - 1])


def _owner(one: Outcome) -> str:
    return one.alert.labels.get("owner") or _NOBODY


def _armed(run: HeldRun) -> bool | None:
    armed, of = run.latest.get(ARMED), run.latest.get(WATCHABLE)
    if not isinstance(armed, int | float) or not isinstance(of, int | float):
        return None
    return not partly(int(armed), int(of))


def _standings(parts: Parts, project: str, until_ns: int) -> list[Standing]:
    """Budgets in the last second of a period: at its end a month may begin anew."""
    last_s = until_ns // _SECOND_NS - 1
    if last_s >= time.time_ns() // _SECOND_NS:
        return parts.budgets.standings(project)
    return parts.budgets.standings_at(project, last_s)


def _objective(standing: Standing) -> report.Objective:
    objective, shares = standing.objective, standing.shares
    if not shares:
        return report.Objective(objective.name, None, "cannot be answered")
    budget = shares[0].budget
    return report.Objective(objective.name, budget.left, budget.sentence)
