"""What changed lately in a run, so that an alert can say what came before. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.steps import Step

_NEAR = 20
"""Steps over which a movement of the learning rate counts as one, and signs of a kind too."""
_MOVED = 1.5
"""The factor by which a learning rate must move in so many steps."""
_SPIKE_Z, _SPIKE = 4.0, math.log10(4.0)
_KEPT = 8
_TOLD = {"restored": "weights restored", "guard": "the guard acted"}
_DONE = ("lr_up", "parameters", "restored", "guard")
"""What may make a loss rise without other data, beside a gradient that jumped."""


@dataclass(slots=True)
class _Burst:
    """Signs of one kind that follow each other: first and last step, and the first in words."""

    first: int
    last: int
    words: str


class Changes:
    """The newest changes of each kind."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """A new attempt begins: what was before it is no cause."""
        self._lrs: list[float] = []
        self._steady = 0
        self._found: dict[str, list[_Burst]] = {}
        self._layouts: dict[int, str] = {}

    def observe(self, step: Step, ctx: RunContext) -> None:
        """Take a step, or a carrier of events."""
        for _, event in step.events:
            kind = str(event.get("kind"))
            if kind == "mark":
                self._note(kind, step.step, f"mark {event.get('name', '')}")
            elif kind in _TOLD:
                self._note(kind, step.step, _TOLD[kind])
        if step.eventful:
            return
        if ctx.lr is not None:
            self._learning_rate(step.step, ctx.lr)
        judged = ctx.norm_judged
        if judged is not None and judged.z[0] > _SPIKE_Z and judged.distance[0] > _SPIKE:
            words = f"gradient norm {float(judged.ratio[0]):.3g}x its median"
            self._note("gradient", step.step, words)
        if step.stepped is False:
            self._note("skip", step.step, "a skipped step")
        if not (ctx.restarted or len(self._layouts) != len(ctx.groups)):
            return  # other parameters begin a new baseline
        for group, view in ctx.groups.items():
            if self._layouts.get(group) != view.step.layout:
                if group in self._layouts:
                    self._note("parameters", step.step, "other parameters train")
                self._layouts[group] = view.step.layout

    def _note(self, kind: str, step: int, words: str) -> None:
        held = self._found.setdefault(kind, [])
        if held and step - held[-1].last <= _NEAR:
            held[-1].last = step
        else:
            held.append(_Burst(step, step, words))
            del held[:-_KEPT]

    def _learning_rate(self, step: int, lr: float) -> None:
        known = self._lrs
        self._steady = self._steady + 1 if known and known[-1] == lr else 0
        if self._steady >= _NEAR:
            return  # all of them are this one
        known.append(lr)
        if len(known) > _NEAR:
            del known[0]
        low, high = min(known), max(known)
        if high <= _MOVED * low:
            return
        if lr >= high:
            self._note("lr_up", step, f"learning rate from {low:.3g} to {lr:.3g}")
        elif lr <= low:
            self._note("lr_down", step, f"learning rate from {high:.3g} to {lr:.3g}")

    def lr_moved(self, step: int) -> bool:
        """Whether the learning rate moved about when this step was taken."""
        held = (self._found.get(kind) for kind in ("lr_up", "lr_down"))
        return any(bursts and step - bursts[-1].last <= _NEAR for bursts in held)

    def reason(self, onset: int, steps: int) -> bool:
        """Whether, so many steps before ``onset``, the learning rate rose or weights or what
        trains were exchanged: what somebody did, and no symptom of the loss itself."""
        return self._any(_DONE, onset, steps)

    def culprit(self, onset: int, steps: int) -> bool:
        """Whether the optimizer gave reason for what began at ``onset``, so many steps before."""
        return self._any((*_DONE, "gradient"), onset, steps)

    def _any(self, kinds: Sequence[str], onset: int, steps: int) -> bool:
        return any(
            burst.first <= onset + 1 and burst.last >= onset - steps
            for kind in kinds
            for burst in self._found.get(kind, ())
        )

    def before(self, onset: int, steps: int) -> str:
        """What changed in so many steps before ``onset``, newest first, in words."""
        found = sorted(
            (
                (burst.first, burst.words)
                for bursts in self._found.values()
                for burst in bursts
                if burst.first <= onset + 1 and burst.last >= onset - steps
            ),
            reverse=True,
        )
        if not found:
            return f"nothing that is watched changed in the {steps} steps before"
        return "; ".join(f"{words} at step {at}" for at, words in found)

    def state(self) -> dict[str, Any]:
        found = {kind: [astuple(burst) for burst in held] for kind, held in self._found.items()}
        return {"lrs": self._lrs, "steady": self._steady, "found": found, "layouts": self._layouts}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._lrs, self._steady = list(state["lrs"]), state["steady"]
        self._found = {
            kind: [_Burst(*burst) for burst in held] for kind, held in state["found"].items()
        }
        self._layouts = {int(group): layout for group, layout in state["layouts"].items()}
