"""27 TrainingInEvalMode: steps are trained while dropout does nothing and batch norm learns none.

A note, since some fine-tuning means it. The SDK looks at the modules every 50 steps and leaves
frozen batch norms and teachers out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.steps import Step
from gradwarden_server.detect.told import Told, few, names
from gradwarden_server.model import Condition, Severity


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/loop.yaml."""

    modules: int


class TrainingInEvalMode(Detector):
    """See the module."""

    name: ClassVar[str] = "eval_mode"
    severities: ClassVar[tuple[Severity, ...]] = ("note",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._told = Told("eval_mode", "eval mode")

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if ctx.new_attempt:
            self._told.begin()
        if self._told.hear(step):
            sick = [(rank, at, e) for rank, at, e in self._told if e.get("modules")]
            found = names([event for _, _, event in sick], "modules")
            if len(found) < self.params.modules:
                self._incident.healthy_step(1)
            elif not self._incident.worse_than("note"):
                self._incident.sign("note", self._words(step, found, sick[0][1]))
        return self._incident.conditions(self)

    def _words(self, step: Step, found: Sequence[str], at: int) -> dict[str, str]:
        return {
            "summary": f"training in eval mode at step {at}: {few(found)}",
            "step": str(at),
            "attempt": str(step.attempt),
            "layer": found[0],
            "modules": few(found, 8),
            "cause": "model.eval() before an evaluation without model.train() after it, or a "
            "model that was loaded in eval mode",
            "first_action": "Call model.train() before the next step; if it is meant, freeze the "
            "batch norms with requires_grad_(False) or set the dropouts' p to 0.",
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        return self._told.coverage(self.alert)

    def state(self) -> dict[str, Any]:
        return {"incident": self._incident.state(), "told": self._told.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._told.restore(state["told"])
