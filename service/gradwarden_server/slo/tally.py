"""What a run adds to the budgets: its steps, its minutes, its detections, as counters. Pure.

Counters only grow, and go on from where they stood when another process takes the run over: steps
that were judged and not yet written are counted again from the log behind the last snapshot, and
whatever the log does not tell is written at once, with the judgement. They are stamped with the
time at which something was counted, so that none of them changes the past. What a spool brings late
is history and is not counted.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

MINUTE_NS = 60 * 1_000_000_000
LIVE_NS = 10 * MINUTE_NS
"""A run that was not heard of for longer is not live: other alerts speak of it."""
STEPS = "gradwarden_steps_total"
NONFINITE = "gradwarden_nonfinite_steps_total"
MINUTES = "gradwarden_run_minutes_total"
SILENT = "gradwarden_silent_minutes_total"
SECONDS = {
    "step_seconds": "gradwarden_step_seconds_total",
    "allreduce_seconds": "gradwarden_allreduce_seconds_total",
    "checkpoint_seconds": "gradwarden_checkpoint_seconds_total",
}
"""Where steps spend their time, the mean over ranks, by the scalar that says it: a rule over many
runs reads one point a minute, not each step of each rank."""
DELAY = "gradwarden_detection_delay_seconds"
DELAYS = f"{DELAY}_bucket", f"{DELAY}_count", f"{DELAY}_sum"
NAMES = (STEPS, NONFINITE, *SECONDS.values(), MINUTES, SILENT, *DELAYS)
BOUNDS = (1.0, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the delay's buckets in seconds."""

_SOON_NS = 10 * 1_000_000_000
# ``increase`` adds half of the mean distance of points behind the last one: of a counter with two
# points that is half as much again, of one that begins with a second of zeros hardly anything.
_ZEROS, _ZEROS_NS = 20, 1_000_000_000
_STEPS_KEPT = 512
_ATTEMPTS_KEPT = 8
NOTHING: Mapping[str, Any] = {"values": (), "counted": ()}
"""The state before the first step."""
_Key = tuple[str, tuple[tuple[str, str], ...]]


class Count(NamedTuple):
    """One counter at one moment."""

    name: str
    labels: Mapping[str, str]
    time_ns: int
    value: float


