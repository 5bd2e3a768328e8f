"""What is usual of a quantity that is looked at in stretches of many steps. Pure.

The counterpart, for one slow quantity, of :mod:`gradwarden_server.detect.baseline`: the median
of the stretches that were not out of the ordinary. A level that lasts is the new usual one.
"""

from __future__ import annotations

from statistics import median
from typing import Any


class Level:
    """The usual value of one quantity."""

    def __init__(self, kept: int, needed: int, excluded: int) -> None:
        """Of ``kept`` values, known from ``needed`` on; at most ``excluded`` in a row are left
        out before they are the usual ones."""
        self._kept, self._needed, self._excluded = kept, needed, excluded
        self._usual: list[float] = []
        self._outside: list[float] = []

    @property
    def known(self) -> int:
        """How many values it rests on."""
        return len(self._usual)

    @property
    def value(self) -> float | None:
        """The usual value; None while too few are known."""
        return median(self._usual) if len(self._usual) >= self._needed else None

    def learn(self, value: float, unusual: bool) -> bool:
        """Take one value; True where what was unusual has just become usual."""
        if not unusual:
            self._outside = []
            self._usual = [*self._usual, value][-self._kept :]
            return False
        self._outside.append(value)
        if len(self._outside) < self._excluded:
            return False
        self._usual, self._outside = self._outside[-self._kept :], []
        return True

    def state(self) -> list[Any]:
        return [self._usual, self._outside]

    def restore(self, state: list[Any]) -> None:
        self._usual, self._outside = list(state[0]), list(state[1])
