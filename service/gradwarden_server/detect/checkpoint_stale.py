"""20 CheckpointStale: no checkpoint was saved for much longer than this run's interval.

Overdue by the run's recorded time and by its steps: a slow stretch is no missing checkpoint,
and neither is a fast one. A run that never saved has no interval, unless it declares one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

from gradwarden_server.detect import saves
from gradwarden_server.detect.base import Coverage, Detector
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.pace import duration
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity

_SCALAR = "checkpoint_seconds"
_DECLARED = "checkpoint_interval_seconds"


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/checkpoint.yaml."""

    declared_ratio: float
    observed_ratio: float
    intervals: int
    kept_intervals: int
    irregular_ratio: float
    least_seconds: float


class CheckpointStale(Detector):
    """See the module."""

    name: ClassVar[str] = "checkpoint_stale"
    severities: ClassVar[tuple[Severity, ...]] = ("ticket",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._saves = saves.Saves()
        self._calm = self.calm()
        self._intervals: list[tuple[float, int]] = []
        self._declared = 0.0
        self._told = False
        self._failed = ""
        self._last: tuple[int, int] | None = None
        self._saved = False
        self._limit: tuple[float, float] | None = None
        self._words: dict[str, str] = {}

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if ctx.new_attempt:
            # What the attempt before saved is as old as it is; the time between is nobody's.
            self._last, self._saved, self._words = None, False, {}
        if step.events:
            self._hear(step)
        if step.eventful:
            return ()
        if self._last is None:
            self._last = (step.time_ns, step.step)
        if not self._told and self._timed(step):
            self._save(step.time_ns, step.step)
        if not self._declared and _DECLARED in ctx.logged:
            self._declared = max(0.0, step.scalar(_DECLARED) or 0.0)
            self._limit = self._limits()
        if self._limit is None:
            return ()
        seconds, steps = self._limit
        standing = (step.time_ns - self._last[0]) / 1e9
        if standing <= seconds or step.step - self._last[1] <= steps:
            self._words = {}
            return self._calm
        if not self._words:
            self._words = self._say(step, standing)
        return self.say("ticket", self._words)

    @staticmethod
    def _timed(step: Step) -> bool:
        """Whether something was saved without an event: ``torch.save`` was called."""
        return any(_SCALAR in said.scalars for said in step.ranks.values())

    def _hear(self, step: Step) -> None:
        for told in saves.told(step):
            if told.checked:
                continue
            self._saves.add(told)
            if not told.ok:
                self._failed = f"the save of step {told.step} failed: {told.error or 'no reason'}"
                continue
            if not self._told:  # what torch.save told so far were these same saves
                self._told, self._intervals, self._saved = True, [], False
            self._failed = ""
            self._save(told.at_ns, told.step)

    def _save(self, at_ns: int, step: int) -> None:
        last, self._last = self._last, (at_ns, step)
        if last is not None and self._saved:
            if step <= last[1]:  # another rank's part of the same checkpoint, or an older one
                self._last = (max(at_ns, last[0]), last[1])
                return
            interval = (max(0.0, (at_ns - last[0]) / 1e9), step - last[1])
            self._intervals = [*self._intervals, interval][-self.params.kept_intervals :]
        self._saved = True
        self._limit = self._limits()

    def _limits(self) -> tuple[float, float] | None:
        """Seconds and steps without a checkpoint that are too many; None where unknown."""
        p = self.params
        if self._declared:
            return max(p.least_seconds, p.declared_ratio * self._declared), 0.0
        if len(self._intervals) < p.intervals:
            return None
        found = []
        for values in zip(*self._intervals, strict=True):
            usual, longest = median(values), max(values)
            # One that saves by other rules than an interval, as when it got better, waits longer.
            found.append(longest if longest > p.irregular_ratio * usual else usual)
        return max(p.least_seconds, p.observed_ratio * found[0]), p.observed_ratio * found[1]

    def _say(self, step: Step, standing: float) -> dict[str, str]:
        assert self._last is not None
        usual = self._declared or median(seconds for seconds, _ in self._intervals)
        how = "declared" if self._declared else "observed"
        return {
            "summary": f"no checkpoint for {duration(standing)}, since step {self._last[1]}; "
            f"the {how} interval is {duration(usual)}",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "cause": self._failed
            or "nothing was saved, and no save was tried: its condition is "
            "not met any more, or the process that saves hangs",
            "first_action": "Look at the training log for a failed save and at the volume's free "
            "space; a kill now loses all work since the last checkpoint.",
            **self._saves.words(),
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        if self._limit is not None:
            return Coverage(self.alert, "armed")
        if self._saved:
            done = f"{len(self._intervals)} of {self.params.intervals} intervals"
            return Coverage(self.alert, "waiting", done)
        line = f"monitor.log({_DECLARED}=3600)"
        return Coverage(self.alert, "waiting", f"checkpoints to come; {line} declares how often")

    def state(self) -> dict[str, Any]:
        return {
            "saves": self._saves.state(),
            "intervals": self._intervals,
            "declared": self._declared,
            "told": self._told,
            "failed": self._failed,
            "last": self._last,
            "saved": self._saved,
            "words": self._words,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._saves.restore(state["saves"])
        self._intervals = [(seconds, steps) for seconds, steps in state["intervals"]]
        self._declared, self._told = state["declared"], state["told"]
        self._failed, self._saved = state["failed"], state["saved"]
        self._last = None if state["last"] is None else (state["last"][0], state["last"][1])
        self._words = dict(state["words"])
        self._limit = self._limits()
