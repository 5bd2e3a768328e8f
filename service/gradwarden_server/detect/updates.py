"""How far the optimizer moves each weight: update ratios, which arrive for few rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwarden_server.detect.baseline import Floats

_MEMORY = 4
"""Measurements of a row that its level is the mean of, exponentially."""


class Updates:
    """The usual log10 of the update ratio by row of one layout; NaN where it is not known yet."""

    def __init__(self, layout: str, rows: int) -> None:
        self.layout = layout
        self.level = np.full(rows, np.nan)
        self.times = np.zeros(rows, np.int64)

    def learn(self, rows: NDArray[np.int64], ratios: Floats) -> None:
        """Take measurements: log10 of the ratios of some rows."""
        self.times[rows] = np.minimum(self.times[rows] + 1, _MEMORY)
        before = np.where(np.isnan(self.level[rows]), ratios, self.level[rows])
        self.level[rows] = before + (ratios - before) / self.times[rows]

    def excess(self, rows: NDArray[np.int64], ratios: Floats) -> float:
        """By how many decades these rows moved farther than usual, as a median; NaN if unknown."""
        known = ~np.isnan(self.level[rows])
        apart = (ratios - self.level[rows])[known]
        return float(np.median(apart)) if len(apart) else float("nan")

    def state(self) -> list[Any]:
        return [self.layout, self.level, self.times]

    @classmethod
    def restored(cls, state: Sequence[Any]) -> Updates:
        made = cls(state[0], len(state[1]))
        made.level, made.times = state[1], state[2]
        return made
