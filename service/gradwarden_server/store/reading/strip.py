"""Ranks side by side over steps: who told of them, how long its step took, and what was sick."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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

    ``sums`` and ``counts`` are of the finite values of each scalar.
    """

    told: Ints
    bad: Ints
    sums: dict[str, Doubles]
    counts: dict[str, Ints]

    def mean(self, names: Sequence[str]) -> Doubles:
        """The sum of the means of these scalars, NaN where any of them is missing."""
        found = np.zeros(self.told.size)
        for name in names:
            if name not in self.sums:
                return np.full(self.told.size, np.nan)
            with np.errstate(invalid="ignore", divide="ignore"):
                found += self.sums[name] / self.counts[name]
        return found


@dataclass(frozen=True, slots=True)
class Strips:
    """Every rank that told anything within the grid.

    ``onsets`` is of the whole run, whatever the grid: the first step at which a rank's own loss
    or its own gradients were not finite.
    """

    grid: Buckets
    ranks: dict[int, RankStrip]
    onsets: dict[int, int]


def strips(told: Iterable[tuple[Piece, float]], names: Sequence[str], grid: Buckets) -> Strips:
    """Told is the whole run; steps that were redone are left out."""
    found = Strips(grid, {}, {})
    for piece, until in told:
        sick = [steps[steps <= until] for steps in _sick(piece)]
        first = min((int(steps.min()) for steps in sick if steps.size), default=None)
        if first is not None:
            found.onsets[piece.rank] = min(first, found.onsets.get(piece.rank, first))
        kept, columns = grid.columns(piece.steps, until)
        if not kept.size:
            continue
        one = found.ranks.get(piece.rank)
        if one is None:
            zeros = np.zeros(grid.count, np.int64)
            one = found.ranks[piece.rank] = RankStrip(zeros, zeros.copy(), {}, {})
        one.told += np.bincount(columns, minlength=grid.count)
        for name in names:
            if name in piece.scalars:
                _add(one, name, *piece.scalars[name], grid, until)
        for steps in sick:
            one.bad += np.bincount(grid.columns(steps, until)[1], minlength=grid.count)
    return found


def _sick(piece: Piece) -> Iterator[Ints]:
    """The steps at which its loss was not finite, and those at which its gradients were not."""
    if _BAD_VALUES in piece.scalars:
        steps, values = piece.scalars[_BAD_VALUES]
        yield steps[~np.isfinite(values)]
    if _BAD_COUNTS in piece.scalars:
        steps, values = piece.scalars[_BAD_COUNTS]
        yield steps[values > 0]


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
