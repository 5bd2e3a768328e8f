"""A rule of a detector tried with other numbers on the runs of the last days."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from gradwarden import wire
from gradwarden_server.alerting.backtest import MOST_FRAMES, Busy, Trial, Tried
from gradwarden_server.alerting.findings import Finding, counts
from gradwarden_server.alerting.past import Face
from gradwarden_server.api.access import Principal
from gradwarden_server.api.deps import CREDENTIALS, Admin, Parts, PartsDep, Reader
from gradwarden_server.api.export import head_of
from gradwarden_server.api.plain import rfc3339
from gradwarden_server.api.problems import Problem
from gradwarden_server.api.runs import get_run
from gradwarden_server.detect import registry
from gradwarden_server.model import DRILL
from gradwarden_server.rules.spec import DetectorRule
from gradwarden_server.store.reading.export import RunExport
from gradwarden_server.transfer.head import Head

router = APIRouter(prefix="/v1/rules/backtest", tags=["alerts"], dependencies=CREDENTIALS)

_DAY_NS = 86_400 * 1_000_000_000
_LISTED = 200
_MOST_COUNTED = 100_000
_PAGE = 200


class BacktestBody(BaseModel):
    """Which rule to try, with which numbers, on which runs."""

    model_config = ConfigDict(extra="forbid")

    alert: str = Field(max_length=128, description="A rule of a detector")
    params: dict[str, int | float | str] = Field(
        {}, max_length=64, description="Those to change; the others stay as they are"
    )
    days: float = Field(7, gt=0, le=365, description="Runs that were heard within so many days")
    runs: int = Field(20, ge=1, le=100, description="Of those the newest")


class TallyFace(BaseModel):
    """How often a rule speaks, by severity, and in how many runs."""

    pages: int
    tickets: int
    notes: int
    runs: int


class TriedFace(BaseModel):
    """One thing that the rule finds; ``was_step`` where only the step differs."""

    run: str
    name: str
    change: Literal["same", "new", "gone", "moved"]
    severity: str
    attempt: int | None
    step: int | None
    was_step: int | None
    summary: str


class LeftOutFace(BaseModel):
    """A run that could not be judged."""

    run: str
    why: str


class BacktestFace(BaseModel):
    """A trial as it stands; while it runs, of the runs that are done."""

    alert: str
    params: dict[str, int | float | str]
    days: float
    state: Literal["running", "done", "cancelled", "failed"]
    why: str
    by: str
    started_at: str | None
    ended_at: str | None
    runs: int
    runs_done: int
    run: str = Field(description="The one that is judged now")
    frames: int
    most_frames: int = Field(description="Runs beyond so many frames are left out")
    old: TallyFace = Field(description="With the rules as they are")
    new: TallyFace = Field(description="With the numbers to try")
    findings: list[TriedFace] = Field(description="The first 200, changes before what stays")
    left_out: list[LeftOutFace]


@router.post("", summary="Try a rule with other numbers on stored runs", status_code=202)
def start(body: BacktestBody, who: Admin, parts: PartsDep) -> BacktestFace:
    """Nothing is raised and nobody is told. One trial at a time, in a process of low priority."""
    rules = parts.rulebook.book.rules
    rule = next((one for one in rules.detectors if one.alert == body.alert), None)
    if rule is None:
        detail = f"alert: {body.alert!r}; the name of a rule of a detector, see GET /v1/rules"
        raise Problem("malformed", detail, field="alert")
    changed = replace(rule, params={**rule.params, **_params(rule, body.params)})
    tried = replace(rules, detectors=tuple(changed if r is rule else r for r in rules.detectors))
    now_ns = time.time_ns()
    since_ns = now_ns - int(body.days * _DAY_NS)
    trial = Trial(
        project=who.project,
        alert=rule.alert,
        asked={"params": body.params, "days": body.days},
        runs=_chosen(parts, who.project, since_ns, body.runs),
        started_ns=now_ns,
        by=who.actor,
    )
    if not trial.runs:
        detail = f"days: {body.days:g}; no run was heard in that time, name more days"
        raise Problem("malformed", detail, field="days")
    try:
        parts.backtests.start(trial, [rules, tried], partial(_read, parts, who), parts.settings.url)
    except Busy as busy:
        detail = f"{busy} is under way; cancel it, or wait for its end"
        raise Problem("backtest-busy", detail) from None
    return _face(trial)


@router.get("", summary="The newest backtest of the project")
def newest(who: Reader, parts: PartsDep) -> BacktestFace | None:
    """Null where none was begun; it is kept in the memory of this process until the next one."""
    trial = parts.backtests.newest(who.project)
    return None if trial is None else _face(trial)


@router.delete("", summary="Cancel the backtest that is under way", status_code=204)
def cancel(who: Admin, parts: PartsDep) -> None:
    """What it found so far is kept."""
    if not parts.backtests.cancel(who.project):
        raise Problem("not-found", "no backtest of this project is under way")


def _params(rule: DetectorRule, asked: Mapping[str, int | float | str]) -> dict[str, object]:
    """The parameters as the detector takes them.

    Raises:
        Problem: one is unknown, of another kind, or out of bounds.
    """
    schema = registry.schemas()[rule.detector]
    taken: dict[str, object] = {}
    for name, value in asked.items():
        wanted = schema.get(name)
        if wanted is None:
            known = ", ".join(schema) or "it has none"
            detail = f"params.{name[:100]}: unknown to {rule.alert}; {known}"
            raise Problem("malformed", detail, field=f"params.{name[:100]}")
        if wanted == "float" and isinstance(value, int):
            value = float(value)
        if wanted == "int" and isinstance(value, float) and value.is_integer():
            value = int(value)
        low, high, bounds = _bounds(wanted, rule.params[name])
        bad = type(value).__name__ != wanted
        if bad or (isinstance(value, (int, float)) and not low <= value <= high):
            detail = f"params.{name}: {value!r}; expected {wanted}, {bounds}"
            raise Problem("malformed", detail, field=f"params.{name}")
        taken[name] = value
    return taken


def _bounds(wanted: str, stands: Any) -> tuple[int, int, str]:
    """Between what a number may be tried, and in words: what is counted is so much that a detector
    can hold it, and never nothing where the rule itself has some."""
    if wanted != "int":
        return 0, 2**53 - 1, "0 or more"
    low, high = min(1, stands), max(_MOST_COUNTED, stands)
    return low, high, f"{low} or more, at most {high:,}"


def _chosen(parts: Parts, project: str, since_ns: int, most: int) -> list[str]:
    """The newest runs that were heard since then, without drills."""
    found: list[str] = []
    cursor: str | None = None
    while len(found) < most:
        page = parts.fleet.page(project, before=cursor, limit=_PAGE)
        found += [
            one.run
            for one in page.items
            if one.last_seen_ns >= since_ns and one.environment != DRILL
        ]
        cursor = page.next_cursor
        if cursor is None:
            break
    return found[:most]


def _read(parts: Parts, who: Principal, run: str) -> tuple[Face, Head, Iterator[wire.Batch]]:
    """A run as a client of this service would fetch it; raises LookupError when it is gone."""
    record = parts.runs.get(who.project, run)
    if record is None:
        raise LookupError("it was deleted meanwhile")
    face = get_run(run, who, parts).model_dump(mode="json")
    batches = RunExport(parts.log).batches(who.project, run, record.position, None, None)
    return face, head_of(parts, who.project, record), batches


def _face(trial: Trial) -> BacktestFace:
    done = list(trial.done)
    findings = [one for tried in done for one in _told(tried)]
    findings.sort(key=lambda one: one.change == "same")
    return BacktestFace(
        alert=trial.alert,
        params=trial.asked["params"],
        days=trial.asked["days"],
        state=trial.state,
        why=trial.why,
        by=trial.by,
        started_at=rfc3339(trial.started_ns),
        ended_at=rfc3339(trial.ended_ns),
        runs=len(trial.runs),
        runs_done=len(done) + len(trial.left_out),
        run=trial.run,
        frames=trial.frames,
        most_frames=MOST_FRAMES,
        old=_tally([tried.old for tried in done]),
        new=_tally([tried.new for tried in done]),
        findings=findings[:_LISTED],
        left_out=[LeftOutFace(run=run, why=why) for run, why in list(trial.left_out.items())],
    )


def _told(tried: Tried) -> Iterator[TriedFace]:
    """What the rule finds in one run: what comes, what goes, what is found elsewhere, the rest."""
    apart = tried.difference
    changed = [*apart.new, *(now for _, now in apart.moved)]
    one = partial(_finding, tried)
    yield from (one("new", finding) for finding in apart.new)
    yield from (one("gone", finding) for finding in apart.gone)
    yield from (one("moved", now, was.step) for was, now in apart.moved)
    yield from (one("same", finding) for finding in tried.new if finding not in changed)


def _finding(
    tried: Tried,
    change: Literal["same", "new", "gone", "moved"],
    finding: Finding,
    was_step: int | None = None,
) -> TriedFace:
    return TriedFace(
        run=tried.run,
        name=tried.name,
        change=change,
        severity=finding.severity,
        attempt=finding.attempt,
        step=finding.step,
        was_step=was_step,
        summary=finding.summary,
    )


def _tally(runs: Sequence[Sequence[Finding]]) -> TallyFace:
    by_rule = counts(finding for run in runs for finding in run)
    row = next(iter(by_rule.values()), {})
    return TallyFace(
        pages=row.get("page", 0),
        tickets=row.get("ticket", 0),
        notes=row.get("note", 0),
        runs=sum(bool(run) for run in runs),
    )
