"""Thresholds from stored runs: the least change of one number that keeps a rule quiet on good runs.

Pure; who judges the runs is an argument. A rule that is quiet on n runs may still speak falsely in
a share of all runs: with 95 % confidence in no more than 1 - 0.05^(1/n), since otherwise n quiet
runs in a row would have had a chance below 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gradwarden_server.detect.knobs import KNOBS, Knob
from gradwarden_server.rules.spec import DetectorRule

LEAST_RUNS = 5
"""Good runs below which nothing is proposed: five quiet ones still leave room for 45 % false."""
FACTORS = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
"""How far a number is turned, at most ten times: beyond that another rule is wanted."""
_HALVINGS = 3
_DIGITS = 2

Quiet = Callable[[Sequence[DetectorRule]], Sequence[bool]]
"""Whether each of some variants of a rule says nothing, page or ticket, on the good runs."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """One number of one rule, as it is and as it might be; ``factor`` is how far it turned."""

    alert: str
    param: str
    old: float
    new: float
    factor: float
    rule: DetectorRule


def bound(runs: int) -> float:
    """The largest share of runs with a false alert that so many quiet runs leave possible, 95 %."""
    return 1.0 if runs == 0 else 1 - 0.05 ** (1 / runs)


def proposals(rule: DetectorRule, quiet: Quiet) -> list[Proposal]:
    """Every number of the rule that alone makes it quiet, the least change first; maybe none."""
    before = 1.0
    for factor in FACTORS:
        made = [p for p in _turned(rule, factor) if p is not None]
        found = [p for p, ok in zip(made, quiet([p.rule for p in made]), strict=True) if ok]
        if found:
            return sorted((_closer(rule, p, before, quiet) for p in found), key=_change)
        before = factor
    return []


def _closer(rule: DetectorRule, found: Proposal, before: float, quiet: Quiet) -> Proposal:
    """As little as will do, between a factor that did not and one that did."""
    low, best = before, found
    for _ in range(_HALVINGS):
        middle = _one(rule, found.param, math.sqrt(low * best.factor))
        if middle is None or middle.new == best.new:
            break
        if quiet([middle.rule])[0]:
            best = middle
        else:
            low = middle.factor
    return best


def _turned(rule: DetectorRule, factor: float) -> list[Proposal | None]:
    return [_one(rule, name, factor) for name in KNOBS.get(rule.detector, {})]


def _one(rule: DetectorRule, name: str, factor: float) -> Proposal | None:
    """A number turned by a factor and rounded onward; None where that changes or means nothing."""
    knob, old = KNOBS[rule.detector][name], rule.params[name]
    new = _rounded(knob, old, knob.turned(float(old), factor))
    limit = math.inf if knob.within is None else float(rule.params[knob.within])
    if new == old or new > limit:
        return None
    changed = replace(rule, params={**rule.params, name: new})
    return Proposal(rule.alert, name, old, new, factor, changed)


def _rounded(knob: Knob, old: float, new: float) -> float:
    """To two digits, or whole where it is whole, and never back towards the old one."""
    if isinstance(old, int):
        return math.ceil(new) if knob.way == "up" else math.floor(new)
    if knob.way == "towards one":
        return round(1 - _digits(1 - new, math.floor), 12)
    return _digits(new, math.ceil if knob.way == "up" else math.floor)


def _digits(value: float, onward: Callable[[float], int]) -> float:
    if value == 0:
        return 0.0
    power = _DIGITS - 1 - math.floor(math.log10(abs(value)))
    # Twice rounded: 11.000000000000002 is not to become 12.
    return round(onward(round(value * 10.0**power, 6)) / 10.0**power, 12)


def _change(proposal: Proposal) -> tuple[float, str]:
    return proposal.factor, proposal.param
