"""Rules: what each watches, how it stands, and how the files were read last."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from gradwarden_server.alerting.rulebook import Reload
from gradwarden_server.api.deps import CREDENTIALS, Admin, Parts, PartsDep, Reader
from gradwarden_server.api.plain import rfc3339
from gradwarden_server.promql.notation import span
from gradwarden_server.querying.ruling import GroupState, identities
from gradwarden_server.rules.groups import PromGroup
from gradwarden_server.store.alerts.ledger import OpenCount

router = APIRouter(tags=["alerts"], dependencies=CREDENTIALS)


class CountsFace(BaseModel):
    """Open alerts of one rule."""

    pending: int
    firing: int


class RuleFace(BaseModel):
    """One rule of either kind."""

    name: str
    kind: Literal["detector", "alert", "record"]
    group: str | None = Field(description="Of Prometheus's rules: the group that it is in")
    file: str | None
    query: str | None = Field(description="Its PromQL")
    detector: str | None = Field(description="Which built-in detector it sets up")
    params: dict[str, float | int | str | bool]
    source: str | None = Field(description="Where the numbers of a detector's rule come from")
    labels: dict[str, str]
    annotations: dict[str, str]
    interval_seconds: float | None = Field(description="None: at every step of a run")
    for_seconds: float
    keep_firing_for_seconds: float
    runbook: str | None = Field(description="The page of docs/runbooks that it names")
    state: Literal["inactive", "pending", "firing"]
    health: Literal["ok", "err", "unknown"]
    error: str | None
    last_evaluation: str | None
    evaluation_seconds: float | None
    would_have_paged: bool = Field(description="Its pages are tickets, in a shadow period")
    alerts: CountsFace


class ReloadFace(BaseModel):
    """How the files were read last; with mistakes, what was read before stands."""

    at: str | None
    ok: bool
    mistakes: list[str]


class RuleList(BaseModel):
    """All rules, detectors first."""

    items: list[RuleFace]
    last_reload: ReloadFace


@router.get("/v1/rules", summary="All rules, and how they stand")
def list_rules(who: Reader, parts: PartsDep) -> RuleList:
    """Detectors and Prometheus's rules in one list."""
    counts = parts.ledger.open_counts(who.project)
    rules = parts.rulebook.book.rules
    items = [*_detectors(parts, who.project, counts)]
    kept = parts.rulings.all(who.project)
    for group in rules.groups:
        found = kept.get(group.key)
        report = {} if found is None else found.report.get("rules", {})
        at_ns = None if found is None else found.evaluated_ns or None
        items += _of_group(parts, group, report, at_ns, who.project, counts)
    return RuleList(items=items, last_reload=_reload(parts.rulebook.last))


@router.post("/-/reload", summary="Read the files of rules and receivers again")
async def reload(who: Admin, parts: PartsDep) -> ReloadFace:
    """As SIGHUP does. Where ``ok`` is false nothing changed, and ``mistakes`` says why."""
    return _reload(await run_in_threadpool(parts.rulebook.reload))


def _reload(last: Reload) -> ReloadFace:
    return ReloadFace(at=rfc3339(last.at_ns), ok=last.ok, mistakes=list(last.mistakes))


def _detectors(parts: Parts, project: str, counts: Sequence[OpenCount]) -> Iterator[RuleFace]:
    shadow = parts.shadows.of(project, time.time_ns())
    for rule in parts.rulebook.book.rules.detectors:
        found = _counts(counts, rule.alert, None)
        yield RuleFace(
            name=rule.alert,
            kind="detector",
            group=None,
            file=None,
            query=None,
            detector=rule.detector,
            params=dict(rule.params),
            source=rule.source,
            labels=dict(rule.labels),
            annotations={},
            interval_seconds=None,
            for_seconds=0.0,
            keep_firing_for_seconds=0.0,
            runbook=rule.runbook,
            state=_state(found),
            health="ok" if parts.judge.alive else "unknown",
            error=None,
            last_evaluation=None,
            evaluation_seconds=None,
            would_have_paged=shadow.holds(rule.alert),
            alerts=found,
        )


def _of_group(
    parts: Parts,
    group: PromGroup,
    report: dict[str, dict[str, str | float]],
    at_ns: int | None,
    project: str,
    counts: Sequence[OpenCount],
) -> Iterator[RuleFace]:
    shadow = parts.shadows.of(project, time.time_ns())
    state = GroupState(group)
    for rule, identity in zip(group.rules, identities(group.rules), strict=True):
        told = report.get(identity)
        error = str(told["error"]) if told is not None else ""
        found = _counts(counts, rule.alert, group.key)
        yield RuleFace(
            name=rule.name,
            kind="alert" if rule.alert else "record",
            group=group.name,
            file=group.file,
            query=rule.expr,
            detector=None,
            params={},
            source=None,
            labels=dict(rule.labels),
            annotations=dict(rule.annotations),
            interval_seconds=state.interval_ms / 1000,
            for_seconds=span(rule.hold) / 1000,
            keep_firing_for_seconds=span(rule.keep) / 1000,
            runbook=None,
            state=_state(found),
            health="unknown" if told is None else "err" if error else "ok",
            error=error or None,
            last_evaluation=None if told is None else rfc3339(at_ns),
            evaluation_seconds=None if told is None else float(told["seconds"]),
            would_have_paged=bool(rule.alert) and shadow.holds(rule.alert),
            alerts=found,
        )


def _counts(counts: Sequence[OpenCount], name: str, group: str | None) -> CountsFace:
    mine = [c for c in counts if c.alertname == name and c.rule_group == group]
    return CountsFace(
        pending=sum(c.count for c in mine if c.state == "pending"),
        firing=sum(c.count for c in mine if c.state == "firing"),
    )


def _state(found: CountsFace) -> Literal["inactive", "pending", "firing"]:
    return "firing" if found.firing else "pending" if found.pending else "inactive"
