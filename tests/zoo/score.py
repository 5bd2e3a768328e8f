"""What was said of a run, held against what had to be said: recall, naming, delay, false alarms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from scipy.stats import chi2

from tests.zoo.cases import Case, Must, Variant

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Raised:
    """One alert that fired.

    ``step`` is the newest step that the trainer had done when it did; the words are those of
    its last change.
    """

    alert: str
    severity: str
    step: int
    words: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Found:
    """What became of one alert that had to be raised; ``steps`` from the fault to it."""

    alert: str
    steps: int | None
    named: bool
    said: str = ""


@dataclass(frozen=True, slots=True)
class Scored:
    """One run."""

    title: str
    seed: int
    sick: bool
    steps: int
    found: tuple[Found, ...] = ()
    false: tuple[str, ...] = ()
    """Pages and tickets that nobody should have got, severity first."""
    troubles: tuple[str, ...] = field(default=())
    """Why the run itself does not count."""

    @property
    def short(self) -> list[str]:
        """What fell short, in words."""
        missed = [f"missed {f.alert}" for f in self.found if f.steps is None]
        wrong = [f"{f.alert} named wrongly: {f.said}" for f in self.found if _wrong(f)]
        return [*missed, *wrong, *(f"false {f}" for f in self.false), *self.troubles]


def _wrong(found: Found) -> bool:
    return found.steps is not None and not found.named


def score(
    case: Case, variant: Variant, title: str, seed: int, heard: Sequence[Raised], **facts: Any
) -> Scored:
    """Hold the alerts of one run against its case.

    Args:
        heard: All that fired, in order.
        facts: ``began``, the first step of the fault (None where a run has none); ``steps``,
            how many were done; ``troubles``.
    """
    wanted = case.wanted(variant)
    began = facts["began"] or 0
    false = [
        f"{r.severity} {r.alert} at step {r.step}"
        for r in heard
        if r.severity in ("page", "ticket") and not _meant(r, wanted, case.may, began)
    ]
    troubles = list(facts["troubles"])
    if wanted and facts["began"] is None:
        troubles.append("the fault never came")
    return Scored(
        title=title,
        seed=seed,
        sick=bool(wanted),
        steps=facts["steps"],
        found=tuple(_find(must, heard, began) for must in wanted),
        false=tuple(false),
        troubles=tuple(troubles),
    )


def _meant(raised: Raised, wanted: Sequence[Must], may: Sequence[str], began: int) -> bool:
    if raised.step < began:
        return False
    right = any(m.alert == raised.alert and raised.severity in m.severities for m in wanted)
    return right or raised.alert in may


def _find(must: Must, heard: Sequence[Raised], began: int) -> Found:
    right = [
        r
        for r in heard
        if r.alert in (must.alert, *must.alike)
        and r.severity in must.severities
        and r.step >= began
    ]
    if not right:
        return Found(must.alert, None, False)
    named = must.named is None or any(must.named(r.words) for r in right)
    keys = ("layer", "rank", "cause", "summary")
    said = "; ".join(f"{k}: {right[0].words[k]}" for k in keys if k in right[0].words)
    return Found(must.alert, right[0].step - began, named, said)


def bound(count: int, chances: int) -> float:
    """The rate that so many events in so many chances do not exceed, with 95 % confidence.

    The one-sided limit of a Poisson rate (Garwood 1936); three over the chances where there
    were none.
    """
    if not chances:
        return math.nan
    return float(chi2.ppf(CONFIDENCE, 2 * (count + 1))) / 2 / chances


@dataclass(frozen=True, slots=True)
class Sum:
    """All runs together."""

    runs: int
    sick_runs: int
    healthy_runs: int
    run_steps: int
    wanted: int
    raised: int
    named: int
    false_pages: int
    false_tickets: int
    false_pages_healthy: int
    false_tickets_healthy: int
    troubles: int

    @property
    def recall(self) -> float:
        return self.raised / self.wanted if self.wanted else math.nan

    @property
    def naming(self) -> float:
        return self.named / self.raised if self.raised else math.nan


def add(scored: Iterable[Scored]) -> Sum:
    """The sum; runs that had trouble of their own count as troubles alone."""
    held = list(scored)
    good = [s for s in held if not s.troubles]
    found = [f for s in good for f in s.found]
    false = [(s, f.split()[0]) for s in good for f in s.false]
    return Sum(
        runs=len(good),
        sick_runs=sum(s.sick for s in good),
        healthy_runs=sum(not s.sick for s in good),
        run_steps=sum(s.steps for s in good),
        wanted=len(found),
        raised=sum(f.steps is not None for f in found),
        named=sum(f.named for f in found),
        false_pages=sum(severity == "page" for _, severity in false),
        false_tickets=sum(severity == "ticket" for _, severity in false),
        false_pages_healthy=sum(severity == "page" for s, severity in false if not s.sick),
        false_tickets_healthy=sum(severity == "ticket" for s, severity in false if not s.sick),
        troubles=len(held) - len(good),
    )


def delay(found: Sequence[Found]) -> float | None:
    """Median steps from the fault to the alert, of those that were raised."""
    steps = [f.steps for f in found if f.steps is not None]
    return median(steps) if steps else None
