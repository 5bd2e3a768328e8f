"""12 UpdateRatioOutOfBand: the optimizer moves weights by far too much, or not at all.

The ratio of an update to its weight is measured for a few rows at a time, so a row is judged over
its own measurements. A tensor that began at zero has no size to be compared with until it has
grown for a while. A row that never moves while others do is frozen by a learning rate of its own,
unless its type is too coarse for its updates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.baseline import Flags, Floats
from gradwarden_server.detect.context import GroupView, LayoutView, RunContext
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity

_KINDS = {"matrix", "head", "adapter"}
_COARSE = {"bfloat16", "float16"}
_HIGH, _LOW = 1.0, -1.0
_STILL = -29.0
"""log10 of a ratio at or below which nothing moved at all."""
_EARLY = 20
"""Captures in which all weights are measured, see the SDK's gauge."""

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/updates.yaml."""

    highest: float
    lowest: float
    least_weight_rms: float
    lr_share: float
    steps: int
    observations: int
    zero_steps: int


class _Rows:
    """What is known of the rows of one group."""

    def __init__(self, layout: str, view: LayoutView) -> None:
        count, parameters = len(view), view.layout.parameters
        self.layout = layout
        self.kind: Flags = np.array([p.kind in _KINDS for p in parameters], np.bool_)
        dtypes = [p.dtype.removeprefix("torch.") for p in parameters]
        self.coarse: Flags = np.array([d in _COARSE for d in dtypes], np.bool_)
        self.sizes = view.sizes
        self.weight: Floats = np.full(count, np.nan)
        """Root mean square of the weights, as last measured."""
        self.from_step: Floats = np.full(count, -np.inf)
        """Judged from this step on; infinite while the weights are zero."""
        self.side: Floats = np.zeros(count)
        self.times: Floats = np.zeros(count)
        self.since: Floats = np.full(count, np.nan)
        self.last: Floats = np.full(count, np.nan)
        """log10 of the newest ratio of each row, judged or not."""

    def weigh(self, at: Index, norms: NDArray[np.float32], step: int, p: Params) -> None:
        """Take the norms of the weights of some rows."""
        known = norms == norms
        at, rms = at[known], norms[known] / np.sqrt(self.sizes[at[known]])
        sized = rms > p.least_weight_rms
        grew = at[sized & np.isposinf(self.from_step[at])]
        self.from_step[at[~sized]] = np.inf
        self.from_step[grew] = step + p.zero_steps
        self.weight[at] = rms

    def follow(self, at: Index, side: Floats, step: int) -> None:
        """Take the judged ratios of some rows: on which side of the band they are, 0 within."""
        same = (side == self.side[at]) & (side != 0)
        self.times[at] = np.where(same, self.times[at] + 1, np.abs(side))
        self.since[at[~same]] = step
        self.side[at] = side

    def state(self) -> list[Any]:
        return [
            self.layout, self.kind, self.coarse, self.sizes, self.weight, self.from_step,
            self.side, self.times, self.since, self.last,
        ]  # fmt: skip

    @classmethod
    def restored(cls, state: Sequence[Any]) -> _Rows:
        made = cls.__new__(cls)
        (
            made.layout, made.kind, made.coarse, made.sizes, made.weight, made.from_step,
            made.side, made.times, made.since, made.last,
        ) = state  # fmt: skip
        return made


class UpdateRatioOutOfBand(Detector):
    """See the module."""

    name: ClassVar[str] = "update_ratio"
    severities: ClassVar[tuple[Severity, ...]] = ("ticket",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._high, self._low = math.log10(params.highest), math.log10(params.lowest)
        self._groups: dict[int, _Rows] = {}
        self._measured = 0

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if ctx.new_attempt:
            self._groups, self._measured = {}, 0
        looked = False
        for group, view in ctx.groups.items():
            looked = self._look(step, ctx, group, view) or looked
        if not looked:
            return ()
        if not self._tell(step, ctx):
            self._incident.healthy_step(1)
        return self._incident.conditions(self)

    def _look(self, step: Step, ctx: RunContext, group: int, view: GroupView) -> bool:
        """Learn from one group's step; whether rows were judged."""
        p, found, early = self.params, view.step.updates, ctx.steps <= _EARLY
        if found is None and not early:
            return False
        rows = self._groups.get(group)
        if rows is None or rows.layout != view.step.layout:
            rows = self._groups[group] = _Rows(view.step.layout, view.layout)
        norms = view.step.column("weight_l2")
        if early:
            rows.weigh(np.arange(len(norms)), norms, step.step, p)
        if found is None:
            return False
        at, ratios = found
        if not early:
            rows.weigh(at, norms[at], step.step, p)
        rows.last[at] = ratios
        if step.stepped is False or not self._at_work(ctx):
            return False
        self._measured += 1
        judged = rows.kind[at] & (rows.weight[at] > p.least_weight_rms)
        judged &= (step.step >= rows.from_step[at]) & (view.step.column("l2")[at] > 0)
        if (rows.last > self._low).any():  # others move: its own learning rate is zero
            judged &= rows.coarse[at] | (ratios > _STILL)
        if not judged.any():
            return False
        side = np.where(ratios > self._high, _HIGH, np.where(ratios < self._low, _LOW, 0.0))
        rows.follow(at[judged], side[judged], step.step)
        return True

    def _at_work(self, ctx: RunContext) -> bool:
        """Past the warm-up, and before the learning rate has nearly vanished."""
        if ctx.lr is None or not ctx.restarts.open:
            return False
        return 0 < self.params.lr_share * ctx.peak_lr <= ctx.lr

    def _tell(self, step: Step, ctx: RunContext) -> bool:
        p = self.params
        for group, view in ctx.groups.items():
            rows = self._groups.get(group)
            if rows is None or rows.times.max() < p.observations:
                continue
            out = (rows.times >= p.observations) & (step.step - rows.since >= p.steps)
            found = np.flatnonzero(out & (rows.side != 0))
            if not len(found):
                continue
            if not self._incident.worse_than("ticket"):
                self._incident.sign("ticket", self._words(step, ctx, view, rows, found))
            self._incident.clean = 0
            return True
        return False

    def _words(
        self, step: Step, ctx: RunContext, view: GroupView, rows: _Rows, found: NDArray[np.int64]
    ) -> dict[str, str]:
        p, first = self.params, int(found[0])
        high = bool(rows.side[first] == _HIGH)
        alike = found[rows.side[found] == rows.side[first]]
        layers = [view.layout.layer(int(row)) for row in alike]
        more = f" and {len(layers) - 5} more" if len(layers) > 5 else ""
        limit = f"more than {p.highest:g}" if high else f"less than {p.lowest:g}"
        if high:
            cause = "each step overwrites much of the weights: the learning rate is too large"
            action = f"Lower the learning rate (now {ctx.lr:.3g}), at least of these layers."
        elif bool(rows.coarse[first]):
            cause = "updates are smaller than what the weights' type can resolve, and are lost"
            action = "Keep master weights in float32, or round stochastically."
        else:
            cause = "the weights stand still: the learning rate is too small for this gradient"
            action = f"Raise the learning rate (now {ctx.lr:.3g}); look for a unit or a schedule "
            action += "that divides it."
        return {
            "summary": f"weights of {layers[0]} move by {limit} of their size a step, "
            f"{len(layers)} layers since step {int(rows.since[first])}",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "layer": layers[0],
            "layers": ", ".join(layers[:5]) + more,
            "learning_rate": f"{ctx.lr:.6g}",
            "cause": cause,
            "first_action": action,
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        if ctx.steps == 0:
            return Coverage(self.alert, "waiting", f"0 of {self.params.steps} steps")
        if ctx.lr is None:
            return Coverage(self.alert, "blind", "no learning rate: add monitor.log(lr=lr)")
        if not self._measured and ctx.steps >= self.params.steps:
            why = "update ratios are not measured: "
            return Coverage(
                self.alert, "blind", why + 'gradwarden.watch(model, optimizer, preset="standard")'
            )
        if ctx.steps < self.params.steps:
            return Coverage(self.alert, "waiting", f"{ctx.steps} of {self.params.steps} steps")
        return Coverage(self.alert, "armed")

    def state(self) -> dict[str, Any]:
        return {
            "incident": self._incident.state(),
            "groups": {group: rows.state() for group, rows in self._groups.items()},
            "measured": self._measured,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._groups = {int(g): _Rows.restored(held) for g, held in state["groups"].items()}
        self._measured = state["measured"]
