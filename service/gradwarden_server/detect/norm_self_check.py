"""15 NormSelfCheckFailed: our norm of the gradients is not the one that clipping returned.

Both measure the same values at the same moment, so a difference means that one of them is
wrong: a kernel, a join of shards, or a loop that clips other values than the optimizer gets.
``clip_norm`` is logged only where clipping covered all captured parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.context import GroupView, RunContext
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/self_check.yaml."""

    tolerance: float
    half_tolerance: float
    steps: int
    window_steps: int


class NormSelfCheckFailed(Detector):
    """See the module."""

    name: ClassVar[str] = "norm_self_check"
    severities: ClassVar[tuple[Severity, ...]] = ("ticket",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._failed: dict[int, list[bool]] = {}
        self._checked = 0

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if ctx.new_attempt:
            self._failed, self._checked = {}, 0
        looked = sick = False
        for group, view in ctx.groups.items():
            pair = _norms(step, group, view)
            if pair is None:
                continue
            looked = True
            self._checked += 1
            failed = self._apart(view, *pair)
            recent = [*self._failed.get(group, []), failed][-self.params.window_steps :]
            self._failed[group] = recent
            if failed and sum(recent) >= self.params.steps:
                sick = True
                if not self._incident.worse_than("ticket"):
                    self._incident.sign("ticket", self._words(step, ctx, *pair))
        if sick:
            self._incident.clean = 0
        elif looked:
            self._incident.healthy_step(self.params.window_steps)
        return self._incident.conditions(self) if looked else ()

    def _apart(self, view: GroupView, ours: float, theirs: float) -> bool:
        allowed = self.params.half_tolerance if view.layout.half else self.params.tolerance
        return abs(ours - theirs) > allowed * max(ours, theirs)

    def _words(self, step: Step, ctx: RunContext, ours: float, theirs: float) -> dict[str, str]:
        scale = step.scalar("loss_scale")
        cause = (
            "a fault of gradwarden or of the clipping: both measured the same parameters at the "
            "same moment"
        )
        action = "Training is not touched by this. Report it with the versions of torch and driver."
        if scale is not None and scale > 1 and abs(theirs / ours / scale - 1) < 0.1:
            cause = f"clipping saw gradients still multiplied by the loss scale {scale:g}"
            action = "Call scaler.unscale_(optimizer) before clipping: it clips scaled gradients."
        return {
            "summary": f"sum over layers gives a gradient norm of {ours:.6g}, clipping returned "
            f"{theirs:.6g}",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "norm_of_layers": f"{ours:.9g}",
            "norm_of_clipping": f"{theirs:.9g}",
            "cause": cause,
            "first_action": action,
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        if self._checked >= self.params.steps:
            return Coverage(self.alert, "armed")
        if self._checked or ctx.steps < self.params.window_steps:
            done = f"{self._checked} of {self.params.steps} clipped steps"
            return Coverage(self.alert, "waiting", done)
        why = "no norm to check against: clip with torch.nn.utils.clip_grad_norm_"
        return Coverage(self.alert, "blind", why)

    def state(self) -> dict[str, Any]:
        return {
            "incident": self._incident.state(),
            "failed": self._failed,
            "checked": self._checked,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._failed = {int(group): list(held) for group, held in state["failed"].items()}
        self._checked = state["checked"]


def _norms(step: Step, group: int, view: GroupView) -> tuple[float, float] | None:
    """Our norm and clipping's, where both are numbers and above zero."""
    if view.step.capture != "pre_clip" or not (view.clean and view.step.complete):
        return None
    said = step.ranks.get(view.step.rank)
    theirs = math.nan if said is None else said.scalars.get("clip_norm", math.nan)
    ours = math.sqrt(view.square)
    usable = math.isfinite(theirs) and math.isfinite(ours) and theirs > 0 and ours > 0
    return (ours, theirs) if usable else None
