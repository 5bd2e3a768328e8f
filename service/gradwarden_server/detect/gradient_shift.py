"""24 GradientShift: gradient norms settle at another level though nobody changed the learning rate.

A cumulative sum (CUSUM; Page 1954) of the distance from the baseline, of the whole norm and of
each layer's, finds what is sustained. What a straight line through the time before foretells is
no shift: norms drift as training goes on. Layers may move against each other while the whole
stands still, so each counts by how far it went, whichever way. Every few steps are enough, and
neighbours in time say much the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.baseline import Floats
from gradwarden_server.detect.context import GroupView, RunContext
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity

_NORMAL = 1.4826
"""Makes the MAD of normally distributed data equal their standard deviation."""
_MOST_NAMES = 8


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/shift.yaml."""

    every_steps: int
    window: int
    past: int
    z_limit: float
    drift: float
    threshold: float
    layer_share: float
    layers: int
    decades: float
    residuals: float
    averaged: int
    lr_ratio: float
    clean_steps: int


@dataclass(frozen=True, slots=True, eq=False)
class _Story:
    """The mean of some series over time, oldest first; the last ``recent`` samples are the shift.

    ``mixed`` says that not all of them went the same way.
    """

    mean: Floats
    recent: int
    mixed: bool = False


class _Sums:
    """Cumulative sums of some series, upwards and downwards, and their recent values."""

    def __init__(self, series: int, window: int) -> None:
        self.sums = np.zeros((2, series))
        self.since = np.zeros((2, series), np.int64)
        self.ring = np.full((window, series), np.nan, np.float32)
        self.taken = 0

    def add(self, norms: Floats, z: Floats, p: Params) -> None:
        """Take one sample of all series; what was not observed moves nothing."""
        bounded = np.clip(z, -p.z_limit, p.z_limit)
        moves = np.stack([bounded, -bounded]) - p.drift
        self.sums = np.maximum(self.sums + np.where(np.isnan(moves), 0.0, moves), 0.0)
        self.since = np.where(self.sums > 0, self.since + 1, 0)
        with np.errstate(divide="ignore"):
            self.ring[self.taken % len(self.ring)] = np.log10(norms)
        self.taken += 1

    def far(self, threshold: float) -> NDArray[np.bool_]:
        """Series that have gone far in one direction."""
        return np.asarray((self.sums > threshold).any(axis=0), np.bool_)

    def story(self, columns: NDArray[np.int64]) -> _Story:
        """How these series went; those that went against most are turned round before a mean is
        taken, for where some layers rise while others fall a plain one would stand still."""
        order = np.roll(self.ring, -(self.taken % len(self.ring)), axis=0)[:, columns]
        order = order[-min(self.taken, len(order)) :].astype(np.float64)
        way = self.sums[:, columns].argmax(axis=0)
        sense = np.where(way == 0, 1.0, -1.0)
        most = 1 if sense.sum() >= 0 else -1
        order *= sense * most
        order[~np.isfinite(order)] = np.nan
        known = ~np.isnan(order)
        total = np.where(known, order, 0.0).sum(axis=1)
        count = known.sum(axis=1)
        mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        recent = int(np.median(self.since[way, columns]))
        return _Story(mean, recent, mixed=bool((sense != most).any()))

    def reset(self) -> None:
        """Begin to add up anew; the values stay."""
        self.sums[:] = 0.0
        self.since[:] = 0

    def state(self) -> list[Any]:
        return [self.sums, self.since, self.ring, self.taken]

    @classmethod
    def restored(cls, state: Sequence[Any]) -> _Sums:
        made = cls(0, 0)
        made.sums, made.since, made.ring, made.taken = state
        return made


