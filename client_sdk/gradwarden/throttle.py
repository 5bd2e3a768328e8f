"""Keeps our share of a step within its budget by capturing fewer of them. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

BUDGET_RATIO = 0.01
BUDGET_SECONDS = 300e-6
"""Budget of a step: one percent of its time, and never less than 300 microseconds."""
WINDOW = 32
"""Steps between two decisions; medians are taken over twice as many."""
WARM_UP = 16
"""First steps, which pay for lazy imports and compilation."""
MOST = 10
"""Largest exponent: one step in 1,024 is captured."""
_EASE = 0.7
"""Captures become more frequent again only where that leaves so much of the budget unused."""
_NEAR = 1.5
"""Where the look at every step alone is above the budget, this times its cost will do."""


class Throttle:
    """Picks the exponent k of ``step mod 2^k = 0`` from what steps and captures cost."""

    def __init__(self) -> None:
        self.exponent = 0
        self._seen = 0
        self._steps: deque[float] = deque(maxlen=2 * WINDOW)
        self._captured: deque[float] = deque(maxlen=2 * WINDOW)
        self._idle: deque[float] = deque(maxlen=2 * WINDOW)

    @property
    def budget(self) -> float:
        """Seconds that a step may cost."""
        return max(BUDGET_SECONDS, BUDGET_RATIO * median(self._steps))

    @property
    def cost(self) -> float:
        """Seconds that a step costs in the mean at the present exponent."""
        return self._cost(self.exponent)

    def step(self, step_seconds: float, cost_seconds: float, captured: bool) -> bool:
        """Take one step's time and our share of it; True where the exponent changed."""
        self._seen += 1
        if self._seen <= WARM_UP:
            return False
        self._steps.append(step_seconds)
        (self._captured if captured else self._idle).append(cost_seconds)
        if self._seen % WINDOW or not self._captured:
            return False
        before, budget = self.exponent, self.budget
        self.exponent = max(self._within(budget), min(before, self._within(_EASE * budget)))
        return self.exponent != before

    def _within(self, budget: float) -> int:
        """The least exponent whose cost is within a budget, or comes near to what can be had."""
        bound = max(budget, _NEAR * self._cost(MOST))
        return next(k for k in range(MOST + 1) if self._cost(k) <= bound)

    def _cost(self, exponent: int) -> float:
        share = 0.5**exponent
        return share * median(self._captured) + (1 - share) * self._floor

    @property
    def _floor(self) -> float:
        """Seconds of a step that is not captured; unknown ones are taken for a quarter."""
        return median(self._idle) if self._idle else 0.25 * median(self._captured)


def median(values: Iterable[float]) -> float:
    """The upper median; 0 of nothing."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else 0.0
