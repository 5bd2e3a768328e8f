"""13 ClipSaturation: clipping decides the size of nearly every step.

Where it cuts most steps a little it is a note, and for policies and heavy tails it is the
intention. Where it leaves less than a fiftieth of the gradient, the threshold is not meant for
this gradient: the learning rate no longer says how far a step goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.baseline import Floats
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.losses import told
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity

_UNCLIPPED = 0.999
"""``max_norm / (norm + 1e-6)`` never quite reaches 1 for a norm at the threshold."""
_LOOK_EVERY = 50


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/updates.yaml."""

    note_share: float
    ticket_median: float
    window_steps: int


class ClipSaturation(Detector):
    """See the module."""

    name: ClassVar[str] = "clip_saturation"
    severities: ClassVar[tuple[Severity, ...]] = ("ticket", "note")
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._begin()

    def _begin(self) -> None:
        self._ring: Floats = np.full((2, self.params.window_steps), np.nan)
        self._seen = 0
        self._lr: float | None = None

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if ctx.new_attempt:
            self._begin()
        coefficient = told(step, "clip_coefficient")
        if coefficient is None or not 0 <= coefficient <= 1 or step.stepped is False:
            return ()
        before, self._lr = self._lr, ctx.lr
        rising = before is not None and ctx.lr is not None and ctx.lr > before
        if rising or not ctx.restarts.open or ctx.capture == "post_clip":
            return ()
        at = self._seen % self.params.window_steps
        self._ring[0, at] = coefficient
        self._ring[1, at] = told(step, "clip_norm") or np.nan
        self._seen += 1
        if self._seen >= self.params.window_steps and self._seen % _LOOK_EVERY == 0:
            self._look(step)
        return self._incident.conditions(self)

    def _look(self, step: Step) -> None:
        p, coefficients = self.params, self._ring[0]
        middle = float(np.median(coefficients))
        active = float(np.mean(coefficients < _UNCLIPPED))
        severity: Severity | None = None
        if middle < p.ticket_median:
            severity = "ticket"
        elif active > p.note_share:
            severity = "note"
        if severity is None or (severity == "note" and self._incident.severity == "ticket"):
            self._incident.healthy_step(1)
        if severity is not None and not self._incident.worse_than(severity):
            self._incident.sign(severity, self._words(step, middle, active))

    def _words(self, step: Step, middle: float, active: float) -> dict[str, str]:
        p = self.params
        norms = np.roll(self._ring[1], -(self._seen % p.window_steps))
        half = p.window_steps // 2
        known = [part[~np.isnan(part)] for part in (norms[:half], norms[half:])]
        trend = "the norm before clipping is not known"
        limit = told(step, "clip_max_norm")
        if all(map(len, known)):
            before, after = (float(np.median(part)) for part in known)
            trend = f"median norm before clipping {before:.3g}, then {after:.3g}"
        most = "" if limit is None else f" at max_norm {limit:g}"
        scale = told(step, "loss_scale")
        cause = f"{active:.0%} of the steps are clipped{most}, half to less than {middle:.2g}"
        action = (
            "Nothing, if that is meant. Else raise max_norm to about the usual norm, and lower "
            "the learning rate by as much as steps would grow."
        )
        if scale is not None and scale > 1 and middle * scale > p.ticket_median:
            cause += f"; the loss scale is {scale:g}: they may be clipped while still scaled"
            action = "Call scaler.unscale_(optimizer) before clipping."
        return {
            "summary": f"clipping leaves {middle:.2g} of the gradient in the median of "
            f"{p.window_steps} steps, {active:.0%} of them clipped",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "pre_clip_trend": trend,
            "cause": f"{cause}; {trend}",
            "first_action": action,
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        wanted = self.params.window_steps
        if "clip_coefficient" in ctx.logged or ctx.steps < _LOOK_EVERY:
            if self._seen >= wanted:
                return Coverage(self.alert, "armed")
            return Coverage(self.alert, "waiting", f"{self._seen} of {wanted} steps")
        why = "no clipping was seen: torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)"
        return Coverage(self.alert, "blind", why)

    def state(self) -> dict[str, Any]:
        return {
            "incident": self._incident.state(),
            "ring": self._ring,
            "seen": self._seen,
            "lr": self._lr,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._ring, self._seen, self._lr = state["ring"], state["seen"], state["lr"]
