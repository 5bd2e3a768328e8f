"""How fast a run goes when it goes well: what a standstill is measured against."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from typing import Any

from gradwarden_server.detect.steps import Step

_KEPT = 200
_PHASES = 64
"""How many names are remembered: a loop may name its phases after its steps."""
_TRAINING = frozenset({"", "step", "train", "training"})


class Pace:
    """Median step time, longest gap between steps outside phases, longest of each phase."""

    def __init__(self) -> None:
        self.longest_gap = 0.0
        self.phases: dict[str, float] = {}
        self._intervals: deque[float] = deque()
        self._ordered: list[float] = []
        self._attempt = 0
        self._last_ns: int | None = None
        self._paused = 0.0

    @property
    def median(self) -> float:
        held, count = self._ordered, len(self._ordered)
        return (held[(count - 1) // 2] + held[count // 2]) / 2 if held else 0.0

    def observe(self, step: Step, longest_good: float) -> None:
        """Learn from a step; a gap above ``longest_good`` seconds was no good gap."""
        if step.attempt != self._attempt:
            self._attempt, self._last_ns, self._paused = step.attempt, None, 0.0
        for _, event in step.events:
            name = {"phase": event.get("name"), "checkpoint": "checkpoint"}.get(str(event["kind"]))
            seconds = event.get("seconds")
            if isinstance(name, str) and isinstance(seconds, (int, float)):
                if name in self.phases or len(self.phases) < _PHASES:
                    self.phases[name] = max(self.phases.get(name, 0.0), float(seconds))
                self._paused += float(seconds)
        if step.eventful:
            return
        if self._last_ns is not None:
            gap = max(0.0, (step.time_ns - self._last_ns) / 1e9 - self._paused)
            self._intervals.append(gap)
            insort(self._ordered, gap)
            if len(self._intervals) > _KEPT:
                oldest = self._intervals.popleft()
                del self._ordered[bisect_left(self._ordered, oldest)]
            if gap <= longest_good:
                self.longest_gap = max(self.longest_gap, gap)
        self._last_ns, self._paused = step.time_ns, 0.0

    def state(self) -> dict[str, Any]:
        return {
            "longest_gap": self.longest_gap,
            "phases": self.phases,
            "intervals": list(self._intervals),
            "attempt": self._attempt,
            "last_ns": self._last_ns,
            "paused": self._paused,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.longest_gap, self.phases = state["longest_gap"], state["phases"]
        self._intervals, self._attempt = deque(state["intervals"]), state["attempt"]
        self._ordered = sorted(self._intervals)
        self._last_ns, self._paused = state["last_ns"], state["paused"]


def known_phase(phase: str | None) -> str | None:
    """The phase, if it is one in which no steps are expected."""
    return None if phase is None or phase in _TRAINING else phase


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
