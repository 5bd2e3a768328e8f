"""How low a loss was, and how low it may be expected to be at the present learning rate. Pure.

After a warm restart the loss rises, for a larger learning rate keeps it higher, and falls again as
that decays. So what was reached is remembered by learning rate, and the loss is compared with the
lowest that was reached at the present one or a larger one. A learning rate that was never tried
before excuses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_FIRST = 10
"""Losses whose mean is where the run started."""
_SETTLED = 50
"""Losses to a stretch; the mean of a higher learning rate is known after one or two of them."""
_NO_LR = -(10**6)


class Reference:
    """Where the loss started, the lowest mean, and the lowest at each half octave of the rate."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin anew: other data, or another attempt."""
        self.count = 0
        self.start = self.lowest = math.nan
        self._by_rate: dict[int, float] = {}
        self._stretch: tuple[int, float, float] = (0, math.inf, math.inf)
        self._expected: tuple[int, float] = (0, math.nan)

    @property
    def gained(self) -> float:
        """How far the mean came down from the start; NaN until it is known."""
        return self.start - self.lowest

    def observe(self, mean: float, lr: float | None) -> float:
        """Take the mean after one more loss.

        Returns:
            The lowest mean that was reached at this learning rate or a larger one.
        """
        self.count += 1
        rate = lr or 0.0
        at = round(2 * math.log2(rate)) if rate > 0 else _NO_LR
        if self.count <= _FIRST:
            self.start = self.lowest = mean
        elif mean < self.lowest:
            self.lowest = mean
        known = self._by_rate
        count, least, before = self._stretch
        least = min(least, rate)
        settled = min(least, before) >= rate / 2
        self._stretch = (count + 1, least, before) if count < _SETTLED else (0, rate, least)
        if at not in known:
            known[at] = self.lowest if at > max(known, default=at - 1) else math.inf
            self._expected = (at, math.nan)
        if settled and mean < known[at]:
            known[at] = mean
        if self._expected[0] != at or math.isnan(self._expected[1]):
            value = min(held for rate_, held in known.items() if rate_ >= at - 1)
        else:
            value = min(self._expected[1], known[at])
        self._expected = (at, value)
        return value

    def state(self) -> list[Any]:
        return [
            self.count, self.start, self.lowest, [list(held) for held in self._by_rate.items()],
            self._stretch, self._expected,
        ]  # fmt: skip

    def restore(self, state: Sequence[Any]) -> None:
        self.count, self.start, self.lowest = state[:3]
        self._by_rate = {int(at): held for at, held in state[3]}
        self._stretch = (state[4][0], state[4][1], state[4][2])
        self._expected = (state[5][0], state[5][1])
