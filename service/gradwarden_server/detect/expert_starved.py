"""5 ExpertStarved: an expert of a mixture gets no token for a long time while others do.

Routers leave an expert idle for some steps as a rule, so only hundreds of steps count. An expert
that got nothing has a gradient of zeros, or none at all. Experts that live inside one tensor
cannot be told apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.context import GroupView, LayoutView, RunContext
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity

_EXPERT = re.compile(r"(.*?(?:^|\.)experts?)\.(\w+)\.", re.IGNORECASE)
_MOST_NAMES = 8


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/dead.yaml."""

    steps: int
    clean_steps: int


class _Mixtures:
    """Experts and the mixtures that they belong to, as tables over the rows of a layout."""

    def __init__(self, layout: LayoutView) -> None:
        rows: dict[tuple[str, str], list[int]] = {}
        for row, p in enumerate(layout.layout.parameters):
            found = _EXPERT.match(p.name) if p.kind == "expert" else None
            if found is not None:
                rows.setdefault((found[1], found[2]), []).append(row)
        mixtures = list(dict.fromkeys(mixture for mixture, _ in rows))
        self.names = [f"{mixture}.{expert}" for mixture, expert in rows]
        self.rows = np.array([r for held in rows.values() for r in held], np.int64)
        self.starts = np.cumsum([0, *(len(held) for held in rows.values())])[:-1]
        self.sizes = layout.sizes.astype(np.float32)[self.rows]
        self.mixture = np.array([mixtures.index(mixture) for mixture, _ in rows], np.int64)
        self.count = len(mixtures)

    def fed(self, view: GroupView) -> NDArray[np.bool_]:
        """Experts with any gradient that is not zero."""
        zeros = view.step.column("zero")[self.rows]
        return np.asarray(np.logical_or.reduceat(zeros < self.sizes, self.starts), np.bool_)

    def at_work(self, fed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Experts of mixtures in which any expert was fed."""
        return (np.bincount(self.mixture[fed], minlength=self.count) > 0)[self.mixture]


class ExpertStarved(Detector):
    """See the module."""

    name: ClassVar[str] = "expert_starved"
    severities: ClassVar[tuple[Severity, ...]] = ("ticket",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._idle: dict[int, tuple[str, NDArray[np.int64]]] = {}
        self._mixtures: dict[str, _Mixtures] = {}

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if ctx.new_attempt:
            self._idle = {}
        if not ctx.groups:
            return ()
        sick = None
        for group, view in ctx.groups.items():
            if view.step.complete and self._starves(group, view):
                sick = sick or (group, view)
        if sick is not None:
            if not self._incident.worse_than("ticket"):
                self._incident.sign("ticket", self._words(step, *sick))
            self._incident.clean = 0
        else:
            self._incident.healthy_step(self.params.clean_steps)
        return self._incident.conditions(self)

    def _starves(self, group: int, view: GroupView) -> bool:
        mixtures = self._known(view)
        if not mixtures.names:
            return False
        layout, idle = self._idle.get(group, ("", np.zeros(0, np.int64)))
        if layout != view.step.layout:
            idle = np.zeros(len(mixtures.names), np.int64)
        fed = mixtures.fed(view)
        idle = np.where(fed, 0, idle + mixtures.at_work(fed))
        self._idle[group] = view.step.layout, idle
        return bool(idle.max() >= self.params.steps)

    def _known(self, view: GroupView) -> _Mixtures:
        known = self._mixtures.get(view.step.layout)
        if known is None:
            known = self._mixtures[view.step.layout] = _Mixtures(view.layout)
        return known

    def _words(self, step: Step, group: int, view: GroupView) -> dict[str, str]:
        mixtures = self._known(view)
        idle = self._idle[group][1]
        starved = np.flatnonzero(idle >= self.params.steps)
        names = [mixtures.names[i] for i in starved]
        mixture = names[0].rpartition(".")[0]
        total = int((mixtures.mixture == mixtures.mixture[starved[0]]).sum())
        of_it = sum(name.rpartition(".")[0] == mixture for name in names)
        return {
            "summary": f"{of_it} of {total} experts of {mixture} got no token in "
            f"{int(idle[starved[0]])} steps: {', '.join(names[:_MOST_NAMES])}",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "layer": names[0],
            "layers": ", ".join(names[:_MOST_NAMES]),
            "ratio": f"{of_it / total:.3g}",
            "cause": "the router sends everything to the other experts of that layer",
            "first_action": "Nothing is lost yet. Look at the load-balancing loss and its weight, "
            "and at the router's noise and capacity.",
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        if self._mixtures and not any(m.names for m in self._mixtures.values()):
            why = "the model has no experts as modules of their own (a name like experts.3)"
            return Coverage(self.alert, "blind", why)
        if ctx.steps < self.params.steps:
            return Coverage(self.alert, "waiting", f"{ctx.steps} of {self.params.steps} steps")
        return Coverage(self.alert, "armed")

    def state(self) -> dict[str, Any]:
        return {"incident": self._incident.state(), "idle": self._idle}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._idle = {int(group): (held[0], held[1]) for group, held in state["idle"].items()}
