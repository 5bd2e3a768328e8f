"""16 AllReduceSlow: the network is slower than it was, which no rank is the cause of.

What a collective takes once everybody is there is the least over ranks; what is above it is
waiting, which is the Straggler's. Sizes are compared with their like. A machine on which all is
slower, its own work too, is no slow network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

from gradwarden_server.detect import timing
from gradwarden_server.detect.base import Coverage, Detector
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.levels import Level
from gradwarden_server.detect.pace import duration
from gradwarden_server.detect.places import Places
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity

_KINDS = {
    "all-reduce": ("allreduce_seconds", "allreduce_exposed_seconds", "allreduce_bytes"),
    "reduce-scatter": ("reduce_scatter_seconds", "", "reduce_scatter_bytes"),
    "all-gather": ("all_gather_seconds", "", "all_gather_bytes"),
    "all-reduce on NCCL": ("allreduce_late_seconds", "", ""),
    "reduce-scatter on NCCL": ("reduce_scatter_late_seconds", "", ""),
    "all-gather on NCCL": ("all_gather_late_seconds", "", ""),
}
"""By collective: its seconds, what of them the step has to wait for, and its bytes."""
_SIZES = 16
"""Size classes that are remembered."""


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/all_reduce_slow.yaml."""

    ratio: float
    own_ratio: float
    share: float
    seconds: float
    stretch_steps: int
    stretch_seconds: float
    armed_after: int
    kept: int
    excluded: int


class _Series:
    """One collective of one size class."""

    def __init__(self, params: Params) -> None:
        self.transfer = Level(params.kept, params.armed_after, params.excluded)
        self.own = Level(params.kept, params.armed_after, params.excluded)
        self.rows: list[list[float]] = []
        self.passed = self.slow = 0.0
        self.stretches = 0
        self.words: dict[str, str] = {}

    def state(self) -> list[Any]:
        levels = [self.transfer.state(), self.own.state()]
        return [*levels, self.rows, self.passed, self.slow, self.stretches, self.words]

    def restore(self, state: Sequence[Any]) -> None:
        transfer, own, self.rows, self.passed, self.slow, self.stretches, words = state
        self.transfer.restore(transfer)
        self.own.restore(own)
        self.words = dict(words)


class AllReduceSlow(Detector):
    """See the module."""

    name: ClassVar[str] = "all_reduce_slow"
    severities: ClassVar[tuple[Severity, ...]] = ("ticket",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._places = Places()
        self._calm = self.calm()
        self._begin()

    def _begin(self) -> None:
        self._elapsed = timing.Elapsed()
        self._series: dict[tuple[str, int], _Series] = {}

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if step.events:
            self._places.observe(step)
        if ctx.new_attempt:
            self._begin()
        if len(step.ranks) < 2:
            return ()
        passed = self._elapsed.step(step.time_ns)
        for series in self._series.values():
            series.passed += passed
        times = timing.of(step)
        if times is None or times.pause > 0 or step.missing:
            return ()
        held = [said.scalars for said in step.ranks.values()]
        for kind, names in _KINDS.items():
            if names[0] in held[0]:
                self._take(step, times, held, kind, *names)
        slow = next((s for s in self._series.values() if s.words), None)
        if slow is not None:
            return self.say("ticket", slow.words)
        return self._calm if self._armed else ()

    @property
    def _armed(self) -> bool:
        return any(s.transfer.value is not None for s in self._series.values())

    def _take(
        self,
        step: Step,
        times: timing.Times,
        held: Sequence[Mapping[str, float]],
        kind: str,
        name: str,
        exposed: str,
        size: str,
    ) -> None:
        took = [said[name] for said in held if name in said]
        if len(took) < len(held) or not all(0 < seconds < 1e9 for seconds in took):
            return
        transfer = min(took)
        waited = min((said.get(exposed, transfer) for said in held), default=transfer)
        moved = held[0].get(size, 0.0)
        key = kind, round(math.log2(moved)) if moved > 0 else -1
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= _SIZES:
                return
            series = self._series[key] = _Series(self.params)
        series.rows.append([transfer, waited, times.work, moved])
        p = self.params
        if len(series.rows) >= p.stretch_steps and series.passed >= p.stretch_seconds:
            self._judge(step, kind, series)

    def _judge(self, step: Step, kind: str, series: _Series) -> None:
        """One stretch of steps of a collective is complete."""
        p = self.params
        transfer, waited, work, moved = (median(c) for c in zip(*series.rows, strict=True))
        own = max(0.0, work - waited)
        passed, series.rows, series.passed = series.passed, [], 0.0
        usual, usual_own = series.transfer.value, series.own.value
        slow = False
        if usual is not None and usual_own is not None:
            everything = own / usual_own if usual_own > 0 else 1.0
            slower = max(p.ratio, p.own_ratio * everything)
            slow = transfer > slower * usual and waited > p.share * work
        if slow and usual is not None:
            series.slow += passed
            series.stretches += 1
            if series.slow >= p.seconds and series.stretches >= 2 and not series.words:
                share = waited / work
                series.words = self._words(step, kind, transfer, usual, moved, share, series.slow)
        else:
            series.slow, series.stretches, series.words = 0.0, 0, {}
        again = series.transfer.learn(transfer, slow)
        series.own.learn(own, slow)
        if again:
            series.slow, series.stretches, series.words = 0.0, 0, {}

    def _words(
        self,
        step: Step,
        kind: str,
        transfer: float,
        usual: float,
        moved: float,
        share: float,
        lasting: float,
    ) -> dict[str, str]:
        count = len(step.ranks)
        size = f" of {_bytes(moved)} a step" if moved > 0 else ""
        words = {
            "summary": f"{kind}{size} takes {1e3 * transfer:.3g} ms once all ranks are there, "
            f"{transfer / usual:.1f} times the usual {1e3 * usual:.3g} ms, for "
            f"{duration(lasting)}; the step waits {share:.0%} of its time for it",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "collective": kind,
            "cause": f"the network between the {count} ranks, not one of them: none waits less "
            "than this",
            "first_action": "Look for errors and congestion on the links of these nodes (NCCL's "
            "log, ibstat, switch counters) and for other jobs on them.",
            **self._places.words(step.ranks),
        }
        if moved > 0:
            words["bytes"] = f"{moved:.0f}"
        return words

    def coverage(self, ctx: RunContext) -> Coverage:
        if ctx.world_size < 2 and not self._series:
            return Coverage(self.alert, "armed", "one rank has nobody to reduce with")
        if self._armed:
            return Coverage(self.alert, "armed")
        wanted = self.params.armed_after
        known = max((s.transfer.known for s in self._series.values()), default=0)
        if self._series or ctx.steps < self.params.stretch_steps:
            return Coverage(self.alert, "waiting", f"{known} of {wanted} stretches of steps")
        why = 'no collective is timed: watch(comm="hook")'
        return Coverage(self.alert, "blind", why)

    def state(self) -> dict[str, Any]:
        return {
            "places": self._places.state(),
            "elapsed": self._elapsed.state(),
            "series": [[*key, series.state()] for key, series in self._series.items()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._begin()
        self._places.restore(state["places"])
        self._elapsed.restore(state["elapsed"])
        for kind, size, held in state["series"]:
            series = self._series[kind, size] = _Series(self.params)
            series.restore(held)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
