"""11 LossPlateau: the smoothed loss no longer improves. Off until a window is set.

Only the owner of a run knows how long it may stand still, so the window has no useful default.
The window is cut into blocks; each is the mean of its running medians, so that spikes do not count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.loss_spike import waiting_for_loss
from gradwarden_server.detect.losses import LossTrack, marked
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity

_BLOCKS = 10
"""Of a window: half of them against the other half."""


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/loss_curves.yaml."""

    window_steps: int
    improvement: float
    smoothing_steps: int
    spread_steps: int
    spread_floor: float


class LossPlateau(Detector):
    """See the module."""

    name: ClassVar[str] = "loss_plateau"
    severities: ClassVar[tuple[Severity, ...]] = ("ticket",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._track = LossTrack(params.smoothing_steps, params.spread_steps, params.spread_floor)
        self._block = max(1, params.window_steps // _BLOCKS)
        self._begin()

    def _begin(self) -> None:
        self._sum, self._count = 0.0, 0
        self._means: list[float] = []
        self._starts: list[int] = []

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if self.params.window_steps <= 0:
            return ()
        if ctx.new_attempt or marked(step.events):
            self._track.restart()
            self._begin()
        loss = ctx.loss
        if loss is None or not math.isfinite(loss):
            return ()
        self._track.observe(loss)
        if not self._count:
            self._starts = [*self._starts, step.step][-_BLOCKS:]
        self._sum += self._track.median
        self._count += 1
        if self._count >= self._block:
            self._means = [*self._means, self._sum / self._count][-_BLOCKS:]
            self._sum, self._count = 0.0, 0
            self._look(step)
        return self._incident.conditions(self)

    def _look(self, step: Step) -> None:
        if len(self._means) < _BLOCKS:
            return
        half = _BLOCKS // 2
        before, after = sum(self._means[:half]) / half, sum(self._means[half:]) / half
        # Halves lie half a window apart, so the whole window improved by twice their difference.
        improved = 2 * (before - after) / max(abs(before), 1e-12)
        if improved >= self.params.improvement:
            self._incident.healthy_step(1)
        elif not self._incident.worse_than("ticket"):
            self._incident.sign("ticket", self._words(step, before, after))

    def _words(self, step: Step, before: float, after: float) -> dict[str, str]:
        window = f"steps {self._starts[0]} to {step.step}"
        return {
            "summary": f"loss {after:.4g} at step {step.step}, {before:.4g} half a window before: "
            "no improvement",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "window": window,
            "cause": f"the smoothed loss improved by less than {self.params.improvement:.2%} over "
            f"{window}: it has converged, or the learning rate is too small or too large",
            "first_action": "Compare with the validation loss: stop if both stand still; else "
            "lower the learning rate.",
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        window = self.params.window_steps
        if window <= 0:
            why = "no window is set: give LossPlateau window_steps in alert_rules/loss_curves.yaml"
            return Coverage(self.alert, "blind", why)
        return waiting_for_loss(self.alert, ctx, self._track.count, window)

    def state(self) -> dict[str, Any]:
        return {
            "incident": self._incident.state(),
            "track": self._track.state(),
            "block": [self._sum, self._count, self._means, self._starts],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._track.restore(state["track"])
        self._sum, self._count, self._means, self._starts = state["block"]
