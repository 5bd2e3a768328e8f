"""How fast series change over windows: rates of counters, straight lines, smoothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from gradwarden_server.promql.errors import ExecutionError
from gradwarden_server.promql.storage import Windows
from gradwarden_server.promql.sums import nonempty, reduce
from gradwarden_server.promql.vector import Flags, Floats

Answer = tuple[Floats, Flags]
Scalars = Sequence[Floats]
RangeFunction = Callable[[Windows, Scalars, Floats], Answer]
"""(windows, scalar arguments [T] each, evaluation times [T] in seconds) to values and presence,
[S, T] each."""


def rate(counter: bool, per_second: bool) -> RangeFunction:
    """The change over each window, extrapolated to its edges as Prometheus does it."""

    def rate(w: Windows, scalars: Scalars, now: Floats) -> Answer:
        values, times = w.block.values, w.block.times
        there = nonempty(w, 2)
        first = np.minimum(w.first, len(times) - 1)
        last = np.maximum(w.behind - 1, 0)
        with np.errstate(all="ignore"):
            change = values[:, last] - values[:, first]
            if counter:
                change = change + _lost(values, w)
            sampled = (times[last] - times[first]) / 1000
            each = sampled / np.maximum(w.counts - 1, 1)
            to_start = (times[first] - (w.at - w.range_ms)) / 1000
            to_end = (w.at - times[last]) / 1000
            to_start = np.where(to_start >= each * 1.1, each / 2, to_start)
            to_start = np.broadcast_to(to_start, change.shape)
            if counter:
                oldest = values[:, first]
                to_zero = np.where(
                    (change > 0) & (oldest >= 0), sampled * (oldest / change), to_start
                )
                to_start = np.minimum(to_start, to_zero)
            to_end = np.where(to_end >= each * 1.1, each / 2, to_end)
            factor = (sampled + to_start + to_end) / sampled
            if per_second:
                factor = factor / (w.range_ms / 1000)
            return change * factor, there

    return rate


def _lost(values: Floats, w: Windows) -> Floats:
    """What a counter had counted before each of its resets, summed over each window."""
    with np.errstate(all="ignore"):
        fell = np.zeros_like(values)
        fell[:, 1:] = np.where(values[:, 1:] < values[:, :-1], values[:, :-1], 0.0)
    return between(fell, w)


def between(steps: Floats, w: Windows) -> Floats:
    """Sums over each window of what happens from one sample to the next; [S, N] to [S, T]."""
    if not steps.any():
        return np.zeros((len(steps), len(w.at)))
    inner = Windows(w.block, w.at, w.range_ms, np.minimum(w.first + 1, w.behind), w.behind)
    return np.where(inner.counts > 0, reduce(np.add, steps, inner), 0.0)


def instant(counter: bool) -> RangeFunction:
    """From the last two samples alone."""

    def irate(w: Windows, scalars: Scalars, now: Floats) -> Answer:
        times, values = w.block.times, w.block.values
        last, before = np.maximum(w.behind - 1, 0), np.maximum(w.behind - 2, 0)
        with np.errstate(all="ignore"):
            newest = values[:, last]
            change = newest - values[:, before]
            if counter:
                change = np.where(newest < values[:, before], newest, change)
                change = change / ((times[last] - times[before]) / 1000)
        return change, nonempty(w, 2)

    return irate


def _regression(w: Windows, origin: Floats) -> tuple[Floats, Floats]:
    """Slope and value at ``origin`` [T] seconds of a least-squares line, [S, T]."""
    slope = np.full((len(w.block.labels), len(w.at)), np.nan)
    height = slope.copy()
    seconds = w.block.times / 1000
    for at in np.flatnonzero(w.counts >= 2):
        held = w.block.values[:, w.first[at] : w.behind[at]]
        x = seconds[w.first[at] : w.behind[at]] - origin[at]
        n = len(x)
        with np.errstate(all="ignore"):
            middle = math.fsum(x.tolist()) / n
            spread = x - middle
            mean = held.mean(axis=1)
            slope[:, at] = (held - mean[:, None]) @ spread / float(spread @ spread)
            height[:, at] = mean - slope[:, at] * middle
            level = (held == held[:, :1]).all(axis=1)
            wild = level & np.isinf(held[:, 0])
        slope[level, at], height[level, at] = 0.0, held[level, 0]
        slope[wild, at], height[wild, at] = np.nan, np.nan
    return slope, height


def deriv(w: Windows, scalars: Scalars, now: Floats) -> Answer:
    """The slope of a straight line, per second."""
    origin = w.block.times[np.minimum(w.first, len(w.block.times) - 1)] / 1000
    return _regression(w, origin)[0], nonempty(w, 2)


def predict(w: Windows, scalars: Scalars, now: Floats) -> Answer:
    """Where a straight line leads, so many seconds from now."""
    slope, height = _regression(w, now)
    with np.errstate(all="ignore"):
        return slope * scalars[0] + height, nonempty(w, 2)


def smoothing(w: Windows, scalars: Scalars, now: Floats) -> Answer:
    """Holt's double exponential smoothing."""
    factors, trends = scalars
    for name, held in (("smoothing", factors), ("trend", trends)):
        wrong = held[~((held > 0) & (held < 1))]
        if len(wrong):
            raise ExecutionError(
                f"invalid {name} factor. Expected: 0 < {name[0]}f < 1, got: {wrong[0]:g}"
            )
    result = np.full((len(w.block.labels), len(w.at)), np.nan)
    for at in np.flatnonzero(w.counts >= 2):
        held = w.block.values[:, w.first[at] : w.behind[at]]
        sf, tf = factors[at], trends[at]
        before, level = np.zeros(len(held)), held[:, 0]
        with np.errstate(all="ignore"):
            trend = held[:, 1] - held[:, 0]
            for i in range(1, held.shape[1]):
                if i > 1:
                    trend = tf * (level - before) + (1 - tf) * trend
                before, level = level, sf * held[:, i] + (1 - sf) * (level + trend)
        result[:, at] = level
    return result, nonempty(w, 2)
