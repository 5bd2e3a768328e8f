"""25 StaleGradients: asynchronous workers whose gradients are of weights that are long gone.

Training declares itself asynchronous by logging ``staleness``: by how many updates the weights
moved between the worker's read of them and the use of its gradient. ``staleness_bound`` says what
the algorithm allows; where none is logged it is taken from the number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/stale.yaml."""

    per_worker: float
    least: float
    steps: int
    window_steps: int
    clean_steps: int


class StaleGradients(Detector):
    """See the module."""

    name: ClassVar[str] = "stale_gradients"
    severities: ClassVar[tuple[Severity, ...]] = ("ticket",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._recent: dict[int, list[float]] = {}
        self._bound: float | None = None

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if ctx.new_attempt:
            self._recent, self._bound = {}, None
        if "staleness" not in ctx.logged:
            return ()
        told = step.scalar("staleness_bound")
        self._bound = told if told is not None and math.isfinite(told) else self._bound
        bound = self._limit(ctx)
        stale, heard = [], False
        for rank, said in step.ranks.items():
            value = said.scalars.get("staleness", math.nan)
            if math.isnan(value):
                continue
            heard = True
            recent = [*self._recent.get(rank, []), value][-self.params.window_steps :]
            self._recent[rank] = recent
            if value > bound and sum(v > bound for v in recent) >= self.params.steps:
                stale.append(rank)
        if not heard:
            return ()
        if stale:
            if not self._incident.worse_than("ticket"):
                self._incident.sign("ticket", self._words(step, ctx, stale, bound))
            self._incident.clean = 0
        else:
            self._incident.healthy_step(self.params.clean_steps)
        return self._incident.conditions(self)

    def _limit(self, ctx: RunContext) -> float:
        if self._bound is not None:
            return self._bound
        workers = max(ctx.world_size, len(self._recent))
        return max(self.params.least, self.params.per_worker * workers)

    def _words(
        self, step: Step, ctx: RunContext, stale: Sequence[int], bound: float
    ) -> dict[str, str]:
        worst = max(stale, key=lambda rank: self._recent[rank][-1])
        usual = median(self._recent[worst])
        whose = "declared" if self._bound is not None else f"for {ctx.world_size} workers"
        return {
            "summary": f"gradients of worker {worst} are {usual:g} updates old, the bound "
            f"{whose} is {bound:g}",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "rank": ", ".join(map(str, sorted(stale))),
            "staleness": f"{usual:g}",
            "bound": f"{bound:g}",
            "cause": "that worker is slower than the others, or reads its weights too seldom",
            "first_action": "Nothing is lost yet. Look at that worker's host and network; damp "
            "the learning rate by the staleness, or drop gradients above the bound.",
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        if "staleness" not in ctx.logged:
            why = "for asynchronous training: add monitor.log(staleness=n, staleness_bound=b)"
            return Coverage(self.alert, "blind", why)
        known = max(map(len, self._recent.values()), default=0)
        if known < self.params.steps:
            return Coverage(self.alert, "waiting", f"{known} of {self.params.steps} steps")
        return Coverage(self.alert, "armed")

    def state(self) -> dict[str, Any]:
        return {
            "incident": self._incident.state(),
            "recent": self._recent,
            "bound": self._bound,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._recent = {int(rank): list(held) for rank, held in state["recent"].items()}
        self._bound = state["bound"]
