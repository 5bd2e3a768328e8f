"""The baseline of one series, in plain numbers: what :class:`Baseline` does, without arrays.

The run's own norm and loss are judged at every step, and an operation on an array of one value
costs as much as on a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradwarden_server.detect.baseline import (
    BaselineSettings,
    Flags,
    Judged,
    centre_and_spread,
)

_FLAGS: Mapping[bool, Flags] = {value: np.array([value]) for value in (False, True)}
_NOTHING = np.array([np.nan])
_UNKNOWN: Mapping[bool, Judged] = {
    armed: Judged(_NOTHING, _NOTHING, _FLAGS[armed], _FLAGS[False]) for armed in (False, True)
}


class SingleBaseline:
    """Equal in all that it says to ``Baseline(1, settings)``, and in its state."""

    def __init__(self, settings: BaselineSettings) -> None:
        self._settings = settings
        self._far = float(np.log10(settings.flag_ratio))
        self.restart()

    def restart(self) -> None:
        """Forget everything: what was normal is no longer comparable."""
        self._ring = np.full((1, self._settings.window_steps), np.nan, np.float32)
        self._excluded = np.full((1, self._settings.excluded_steps), np.nan, np.float32)
        self._at = self._held = self._positive = self._outside = self._steps = 0
        self._median = self._spread = math.nan

    @property
    def known(self) -> int:
        """How many positive values it holds."""
        return self._positive

    @property
    def sparse(self) -> bool:
        """Whether it is positive too seldom to be judged."""
        return self._held > 0 and self._positive < self._settings.sparse_share * self._held

    def judge(self, x: float, open_: bool) -> Judged:
        """Judge one step, then learn from it; as :meth:`Baseline.judge`."""
        s = self._settings
        seen = math.isfinite(x)
        y = float(np.log10(x)) if seen and x > 0 else math.nan
        enough = self._positive >= s.armed_after and not self.sparse
        if enough and (math.isnan(self._median) or self._steps % s.refresh_steps == 0):
            self._refresh()
        self._steps += 1
        armed = enough and open_
        if not seen:
            return _UNKNOWN[armed]
        if not armed:
            self._learn(y, False)
            return _UNKNOWN[armed]
        distance = y - self._median
        z = distance / self._spread
        again = self._learn(y, abs(z) > s.flag_z and abs(distance) > self._far)
        return Judged(np.array([z]), np.array([distance]), _FLAGS[armed], _FLAGS[again])

    def _learn(self, y: float, flagged: bool) -> bool:
        """Whether what was flagged has become the level just now."""
        window = self._ring.shape[1]
        if not flagged:
            at = self._at
            self._positive += int(np.isnan(self._ring[0, at])) - math.isnan(y)
            self._ring[0, at] = y
            self._at = (at + 1) % window
            self._held = min(self._held + 1, window)
            self._outside = 0
            return False
        self._excluded[0, self._outside] = y
        self._outside += 1
        if self._outside < self._settings.excluded_steps:
            return False
        count = min(self._excluded.shape[1], window)
        self._ring[:] = np.nan
        self._ring[0, :count] = self._excluded[0, -count:]
        self._at = count % window
        self._held = self._positive = count
        self._outside, self._median = 0, math.nan
        return True

    def _refresh(self) -> None:
        centre, spread = centre_and_spread(self._ring, np.array([self._positive]), self._settings)
        self._median, self._spread = float(centre[0]), float(spread[0])

    def state(self) -> dict[str, Any]:
        counts = ("at", "held", "positive", "outside")
        return {
            "ring": self._ring,
            "excluded": self._excluded,
            **{name: np.array([getattr(self, f"_{name}")], np.int64) for name in counts},
            "median": np.array([self._median]),
            "spread": np.array([self._spread]),
            "steps": self._steps,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._ring, self._excluded, self._steps = state["ring"], state["excluded"], state["steps"]
        self._at, self._held = int(state["at"][0]), int(state["held"][0])
        self._positive, self._outside = int(state["positive"][0]), int(state["outside"][0])
        self._median, self._spread = float(state["median"][0]), float(state["spread"][0])
