"""9 LossScaleCollapse: the loss scale of half precision falls, or steps are skipped for it.

Before the first applied step skips are how a scale finds its level, 32 of them at most: torch's
scaler starts at 2^16 and halves. After it a scale that grows every so many steps is too large now
and then, and one skip pays for that. More than five times as many are a sickness, and so are many
in a row: values overflow whatever the scale is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gradwarden_server.detect import origin
from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.losses import told
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity

_HISTORY = 12
"""Changes of the scale that an alert shows."""


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/half_precision.yaml."""

    calibration_skips: int
    skipped_share: float
    skipped_growths: float
    window_steps: int
    in_a_row: int
    least_scale: float
    floor_skips: int
    clean_steps: int


class LossScaleCollapse(Detector):
    """See the module."""

    name: ClassVar[str] = "loss_scale_collapse"
    severities: ClassVar[tuple[Severity, ...]] = ("page", "ticket")
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._begin()

    def _begin(self) -> None:
        self._scale: float | None = None
        self._history: list[tuple[int, float]] = []
        self._skips: deque[bool] = deque(maxlen=self.params.window_steps)
        self._skipped = 0
        """How many of them."""
        self._row = self._stuck = 0
        self._applied = False
        self._largest = 0.0
        """The largest scale at which a step was applied."""
        self._falls = False
        self._since_change = 0
        self._growth_interval: int | None = None

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if ctx.new_attempt:
            self._begin()
        scale = told(step, "loss_scale")
        if step.eventful or (scale is None and self._scale is None):
            return ()
        self._follow(step, scale if scale is not None else self._scale or 0.0)
        if step.stepped is False:
            self._row += 1
            severity = self._weigh()
            if severity is not None:
                if not self._incident.worse_than(severity):
                    self._incident.sign(severity, self._words(step, ctx))
                self._incident.clean = 0
        else:
            self._row = self._stuck = 0
            self._applied = True
            self._largest = max(self._largest, self._scale or 0.0)
            self._incident.healthy_step(self.params.clean_steps)
        return self._incident.conditions(self)

    def _follow(self, step: Step, scale: float) -> None:
        before, self._scale = self._scale, scale
        skipped = step.stepped is False
        if self._applied:
            if len(self._skips) == self._skips.maxlen:
                self._skipped -= self._skips[0]
            self._skips.append(skipped)
            self._skipped += skipped
        self._since_change += 1
        if before == scale:
            self._stuck = self._stuck + 1 if skipped and self._row else 0
            return
        self._stuck = 0
        if before is not None:
            self._falls = self._falls or scale < before
            if scale > before:
                least = self._growth_interval or self._since_change
                self._growth_interval = min(least, self._since_change)
        self._since_change = 0
        self._history = [*self._history, (step.step, scale)][-_HISTORY:]

    def _weigh(self) -> Severity | None:
        p = self.params
        if not self._applied:
            return "page" if self._row > p.calibration_skips else None
        assert self._scale is not None
        collapsed = self._scale < p.least_scale <= self._largest
        at_floor = self._falls and self._stuck >= p.floor_skips
        if self._row >= p.in_a_row or collapsed or at_floor:
            return "page"
        growths = p.skipped_growths / self._growth_interval if self._growth_interval else 0.0
        allowed = max(p.skipped_share, growths) * p.window_steps
        return "ticket" if self._skipped > allowed else None

    def _words(self, step: Step, ctx: RunContext) -> dict[str, str]:
        history = ", ".join(f"{scale:g} at {at}" for at, scale in self._history)
        many = f"{self._skipped} of the last {len(self._skips)} steps skipped"
        if not self._applied:
            many = f"no step was applied in the first {self._row}"
        elif self._row >= self.params.in_a_row:
            many = f"{self._row} steps in a row skipped"
        words = {
            "summary": f"loss scale {self._scale:g} at step {step.step}: {many}",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "scale_history": history,
            "skipped": many,
        }
        words |= self._where(step, ctx)
        return words

    def _where(self, step: Step, ctx: RunContext) -> dict[str, str]:
        """The layer in which it overflows, and whether a scale can help at all."""
        view = next((v for v in ctx.groups.values() if not v.clean), None)
        cause = "gradients overflow at every scale: activations or the loss are too large for fp16"
        action = (
            "The weights are unharmed, and the run makes no progress. Compute the named layer in "
            "float32, or train in bfloat16."
        )
        if view is None or view.step.capture == "post_clip":
            return {"cause": cause, "first_action": action}
        at = origin.find(view.bad, view.observed, view.layout.backward.tolist())
        layer = view.layout.layer(at.first_bad)
        if view.step.column("nan")[at.first_bad] > 0:
            cause = (
                f"the gradient of {layer} is NaN, not only too large, which no scale heals: "
                "the loss, the input, or an overflow in the forward pass"
            )
        return {
            "layer": layer,
            "bracket": origin.bracket(at, view),
            "cause": cause,
            "first_action": action,
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        if self._scale is not None:
            return Coverage(self.alert, "armed")
        if ctx.steps == 0:
            return Coverage(self.alert, "waiting", "0 of 1 steps")
        why = "no loss scale: nothing to watch unless fp16 is used; then torch.amp.GradScaler, or "
        return Coverage(self.alert, "blind", why + "monitor.log(loss_scale=scale)")

    def state(self) -> dict[str, Any]:
        return {
            "incident": self._incident.state(),
            "skips": list(self._skips),
            **{name: getattr(self, f"_{name}") for name in _HELD},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._skips = deque(state["skips"], maxlen=self.params.window_steps)
        for name in _HELD:
            setattr(self, f"_{name}", state[name])
        self._history = [(held[0], held[1]) for held in state["history"]]


_HELD = (
    "scale", "history", "skipped", "row", "stuck", "applied", "largest", "falls",
    "since_change", "growth_interval",
)  # fmt: skip