class Tally:
    """The counters of one run.

    Args:
        stood: What was last written of each, by name and labels.
        now_ns: Since when the run is watched here.
    """

    def __init__(self, stood: Iterable[tuple[str, Mapping[str, str], float]], now_ns: int) -> None:
        self._stood = {_key(name, labels): value for name, labels, value in stood}
        self._values = dict(self._stood)
        self._begun = set(self._values)
        self._counted: dict[int, int] = {}
        self._written_ns = 0
        self._minute_ns = now_ns
        self._news = self._bad = self._once = False
        # Newest steps of the newest attempt and their times: rings of numbers, since there are
        # thousands of runs.
        self._attempt = 0
        self._steps = array("q")
        self._times = array("q")

    def saw(self, attempt: int, step: int, time_ns: int) -> None:
        """Remember when a step was, for alerts that name it."""
        if attempt != self._attempt:
            self._attempt, self._steps, self._times = attempt, array("q"), array("q")
        if len(self._steps) >= 2 * _STEPS_KEPT:
            del self._steps[:_STEPS_KEPT], self._times[:_STEPS_KEPT]
        self._steps.append(step)
        self._times.append(time_ns)

    def state(self) -> dict[str, Any]:
        """What :meth:`recall` goes back to."""
        values = [[name, [list(pair) for pair in held], v] for (name, held), v in self._sorted()]
        return {"values": values, "counted": [list(one) for one in self._counted.items()]}

    def recall(self, state: Mapping[str, Any] | None, recorded: Mapping[int, int]) -> None:
        """Go back to a snapshot, to count again what was judged behind it.

        One of an older version has no ``state``: what was written stands then, which holds steps up
        to ``recorded``, by attempt.
        """
        if state is None:
            self._values, self._counted = dict(self._stood), dict(recorded)
            return
        self._counted = {int(attempt): int(step) for attempt, step in state["counted"]}
        self._values = {
            (str(name), tuple((str(k), str(v)) for k, v in labels)): float(value)
            for name, labels, value in state["values"]
        }

    def caught_up(self) -> None:
        """All that was judged is counted again; what was written stands where that is more."""
        for key, value in self._stood.items():
            self._values[key] = max(value, self._values.get(key, 0.0))
        self._news = self._values != self._stood
        self._stood = {}

    def step(self, attempt: int, step: int, sound: bool, seconds: Mapping[str, float]) -> None:
        """A step was judged; each counts once.

        Args:
            attempt: Of which attempt.
            step: Its number.
            sound: Whether all in it was finite.
            seconds: How long what of :data:`SECONDS` took, where that was measured.
        """
        if step <= self._counted.get(attempt, -1):
            return
        self._counted[attempt] = step
        while len(self._counted) > _ATTEMPTS_KEPT:
            del self._counted[min(self._counted)]
        self._add(STEPS, 1)
        for scalar, spent in seconds.items():
            if spent >= 0 and math.isfinite(spent):
                self._add(SECONDS[scalar], spent)
        self._add(NONFINITE, 0 if sound else 1)
        self._bad = self._bad or not sound

    def minute(self, now_ns: int, last_seen_ns: int) -> None:
        """Time went on for a run that is under way; called about once a second.

        Time in which nobody looked is not counted.
        """
        if now_ns - self._minute_ns < MINUTE_NS:
            return
        looked = now_ns - self._minute_ns < 2 * MINUTE_NS
        self._minute_ns = self._minute_ns + MINUTE_NS if looked else now_ns
        quiet_ns = now_ns - last_seen_ns
        if looked and quiet_ns <= LIVE_NS:
            self._add(MINUTES, 1)
            self._add(SILENT, 1 if quiet_ns > MINUTE_NS else 0)
            self._once = True

    def fired(self, alert: str, attempt: int, step: int, now_ns: int) -> None:
        """An alert fired that names the first bad step; unknown steps are not counted."""
        if attempt != self._attempt or step not in self._steps:
            return
        seconds = max(0, now_ns - self._times[self._steps.index(step)]) / 1e9
        for bound in BOUNDS:
            le = {"alert": alert, "le": f"{bound:g}"}
            self._add(DELAYS[0], 1 if seconds <= bound else 0, le)
        self._add(DELAYS[0], 1, {"alert": alert, "le": "+Inf"})
        self._add(DELAYS[1], 1, {"alert": alert})
        self._add(DELAYS[2], seconds, {"alert": alert})
        self._once = True

    def due(self, now_ns: int) -> bool:
        """Whether something is to be written: soon if bad, else once a minute.

        At once, where no log would tell it after a crash.
        """
        if self._once:
            return True
        pause_ns = _SOON_NS if self._bad else MINUTE_NS
        return self._news and now_ns - self._written_ns >= pause_ns

    def counts(self, now_ns: int) -> list[Count]:
        """Every counter as it stands, to be written now; a new one begins at zero before.

        All are told, also those that stand still: a range of a minute apart has then its points.
        """
        told = []
        for key, value in self._sorted():
            name, labels = key
            if key not in self._begun:
                self._begun.add(key)
                told += [
                    Count(name, dict(labels), now_ns - _ZEROS_NS * n // _ZEROS, 0.0)
                    for n in range(_ZEROS, 0, -1)
                ]
            told.append(Count(name, dict(labels), now_ns, value))
        self._written_ns = now_ns
        self._news = self._bad = self._once = False
        return told

    @property
    def owed(self) -> bool:
        """Whether anything was counted and not yet written."""
        return self._news

    def _sorted(self) -> list[tuple[_Key, float]]:
        return sorted(self._values.items())

    def _add(self, name: str, amount: float, labels: Mapping[str, str] | None = None) -> None:
        key = _key(name, labels or {})
        self._values[key] = self._values.get(key, 0.0) + amount
        self._news = True


def _key(name: str, labels: Mapping[str, str]) -> _Key:
    return name, tuple(sorted(labels.items()))
