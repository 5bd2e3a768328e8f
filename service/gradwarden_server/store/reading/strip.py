"""Ranks side by side over steps: who told of them, how long its step took, and what was sick."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gradwarden_server.store.reading.curves import Buckets, Doubles, Ints
from gradwarden_server.store.reading.pieces import Piece

_BAD_VALUES = "loss"
_BAD_COUNTS = "local_nonfinite_buckets"
"""What ranks themselves say of their own gradients, before these are averaged over all."""


@dataclass(slots=True)
class RankStrip:
    """One rank, by column: steps that it told, and of these those that were not finite.

    ``sums`` and ``counts`` are of the finite values of each scalar; ``first_bad`` is the first
    step at which its own loss or its own gradients were not finite.
    """

    told: Ints
    bad: Ints
    sums: dict[str, Doubles]
    counts: dict[str, Ints]
    first_bad: int | None = None

    def mean(self, names: Sequence[str]) -> Doubles:
        """The sum of the means of these scalars, NaN where any of them is missing."""
        found = np.zeros(self.told.size)
        for name in names:
            if name not in self.sums:
                return np.full(self.told.size, np.nan)
            with np.errstate(invalid="ignore", divide="ignore"):
                found += self.sums[name] / self.counts[name]
        return found


def strips(
    told: Iterable[tuple[Piece, float]], names: Sequence[str], grid: Buckets
) -> dict[int, RankStrip]:
    """Every rank that told anything within the grid; steps that were redone are left out."""
    found: dict[int, RankStrip] = {}
    for piece, until in told:
        kept, columns = grid.columns(piece.steps, until)
        if not kept.size:
            continue
        one = found.get(piece.rank)
        if one is None:
            zeros = np.zeros(grid.count, np.int64)
            one = found[piece.rank] = RankStrip(zeros, zeros.copy(), {}, {})
        one.told += np.bincount(columns, minlength=grid.count)
        for name in names:
            if name in piece.scalars:
                _add(one, name, *piece.scalars[name], grid, until)
        _sicken(one, piece, grid, until)
    return found


def _add(
    one: RankStrip, name: str, steps: Ints, values: Doubles, grid: Buckets, until: float
) -> None:
    kept, columns = grid.columns(steps, until)
    finite = np.isfinite(values[kept])
    numbers, columns = values[kept][finite].astype(np.float64), columns[finite]
    if name not in one.sums:
        one.sums[name], one.counts[name] = np.zeros(grid.count), np.zeros(grid.count, np.int64)
    one.sums[name] += np.bincount(columns, weights=numbers, minlength=grid.count)
    one.counts[name] += np.bincount(columns, minlength=grid.count)


def _sicken(one: RankStrip, piece: Piece, grid: Buckets, until: float) -> None:
    for name in (_BAD_VALUES, _BAD_COUNTS):
        if name not in piece.scalars:
            continue
        steps, values = piece.scalars[name]
        sick = ~np.isfinite(values) if name == _BAD_VALUES else values > 0
        kept, columns = grid.columns(steps[sick], until)
        if kept.size:
            one.bad += np.bincount(columns, minlength=grid.count)
            first = int(steps[sick][kept].min())
            one.first_bad = first if one.first_bad is None else min(first, one.first_bad)
