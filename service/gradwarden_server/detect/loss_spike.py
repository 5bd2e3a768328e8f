"""10 LossSpike: one loss far above its own noise. A note; spikes that heal are part of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.losses import LossTrack, marked
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity

_FIRST = 10
"""Losses after which the mean is one."""


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/loss.yaml."""

    z: float
    share: float
    smoothing_steps: int
    spread_steps: int
    spread_floor: float
    clean_steps: int


class LossSpike(Detector):
    """See the module."""

    name: ClassVar[str] = "loss_spike"
    severities: ClassVar[tuple[Severity, ...]] = ("note",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._track = LossTrack(params.smoothing_steps, params.spread_steps, params.spread_floor)
        self._highest = self._lowest = math.nan

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if ctx.new_attempt or marked(step.events):
            self._track.restart()
            self._highest = self._lowest = math.nan
        loss, p, track = ctx.loss, self.params, self._track
        if loss is None or not math.isfinite(loss):
            return ()
        armed, usual = track.armed, track.mean
        track.observe(loss)
        begun = track.count > _FIRST
        self._highest = max(track.mean, self._highest) if begun else track.mean
        self._lowest = min(track.mean, self._lowest) if begun else track.mean
        gained = self._highest - self._lowest
        if armed and track.z > p.z and track.excess > p.share * gained:
            self._incident.sign("note", self._words(step, ctx, loss, usual))
        else:
            self._incident.healthy_step(p.clean_steps)
        return self._incident.conditions(self)

    def _words(self, step: Step, ctx: RunContext, loss: float, usual: float) -> dict[str, str]:
        judged = ctx.norm_judged
        cause = "the gradient norm of this step is not known"
        if judged is not None and judged.armed[0]:
            cause = f"the gradient norm of this step is {float(judged.ratio[0]):.3g}x its median"
        lr = "" if ctx.lr is None else f", learning rate {ctx.lr:.3g}"
        return {
            "summary": f"loss {loss:.4g} at step {step.step}, usually {usual:.4g}",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "cause": cause + lr,
            "first_action": "Nothing, if it heals; look at the batch of this step if it comes "
            "back, or clip the gradient.",
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        return waiting_for_loss(self.alert, ctx, self._track.count, self.params.smoothing_steps)

    def state(self) -> dict[str, Any]:
        return {
            "incident": self._incident.state(),
            "track": self._track.state(),
            "range": [self._highest, self._lowest],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._track.restore(state["track"])
        self._highest, self._lowest = state["range"]


def waiting_for_loss(alert: str, ctx: RunContext, count: int, wanted: int) -> Coverage:
    """What a detector of losses needs: that some are logged."""
    if "loss" not in ctx.logged and ctx.steps:
        return Coverage(alert, "blind", "no loss is logged: add monitor.log(loss=loss)")
    if count < wanted:
        return Coverage(alert, "waiting", f"{count} of {wanted} steps")
    return Coverage(alert, "armed")
