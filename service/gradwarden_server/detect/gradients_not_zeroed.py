"""7 GradientsNotZeroed: steps begin with gradients that the optimizer consumed before.

Seen by the SDK where it happens: see ``gradwarden.kept``. Accumulation over micro-batches, what a
GAN's generator leaves in its critic, and clearing by whatever means are healthy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.steps import Step
from gradwarden_server.detect.told import Told, number
from gradwarden_server.model import Condition, Severity


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/loop.yaml."""

    steps: int


class GradientsNotZeroed(Detector):
    """See the module."""

    name: ClassVar[str] = "gradients_not_zeroed"
    severities: ClassVar[tuple[Severity, ...]] = ("ticket",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._told = Told("gradients_kept", "zeroing")

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if ctx.new_attempt:
            self._told.begin()
        if self._told.hear(step):
            enough = self.params.steps
            sick = [(at, e) for _, at, e in self._told if number(e, "steps") >= enough]
            if not sick:
                self._incident.healthy_step(1)
            elif not self._incident.worse_than("ticket"):
                self._incident.sign("ticket", self._words(step, *sick[0]))
        return self._incident.conditions(self)

    def _words(self, step: Step, at: int, event: Mapping[str, Any]) -> dict[str, str]:
        steps = number(event, "steps")
        optimizer = f"{event.get('optimizer', 'optimizer')} (number {event.get('number', 0)})"
        return {
            "summary": f"{optimizer} applies old gradients again: not cleared in {steps} steps in "
            f"a row up to {at}",
            "step": str(at),
            "attempt": str(step.attempt),
            "optimizer": optimizer,
            "cause": "zero_grad() is missing between the optimizer's step and the next backward: "
            "each gradient is the sum of all before it",
            "first_action": "Call optimizer.zero_grad() once a step, before backward, and go back "
            "to a checkpoint from before it began.",
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        return self._told.coverage(self.alert)

    def state(self) -> dict[str, Any]:
        return {"incident": self._incident.state(), "told": self._told.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._told.restore(state["told"])
