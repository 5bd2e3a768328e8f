"""How far the optimizer moves each weight: update ratios, which arrive for few rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwarden_server.detect.baseline import Floats
from gradwarden_server.detect.steps import GroupStep

_MEMORY = 4
"""Measurements of a row that its level is the mean of, exponentially."""
_SMALLEST = -30.0
"""log10 of what stands for an update of nothing."""


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


def measured(held: GroupStep) -> tuple[NDArray[np.int64], Floats] | None:
    """Rows whose update ratio this step has, and its log10; None where it has none."""
    if "update_ratio" not in held.quantities:
        return None
    column = held.column("update_ratio")
    rows = np.flatnonzero((column >= 0) & (column < np.inf))
    if not len(rows):
        return None
    with np.errstate(divide="ignore"):
        ratios = np.log10(column[rows].astype(np.float64))
    return rows, np.maximum(ratios, _SMALLEST)
