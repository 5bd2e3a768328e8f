"""22 ThroughputDrop: fewer tokens a second than this run did before, for a quarter of an hour.

Rates are of stretches of steps, of their time outside known phases (evaluation, checkpoint,
compilation, ``monitor.phase``); a step that lasts many times the others for a reason that no
phase explains is a pause as well. Where nothing rules out that sequences became longer, a
slower forward and backward is a note.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

from gradwarden_server.detect import timing
from gradwarden_server.detect.base import Coverage, Detector
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.levels import Level
from gradwarden_server.detect.pace import duration
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity

_COMPUTE = ("forward", "backward", "optimizer")
_PARTS = timing.PARTS
_NAMES = {
    "data": "waiting for data",
    timing.WAITING: "waiting for other ranks or the network",
    timing.OTHER: "outside of data, forward, backward and optimizer",
}


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/throughput_drop.yaml."""

    share: float
    seconds: float
    stretch_steps: int
    stretch_seconds: float
    armed_after: int
    kept: int
    excluded: int
    pause_ratio: float
    length_ratio: float


class ThroughputDrop(Detector):
    """See the module."""

    name: ClassVar[str] = "throughput_drop"
    severities: ClassVar[tuple[Severity, ...]] = ("ticket", "note")
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._calm = self.calm()
        self._elapsed = timing.Elapsed()
        self._own = timing.OwnPhases()
        self._left = 0.0
        self._begin()

    def _begin(self) -> None:
        """Forget what was usual: another attempt, or other work."""
        p = self.params
        self._rate = Level(p.kept, p.armed_after, p.excluded)
        self._parts = {name: Level(p.kept, p.armed_after, p.excluded) for name in _PARTS}
        self._unit = ""
        self._length = 0.0
        self._low = 0.0
        self._lows = 0
        self._severity: Severity | None = None
        self._words: dict[str, str] = {}
        self._empty()

    def _empty(self) -> None:
        self._rows: list[list[float]] = []
        self._passed = 0.0
        self._units = [0.0, 0.0]
        self._hot = False

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if step.events:
            self._own.observe(step)
        if ctx.new_attempt:
            self._elapsed = timing.Elapsed()
        if ctx.new_attempt or ctx.restarted:
            self._begin()
        if step.eventful:
            return ()
        self._passed += self._elapsed.step(step.time_ns)
        times = timing.of(step)
        if times is None:
            return ()
        self._take(times)
        p = self.params
        if len(self._rows) < p.stretch_steps or self._passed < p.stretch_seconds:
            return self._said()
        self._judge(step)
        return self._said()

    def _said(self) -> Sequence[Condition]:
        if self._severity is None:
            return self._calm if self._rate.value is not None else ()
        return self.say(self._severity, self._words)

    def _take(self, times: timing.Times) -> None:
        # A phase of the loop's own may be told with the step before the one that it delayed.
        told = self._own.take()
        explained = min(told + self._left, times.other, times.work)
        self._left = min(told, told + self._left - explained)
        work = times.work - explained
        rest = max(0.0, work - sum(times.parts))
        self._rows.append([work, *times.parts, rest, times.other - explained])
        self._units[0] += times.tokens
        self._units[1] += times.samples
        self._hot = self._hot or times.hot

    def _judge(self, step: Step) -> None:
        """One stretch is complete."""
        p = self.params
        usual = median(row[0] for row in self._rows)
        rows = [row for row in self._rows if row[-1] <= p.pause_ratio * usual]
        tokens, samples = self._units
        amount, unit = next(
            (a, u) for a, u in ((tokens, "tokens"), (samples, "samples"), (1.0, "steps")) if a > 0
        )
        amount = float(len(rows)) if unit == "steps" else amount * len(rows) / len(self._rows)
        length = tokens / samples if tokens > 0 and samples > 0 else 0.0
        seconds, passed, hot = sum(row[0] for row in rows), self._passed, self._hot
        parts = {name: sum(row[at] for row in rows) for at, name in enumerate(_PARTS, start=1)}
        self._empty()
        if seconds <= 0:
            return
        if unit != self._unit or self._other_length(length):
            self._begin()
            self._unit, self._length = unit, length
        usual_rate, rate = self._rate.value, amount / seconds
        low = usual_rate is not None and rate < p.share * usual_rate
        per_unit = {name: spent / amount for name, spent in parts.items()}
        if low:
            self._low += passed
            self._lows += 1
            if self._low >= p.seconds and self._lows >= 2:
                self._raise(step, rate, per_unit, hot)
        else:
            self._low, self._lows, self._severity = 0.0, 0, None
        again = self._rate.learn(rate, low)
        for name, level in self._parts.items():
            level.learn(per_unit[name], low)
        if again:
            self._low, self._lows, self._severity = 0.0, 0, None

    def _other_length(self, length: float) -> bool:
        """Whether samples have another number of tokens now, so that rates do not compare."""
        known, limit = self._length, self.params.length_ratio
        if not known or not length:
            return bool(known) != bool(length)
        return max(known, length) > limit * min(known, length)

    def _raise(self, step: Step, rate: float, now: Mapping[str, float], hot: bool) -> None:
        if self._severity == "ticket":
            return
        usual = self._rate.value or 0.0
        grown = {name: now[name] - (level.value or 0.0) for name, level in self._parts.items()}
        worst = max(grown, key=lambda name: grown[name])
        longer = worst in _COMPUTE and not hot and not self._length
        severity: Severity = "note" if longer else "ticket"
        if severity == self._severity:
            return
        name, before = _NAMES.get(worst, worst), self._parts[worst].value or 0.0
        each = {"steps": "step", "tokens": "token", "samples": "sample"}[self._unit]
        cause = f"{name} takes {now[worst]:.3g} s a {each}, it was {before:.3g} s"
        if longer:
            cause += "; longer sequences would look the same, as would a slower processor"
        elif hot:
            cause += "; the GPU holds its clock down because of heat (gpu_thermal_slowdown)"
        self._severity = severity
        self._words = {
            "summary": f"{rate:.3g} {self._unit} a second for {duration(self._low)}, "
            f"{rate / usual:.0%} of the usual {usual:.3g}: {name} grew",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "phase": worst,
            "cause": cause,
            "first_action": _ACTIONS.get(worst, _ACTIONS["forward"]),
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        if self._rate.value is not None:
            detail = ""
            if not self._length:
                detail = "a slower model is a note only: add monitor.log(tokens=..., samples=...)"
            return Coverage(self.alert, "armed", detail)
        known, wanted = self._rate.known, self.params.armed_after
        if known or self._rows or ctx.steps < self.params.stretch_steps:
            return Coverage(self.alert, "waiting", f"{known} of {wanted} stretches of steps")
        return Coverage(
            self.alert,
            "blind",
            'no step_seconds: print(monitor.health()["instruments"]["anatomy"]) says why',
        )

    def state(self) -> dict[str, Any]:
        return {
            "rate": self._rate.state(),
            "parts": {name: level.state() for name, level in self._parts.items()},
            "elapsed": self._elapsed.state(),
            "own": [self._own.state(), self._left],
            "unit": [self._unit, self._length],
            "low": [self._low, self._lows, self._severity, self._words],
            "stretch": [self._rows, self._passed, self._units, self._hot],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._begin()
        self._rate.restore(state["rate"])
        for name, level in self._parts.items():
            level.restore(state["parts"][name])
        self._elapsed.restore(state["elapsed"])
        own, self._left = state["own"]
        self._own.restore(own)
        self._unit, self._length = state["unit"]
        self._low, self._lows, self._severity, words = state["low"]
        self._words = dict(words)
        self._rows, self._passed, self._units, self._hot = state["stretch"]


_ACTIONS = {
    "data": "Look at the loader's workers, at storage, and at who else reads from it.",
    timing.WAITING: "Look for a Straggler or AllReduceSlow alert of this run, and at the network.",
    timing.OTHER: "Look at what the loop does between the phases: logging, metrics, .item() calls.",
    "forward": "Compare temperature, clocks and other processes of the GPUs; compare the lengths "
    "of the sequences before and after.",
}
