"""21 InputBound: the training waits for its data.

The first steps of an epoch are left out, since a loader starts its workers there, and so are
steps with an evaluation or a checkpoint in them. A loop that makes a new loader iterator at
nearly every step has no such first steps: that is its sickness.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gradwarden_server.detect import timing
from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.places import Places
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/input_bound.yaml."""

    share: float
    window_steps: int
    least_seconds: float
    lost_seconds: float


class InputBound(Detector):
    """See the module."""

    name: ClassVar[str] = "input_bound"
    severities: ClassVar[tuple[Severity, ...]] = ("ticket",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._places = Places()
        self._calm = self.calm()
        self._begin()

    def _begin(self) -> None:
        self._window: deque[tuple[float, float, int]] = deque()
        self._waited = self._worked = self._lost = 0.0
        self._firsts: deque[bool] = deque(maxlen=self.params.window_steps)
        self._loads = False

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if step.events:
            self._places.observe(step)
        if ctx.new_attempt:
            self._begin()
        if step.eventful:
            return ()
        times = timing.of(step)
        if times is None or times.pause > 0:
            return ()
        self._loads = self._loads or times.data > 0
        self._firsts.append(times.first_of_epoch)
        if times.first_of_epoch and 2 * sum(self._firsts) <= len(self._firsts):
            return ()
        self._add(times)
        if len(self._window) < self.params.window_steps:
            return () if self._incident.severity is None else self._incident.conditions(self)
        matters = self._waited >= self.params.least_seconds * len(self._window)
        if self._waited > self.params.share * self._worked and (
            matters or self._lost >= self.params.lost_seconds
        ):
            if self._incident.severity is None:
                self._incident.sign("ticket", self._words(step, ctx))
            self._incident.clean = 0
        elif self._incident.severity is None:
            return self._calm
        else:
            self._incident.healthy_step(self.params.window_steps)
        return self._incident.conditions(self)

    def _add(self, times: timing.Times) -> None:
        if len(self._window) == self.params.window_steps:
            data, work, _ = self._window.popleft()
            self._waited -= data
            self._worked -= work
        data = min(times.data, times.work)
        self._window.append((data, times.work, times.data_rank))
        self._waited += data
        self._worked += times.work
        self._lost += data

    def _words(self, step: Step, ctx: RunContext) -> dict[str, str]:
        count = len(self._window)
        share = self._waited / self._worked
        words = {
            "summary": f"{share:.0%} of the step time is waiting for data: "
            f"{1e3 * self._waited / count:.0f} of {1e3 * self._worked / count:.0f} ms a step",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "share": f"{share:.2f}",
            "cause": "the loader is slower than the model: too few workers, slow storage, or "
            "work on the CPU for each sample",
            "first_action": "Raise the DataLoader's num_workers, with pin_memory and "
            "persistent_workers; then look at storage and at what is done for each sample.",
        }
        if 2 * sum(self._firsts) > len(self._firsts):
            words["cause"] = "a new loader iterator is made at nearly every step, and starts anew"
            words["first_action"] = "Make the iterator once per epoch, outside of the steps."
        rank, times = Counter(rank for *_, rank in self._window).most_common(1)[0]
        if len(step.ranks) > 1 and 2 * times > count:
            words |= self._places.words([rank])
        return words

    def coverage(self, ctx: RunContext) -> Coverage:
        done, wanted = len(self._window), self.params.window_steps
        if done >= wanted or self._incident.severity is not None:
            quiet = "" if self._loads else "no DataLoader was seen: wrap your own loading in "
            return Coverage(self.alert, "armed", quiet and quiet + 'monitor.phase("data")')
        if done or ctx.steps < wanted:
            return Coverage(self.alert, "waiting", f"{done} of {wanted} steps")
        return Coverage(
            self.alert,
            "blind",
            'no step_seconds: print(monitor.health()["instruments"]["anatomy"]) says why',
        )

    def state(self) -> dict[str, Any]:
        return {
            "incident": self._incident.state(),
            "places": self._places.state(),
            "window": list(self._window),
            "sums": [self._waited, self._worked, self._lost],
            "firsts": list(self._firsts),
            "loads": self._loads,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._begin()
        self._incident.restore(state["incident"])
        self._places.restore(state["places"])
        self._window.extend((data, work, rank) for data, work, rank in state["window"])
        self._waited, self._worked, self._lost = state["sums"]
        self._firsts.extend(state["firsts"])
        self._loads = state["loads"]
