"""2 NonFiniteLoss: the loss is NaN or Inf.

It pages if steps go on: the step was applied, or the next loss is bad too. A bad loss whose
step was skipped is a note; many of these in a row are a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gradwarden_server.detect import origin
from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/nonfinite.yaml."""

    clean_steps: int
    skipped_in_a_row: int


class NonFiniteLoss(Detector):
    """See the module."""

    name: ClassVar[str] = "nonfinite_loss"
    severities: ClassVar[tuple[Severity, ...]] = ("page", "note")
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._row = 0
        self._skipped = 0
        self._first: dict[str, str] = {}
        self._gradient_bad_since: int | None = None

    def peek(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        bad = _bad_ranks(step)
        if not bad or step.stepped is not True or self._incident.worse_than("page"):
            return ()
        return self.say("page", self._words(step, bad, ctx.world_size))

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if step.eventful:
            return ()
        bad = _bad_ranks(step)
        if bad:
            self._row += 1
            self._skipped = self._skipped + 1 if step.stepped is False else 0
            if self._row == 1:
                self._first = self._words(step, bad, ctx.world_size)
            self._incident.sign(self._weigh(step), self._first)
        elif any("loss" in said.scalars for said in step.ranks.values()):
            self._row = self._skipped = 0
            self._incident.healthy_step(self.params.clean_steps)
        if ctx.groups:
            poisoned = any(not view.clean for view in ctx.groups.values())
            if not poisoned:
                self._gradient_bad_since = None
            elif self._gradient_bad_since is None:
                self._gradient_bad_since = step.step
        return self._incident.conditions(self)

    def _weigh(self, step: Step) -> Severity:
        if step.stepped is False:
            return "page" if self._skipped >= self.params.skipped_in_a_row else "note"
        return "page" if step.stepped or self._row > 1 else "note"

    def _words(self, step: Step, bad: Sequence[int], world_size: int) -> dict[str, str]:
        since = self._gradient_bad_since
        if since is not None:
            before = f"gradients were bad before, since step {since}"
            action = f"Look at NonFiniteGradient at step {since} first: the loss only followed."
        else:
            before = "gradients were finite up to this step"
            action = (
                "Resume from the last good checkpoint past the batch of this step; check that "
                "batch for NaN, and the loss for log, sqrt and division at zero."
            )
        words = {
            "summary": f"loss is {_say(step, bad)} at step {step.step}; {before}",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "cause": before,
            "first_action": f"Stop the run if it goes on. {action}",
        } | origin.batch(step, bad)
        if not step.partial or world_size == 1:  # an early look has not heard all ranks
            words["rank"] = ", ".join(map(str, bad))
        return words

    def coverage(self, ctx: RunContext) -> Coverage:
        if "loss" in ctx.logged:
            return Coverage(self.alert, "armed")
        if ctx.steps == 0:
            return Coverage(self.alert, "waiting", "0 of 1 steps")
        return Coverage(self.alert, "blind", "no loss is logged: add monitor.log(loss=loss)")

    def state(self) -> dict[str, Any]:
        return {
            "incident": self._incident.state(),
            "row": self._row,
            "skipped": self._skipped,
            "first": self._first,
            "gradient_bad_since": self._gradient_bad_since,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._row, self._skipped, self._first = state["row"], state["skipped"], state["first"]
        self._gradient_bad_since = state["gradient_bad_since"]


def _bad_ranks(step: Step) -> list[int]:
    return [rank for rank, said in step.ranks.items() if said.bad_loss]


def _say(step: Step, bad: Sequence[int]) -> str:
    value = step.ranks[bad[0]].scalars["loss"]
    return "NaN" if value != value else "Inf"
