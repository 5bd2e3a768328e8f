"""Functions of a range vector: one number per window, for all series of a block at once.

Each takes windows and gives values and presence, [S, T]. Sums over overlapping windows are
reductions between index pairs; where their terms cancel they are done again with care.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from gradwarden_server.promql.rates import (
    Answer,
    RangeFunction,
    Scalars,
    between,
    deriv,
    instant,
    predict,
    rate,
    smoothing,
)
from gradwarden_server.promql.storage import Windows
from gradwarden_server.promql.sums import mean, nan_first, nonempty, quantile_sorted, reduce, total
from gradwarden_server.promql.vector import Floats

_ALL_AT_ONCE = 1 << 24


def _sum(w: Windows, scalars: Scalars, now: Floats) -> Answer:
    return total(w.block.values, w), nonempty(w)


def _avg(w: Windows, scalars: Scalars, now: Floats) -> Answer:
    return mean(w.block.values, w), nonempty(w)


def _count(w: Windows, scalars: Scalars, now: Floats) -> Answer:
    there = nonempty(w)
    return np.broadcast_to(w.counts.astype(np.float64), there.shape).copy(), there


def _present(w: Windows, scalars: Scalars, now: Floats) -> Answer:
    there = nonempty(w)
    return np.ones(there.shape), there


def _min(w: Windows, scalars: Scalars, now: Floats) -> Answer:
    return reduce(np.fmin, w.block.values, w), nonempty(w)


def _max(w: Windows, scalars: Scalars, now: Floats) -> Answer:
    return reduce(np.fmax, w.block.values, w), nonempty(w)


def _last(w: Windows, scalars: Scalars, now: Floats) -> Answer:
    return w.block.values[:, np.maximum(w.behind - 1, 0)], nonempty(w)


def _first(w: Windows, scalars: Scalars, now: Floats) -> Answer:
    return w.block.values[:, np.minimum(w.first, len(w.block.times) - 1)], nonempty(w)


def _variance(w: Windows) -> Floats:
    """Of the population, about the first of each window, so that a large mean costs no digits."""
    values = w.block.values
    counts = np.maximum(w.counts, 1)
    first = values[:, np.minimum(w.first, values.shape[1] - 1)]
    sums, squares = np.zeros_like(first), np.zeros_like(first)
    with np.errstate(all="ignore"):
        for turn in range(2):
            middle = sums / counts if turn else np.zeros_like(first)
            for offset in range(int(w.counts.max(initial=0))):
                inside = offset < w.counts
                apart = values[:, np.where(inside, w.first + offset, 0)] - first - middle
                if turn:
                    squares += np.where(inside, np.square(apart), 0.0)
                else:
                    sums += np.where(inside, apart, 0.0)
        return squares / counts


def _stdvar(w: Windows, scalars: Scalars, now: Floats) -> Answer:
    return _variance(w), nonempty(w)


def _stddev(w: Windows, scalars: Scalars, now: Floats) -> Answer:
    with np.errstate(all="ignore"):
        return np.sqrt(_variance(w)), nonempty(w)


def _by_length(w: Windows, of: Callable[[Floats, Floats], Floats]) -> Floats:
    """``of`` applied to windows of equal length together: ([S, G, W], indices [G]) to [S, G]."""
    result = np.full((len(w.block.labels), len(w.at)), np.nan)
    for length in np.unique(w.counts):
        if length < 1:
            continue
        columns = np.flatnonzero(w.counts == length)
        each = max(1, _ALL_AT_ONCE // max(1, int(length) * len(w.block.labels)))
        for start in range(0, len(columns), each):
            some = columns[start : start + each]
            index = w.first[some][:, None] + np.arange(length)[None, :]
            result[:, some] = of(w.block.values[:, index], some.astype(np.float64))
    return result


def _quantile(w: Windows, scalars: Scalars, now: Floats) -> Answer:
    def of(held: Floats, columns: Floats) -> Floats:
        chosen = scalars[0][columns.astype(np.int64)]
        counts = np.full(held.shape[:-1], float(held.shape[-1]))
        if (chosen == chosen[0]).all() and 0 <= chosen[0] <= 1 and not np.isnan(held).any():
            return _partitioned(float(chosen[0]), held)
        ordered = nan_first(held)
        parts = [
            quantile_sorted(float(q), ordered[:, i], counts[:, i]) for i, q in enumerate(chosen)
        ]
        return np.stack(parts, axis=1)

    return _by_length(w, of), nonempty(w)


def _partitioned(q: float, held: Floats) -> Floats:
    """One quantile of many windows without sorting them."""
    rank = q * (held.shape[-1] - 1)
    low = max(0, math.floor(rank))
    high = min(held.shape[-1] - 1, low + 1)
    parted = np.partition(held, sorted({low, high}), axis=-1)
    weight = rank - math.floor(rank)
    with np.errstate(all="ignore"):
        return np.asarray(parted[..., low] * (1 - weight) + parted[..., high] * weight)


def _mad(w: Windows, scalars: Scalars, now: Floats) -> Answer:
    def of(held: Floats, columns: Floats) -> Floats:
        counts = np.full(held.shape[:-1], float(held.shape[-1]))
        middle = quantile_sorted(0.5, nan_first(held), counts)
        with np.errstate(all="ignore"):
            apart = quantile_sorted(0.5, nan_first(np.abs(held - middle[..., None])), counts)
        return np.asarray(np.where(np.isnan(held).any(axis=-1), np.nan, apart))

    return _by_length(w, of), nonempty(w)


def _changes(w: Windows, scalars: Scalars, now: Floats) -> Answer:
    values = w.block.values
    moved = np.zeros_like(values)
    a, b = values[:, :-1], values[:, 1:]
    moved[:, 1:] = (a != b) & ~(np.isnan(a) & np.isnan(b))
    return between(moved, w), nonempty(w)


def _resets(w: Windows, scalars: Scalars, now: Floats) -> Answer:
    values = w.block.values
    fell = np.zeros_like(values)
    with np.errstate(all="ignore"):
        fell[:, 1:] = values[:, 1:] < values[:, :-1]
    return between(fell, w), nonempty(w)


def _when(of: Callable[[Floats], Floats]) -> RangeFunction:
    """The time of the sample that ``of`` points to in each window: [S, G, W] to [S, G]."""

    def when(w: Windows, scalars: Scalars, now: Floats) -> Answer:
        seconds = w.block.times / 1000

        def chosen(held: Floats, columns: Floats) -> Floats:
            index = w.first[columns.astype(np.int64)] + of(held).astype(np.int64)
            return np.asarray(seconds[index], np.float64)

        return _by_length(w, chosen), nonempty(w)

    return when


def _latest(pick: Callable[..., Floats], worst: float) -> Callable[[Floats], Floats]:
    """Index of the last of the extreme samples; NaN only where there is nothing else."""

    def index(held: Floats) -> Floats:
        shown = np.where(np.isnan(held), worst, held)[..., ::-1]
        return np.asarray(held.shape[-1] - 1 - pick(shown, axis=-1), np.float64)

    return index


RANGE_FUNCTIONS: Mapping[str, RangeFunction] = {
    "avg_over_time": _avg,
    "changes": _changes,
    "count_over_time": _count,
    "delta": rate(counter=False, per_second=False),
    "deriv": deriv,
    "double_exponential_smoothing": smoothing,
    "first_over_time": _first,
    "idelta": instant(counter=False),
    "increase": rate(counter=True, per_second=False),
    "irate": instant(counter=True),
    "last_over_time": _last,
    "mad_over_time": _mad,
    "max_over_time": _max,
    "min_over_time": _min,
    "predict_linear": predict,
    "present_over_time": _present,
    "quantile_over_time": _quantile,
    "rate": rate(counter=True, per_second=True),
    "resets": _resets,
    "stddev_over_time": _stddev,
    "stdvar_over_time": _stdvar,
    "sum_over_time": _sum,
    "ts_of_first_over_time": _when(lambda held: np.zeros(held.shape[:-1])),
    "ts_of_last_over_time": _when(lambda held: np.full(held.shape[:-1], held.shape[-1] - 1.0)),
    "ts_of_max_over_time": _when(_latest(np.argmax, -np.inf)),
    "ts_of_min_over_time": _when(_latest(np.argmin, np.inf)),
}
KEEPS_NAME = frozenset({"first_over_time", "last_over_time"})