class GradientShift(Detector):
    """See the module."""

    name: ClassVar[str] = "gradient_shift"
    severities: ClassVar[tuple[Severity, ...]] = ("note",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._mark: tuple[str, int] | None = None
        self._reset()

    def _reset(self) -> None:
        self._count = 0
        self._whole = _Sums(1, self.params.window)
        self._groups: dict[int, tuple[str, _Sums]] = {}
        self._steps: list[int] = []
        self._rates: list[float] = []

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if ctx.new_attempt:
            self._mark = None
        for _, event in step.events:
            if event.get("kind") == "mark":
                self._mark = str(event.get("name", "")), step.step
        if ctx.new_attempt or ctx.restarted:
            self._reset()
        if not ctx.groups or ctx.norm_judged is None:
            return ()
        self._count += 1
        found = self._sample(step, ctx) if self._count % self.params.every_steps == 0 else None
        if found is not None:
            self._incident.healthy_step(0)  # the newest shift is the one to be told
            self._incident.sign("note", found)
        elif self._incident.severity is not None:
            self._incident.healthy_step(self.params.clean_steps)
        return self._incident.conditions(self)

    def _sample(self, step: Step, ctx: RunContext) -> dict[str, str] | None:
        p = self.params
        assert ctx.norm_judged is not None
        self._steps = [*self._steps, step.step][-p.window :]
        self._rates = [*self._rates, math.nan if ctx.lr is None else ctx.lr][-p.window :]
        self._whole.add(np.array([ctx.norm]), ctx.norm_judged.z, p)
        for group, view in ctx.groups.items():
            layout, sums = self._groups.get(group, ("", self._whole))
            if layout != view.step.layout:
                sums = _Sums(len(view.layout), p.window)
                self._groups[group] = view.step.layout, sums
            assert view.judged is not None
            sums.add(view.norms, view.judged.z, p)
        return self._shifted(step, ctx)

    def _shifted(self, step: Step, ctx: RunContext) -> dict[str, str] | None:
        """Words about a shift that is sustained, abrupt, and not the learning rate's doing."""
        p = self.params
        layers = {group: sums.far(p.threshold) for group, (_, sums) in self._groups.items()}
        stories = [
            self._groups[group][1].story(np.flatnonzero(far))
            for group, far in layers.items()
            if far.sum() >= max(p.layers, p.layer_share * _judged(ctx.groups.get(group)))
        ]
        if self._whole.far(p.threshold)[0]:
            stories.insert(0, self._whole.story(np.zeros(1, np.int64)))
        if not stories:
            return None
        named = _names(ctx.groups, layers)
        for _, sums in self._groups.values():
            sums.reset()
        self._whole.reset()
        for story in stories:
            moved = self._departure(story.mean, story.recent)
            if moved is None:
                continue
            onset, excused = self._steps[-story.recent], self._rate_moved(story.recent)
            self._reset()  # what comes is compared with the new level alone
            return None if excused else self._words(step, moved, onset, named, story.mixed)
        return None

    def _departure(self, series: Floats, recent: int) -> float | None:
        """Decades by which the last samples left the line through those before them."""
        p = self.params
        past, now = series[:-recent], series[-recent:]
        at = np.arange(len(series), dtype=np.float64)
        known = ~np.isnan(past)
        if known.sum() < p.past or np.isnan(now).all():
            return None
        slope, level = np.polyfit(at[: len(past)][known], past[known], 1)
        line = slope * at + level
        off = past[known] - line[: len(past)][known]
        spread = _NORMAL * float(np.median(np.abs(off - np.median(off))))
        moved = float(np.nanmedian(now - line[len(past) :]))
        least = p.residuals * spread / math.sqrt(min(recent, p.averaged))
        return moved if abs(moved) > max(p.decades, least) else None

    def _rate_moved(self, recent: int) -> bool:
        """Whether the learning rate jumped around the onset; a schedule's steady decay is none."""
        around = [r for r in self._rates[-recent - 3 :] if r > 0]
        limit = self.params.lr_ratio
        return any(max(a, b) > limit * min(a, b) for a, b in pairwise(around))

    def _words(
        self, step: Step, moved: float, onset: int, named: Sequence[str], mixed: bool
    ) -> dict[str, str]:
        way = "rose" if moved > 0 else "fell"
        others = ", those of some layers the other way" if mixed else ""
        mark = f"mark {self._mark[0]} at step {self._mark[1]}" if self._mark else "no mark so far"
        return {
            "summary": f"gradient norms {way} to {10**moved:.3g}x what their course foretold, "
            f"since step {onset}{others}",
            "step": str(onset),
            "attempt": str(step.attempt),
            "layer": named[0] if named else "all layers alike",
            "layers": ", ".join(named[:_MOST_NAMES]),
            "mark": mark,
            "cause": "the data, the labels, the batch or the length of sequences changed, or the "
            "loss did: the learning rate did not",
            "first_action": "Nothing, if the change was meant; monitor.mark() says so next time.",
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        if ctx.armed:
            return Coverage(self.alert, "armed")
        hint = "" if "lr" in ctx.logged or ctx.steps == 0 else "; monitor.log(lr=lr) arms it sooner"
        return Coverage(self.alert, "waiting", ctx.waiting + hint)

    def state(self) -> dict[str, Any]:
        return {
            "incident": self._incident.state(),
            "mark": self._mark,
            "count": self._count,
            "whole": self._whole.state(),
            "groups": {g: [layout, sums.state()] for g, (layout, sums) in self._groups.items()},
            "steps": self._steps,
            "rates": self._rates,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        mark = state["mark"]
        self._mark = None if mark is None else (mark[0], mark[1])
        self._count = state["count"]
        self._whole = _Sums.restored(state["whole"])
        groups = state["groups"].items()
        self._groups = {int(g): (held[0], _Sums.restored(held[1])) for g, held in groups}
        self._steps, self._rates = list(state["steps"]), list(state["rates"])


def _judged(view: GroupView | None) -> int:
    """How many rows are armed."""
    return 0 if view is None or view.judged is None else int(view.judged.armed.sum())


def _names(views: Mapping[int, GroupView], layers: Mapping[int, NDArray[np.bool_]]) -> list[str]:
    """The layers that shifted, from the loss side on."""
    found: dict[str, None] = {}
    for group, far in layers.items():
        view = views.get(group)
        if view is not None and len(view.layout) == len(far):
            found |= dict.fromkeys(
                view.layout.layer(int(r)) for r in view.layout.backward if far[r]
            )
    return list(found)
