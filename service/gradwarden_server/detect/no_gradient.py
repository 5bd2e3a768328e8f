"""6 NoGradient: parameters that should train and never had a gradient. One ticket for all.

The SDK counts the steps of each optimizer by itself and leaves experts out, so that neither a
GAN's slower half nor an idle expert looks detached. Where the model declares unused parameters
many more steps must pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gradwarden import wire
from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.steps import Step
from gradwarden_server.detect.told import Told, few, names, number
from gradwarden_server.model import Condition, Severity


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/loop.yaml."""

    steps: int
    declared_steps: int


class NoGradient(Detector):
    """See the module."""

    name: ClassVar[str] = "no_gradient"
    severities: ClassVar[tuple[Severity, ...]] = ("ticket",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._told = Told("no_gradient", "")

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if ctx.new_attempt:
            self._told.begin()
        if self._told.hear(step):
            sick = [event for _, _, event in self._told if self._counts(event)]
            if sick:
                self._incident.sign("ticket", self._words(step, sick))
            else:
                self._incident.healthy_step(1)
        return self._incident.conditions(self) if self._told.any else ()

    def _counts(self, event: wire.Event) -> bool:
        enough = self.params.declared_steps if event.get("declared") else self.params.steps
        return bool(event.get("parameters")) and number(event, "steps") >= enough

    def _words(self, step: Step, events: Sequence[wire.Event]) -> dict[str, str]:
        found = names(events, "parameters")
        layers = list(dict.fromkeys(n.rpartition(".")[0] or n for n in found))
        count = max(len(found), *(number(event, "count") for event in events))
        optimizers = ", ".join(dict.fromkeys(str(e.get("optimizer", "")) for e in events))
        steps = max(number(event, "steps") for event in events)
        return {
            "summary": f"{count} trainable parameters had no gradient in {steps} steps: "
            f"{few(found)}",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "layer": layers[0],
            "layers": few(layers, 8),
            "parameters": few(found, 20),
            "optimizer": optimizers,
            "cause": "the loss does not depend on them: a detached branch (detach(), .item(), "
            "no_grad(), a round trip through numpy), or modules that the forward never calls",
            "first_action": "Nothing is lost yet, but these weights stay as they were "
            "initialised. Mend the branch and start again, or freeze what is not meant to train "
            "with requires_grad_(False).",
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        if self._told.any:
            return Coverage(self.alert, "armed")
        if ctx.steps <= self.params.steps:
            return Coverage(self.alert, "waiting", f"{ctx.steps} of {self.params.steps} steps")
        why = "this run's SDK does not tell: pip install --upgrade gradwarden"
        return Coverage(self.alert, "blind", why)

    def state(self) -> dict[str, Any]:
        return {"incident": self._incident.state(), "told": self._told.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._told.restore(state["told"])
