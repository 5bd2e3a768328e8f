"""28 OverheadBudgetExceeded: the SDK cost more than it may and captures less often now."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gradwarden import wire
from gradwarden_server.detect.base import Coverage, Detector
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/overhead.yaml."""

    factor: int


class OverheadBudgetExceeded(Detector):
    """See the module; a trainer tells of each change with an event of the kind throttle."""

    name: ClassVar[str] = "overhead_budget"
    severities: ClassVar[tuple[Severity, ...]] = ("note",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._words: dict[str, str] = {}

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        told = [(rank, e) for rank, e in step.events if e.get("kind") == "throttle"]
        if not told and not ctx.new_attempt:
            return ()
        self._words = {}
        for rank, event in told:
            stride, regular = _number(event, "stride"), _number(event, "every") or 1
            if stride is not None and stride >= self.params.factor * regular:
                self._words = self._say(step, rank, round(stride), event)
        return self.say("note", self._words) if self._words else self.calm()

    def _say(self, step: Step, rank: int, stride: int, event: wire.Event) -> dict[str, str]:
        cost, budget = _number(event, "overhead_seconds"), _number(event, "budget_seconds")
        figures = ""
        if cost is not None and budget is not None:
            figures = f", {1e6 * cost:.0f} us a step, of {1e6 * budget:.0f} us that it may cost"
        return {
            "summary": f"gradwarden now captures every {stride} steps{figures}",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "rank": str(rank),
            "schedule": f"every {stride} steps",
            "cause": "measuring takes too large a share of these short steps",
            "first_action": "Nothing must be done. For more steps choose a lighter preset, or a "
            "larger budget; non-finite gradients are still looked for at every step.",
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        return Coverage(self.alert, "armed")

    def state(self) -> dict[str, Any]:
        return {"words": self._words}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._words = dict(state["words"])


def _number(event: wire.Event, name: str) -> float | None:
    value = event.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None
