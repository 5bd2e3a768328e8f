"""Sums over windows and rows, and quantiles of sorted rows: what range functions are made of."""

from __future__ import annotations

import math

import numpy as np

from gradwarden_server.promql.storage import Windows
from gradwarden_server.promql.vector import Flags, Floats

_CANCELLED = 1e-9


def reduce(over: np.ufunc, values: Floats, w: Windows) -> Floats:
    """``over`` reduced along each window, [S, T]; an empty window gives anything."""
    padded = np.concatenate([values, np.zeros((len(values), 1))], axis=1)
    pairs = np.empty(2 * len(w.first), np.int64)
    pairs[0::2], pairs[1::2] = w.first, np.maximum(w.behind, w.first)
    return np.asarray(over.reduceat(padded, pairs, axis=1)[:, 0::2], np.float64)


def nonempty(w: Windows, least: int = 1) -> Flags:
    """Which windows hold enough samples, [S, T]."""
    there = w.counts >= least
    return np.broadcast_to(there, (len(w.block.labels), len(there)))


def total(values: Floats, w: Windows) -> Floats:
    """Sums of each window, [S, T]."""
    with np.errstate(all="ignore"):
        sums = reduce(np.add, values, w)
        weight = reduce(np.add, np.abs(values), w)
        doubtful = nonempty(w) & np.isfinite(weight) & (np.abs(sums) < weight * _CANCELLED)
        overflown = nonempty(w) & ~np.isfinite(sums)
    for row, at in zip(*np.nonzero(doubtful | overflown), strict=True):
        sums[row, at] = careful_sum(values[row, w.first[at] : w.behind[at]])
    return sums


def careful_sum(values: Floats) -> float:
    """The sum of a few values whose terms may cancel.

    Neumaier's variant of Kahan's summation, as Prometheus has it: Neumaier, ZAMM 54 (1974).
    """
    total, lost = 0.0, 0.0
    for value in values.tolist():
        sum_ = total + value
        if math.isinf(sum_):
            lost = 0.0
        elif abs(total) >= abs(value):
            lost += (total - sum_) + value
        else:
            lost += (value - sum_) + total
        total = sum_
    return total + lost


def mean(values: Floats, w: Windows) -> Floats:
    """Means of each window, [S, T]."""
    counts = np.maximum(w.counts, 1)
    with np.errstate(all="ignore"):
        found = total(values, w) / counts
        again = ~np.isfinite(found) & nonempty(w)
        for row, at in zip(*np.nonzero(again), strict=True):
            held = values[row, w.first[at] : w.behind[at]]
            found[row, at] = careful_sum(held / len(held))
    return found


def quantile_sorted(q: float, ordered: Floats, counts: Floats) -> Floats:
    """Quantiles of rows that are sorted, each with so many values. [..., W] to [...].

    NaN counts as the least, as Prometheus sorts it.
    """
    shape = ordered.shape[:-1]
    if math.isnan(q):
        return np.full(shape, np.nan)
    if q < 0 or q > 1:
        return np.full(shape, -np.inf if q < 0 else np.inf)
    rank = q * (counts - 1)
    low = np.maximum(0, np.floor(rank)).astype(np.int64)
    high = np.minimum(counts - 1, low + 1).astype(np.int64)
    weight = rank - np.floor(rank)
    lower = np.take_along_axis(ordered, np.maximum(low, 0)[..., None], -1)[..., 0]
    upper = np.take_along_axis(ordered, np.maximum(high, 0)[..., None], -1)[..., 0]
    with np.errstate(all="ignore"):
        return np.asarray(lower * (1 - weight) + upper * weight, np.float64)


def nan_first(values: Floats) -> Floats:
    """Sorted along the last axis with NaN before all else."""
    ordered = np.sort(values, axis=-1)
    bad = np.isnan(ordered)
    if not bad.any():
        return ordered
    shift = bad.sum(axis=-1, keepdims=True)
    index = (np.arange(values.shape[-1]) - shift) % values.shape[-1]
    return np.take_along_axis(ordered, index, -1)
