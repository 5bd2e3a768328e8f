"""Quantiles and shares of classic histograms: series of cumulative counts with the label ``le``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from gradwarden_server.promql.vector import Floats, Key, Labels, Vector, empty, key, stacked

_TOLERANCE = 1e-12

Buckets = tuple[Floats, Floats]
"""Upper bounds, rising, and cumulative counts."""


def quantile(q: Floats, vector: Vector) -> Vector:
    """``histogram_quantile``: the value below which a share ``q`` [T] of observations lies."""
    return _each(vector, lambda at, buckets: _quantile(float(q[at]), buckets))


def quantiles(qs: Sequence[Floats], vector: Vector, label: str) -> Vector:
    """Several quantiles at once, told apart by a label."""
    parts = []
    for q in qs:
        part = quantile(q, vector)
        shown = number(float(q[0]))
        shown += ".0" if shown.lstrip("-").isdigit() else ""  # as OpenMetrics writes a number
        part.labels = [{**labels, label: shown} for labels in part.labels]
        parts.append(part)
    return stacked(parts, vector.values.shape[1])


def fraction(lower: Floats, upper: Floats, vector: Vector) -> Vector:
    """``histogram_fraction``: the share of observations between two values [T]."""
    return _each(vector, lambda at, buckets: _fraction(float(lower[at]), float(upper[at]), buckets))


def number(value: float) -> str:
    """A number as a label shows it."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e21 else repr(value)


def _each(vector: Vector, of: Callable[[int, Buckets], float]) -> Vector:
    """One number per histogram and time."""
    times = vector.values.shape[1]
    groups: dict[Key, tuple[Labels, list[tuple[float, int]]]] = {}
    for row, labels in enumerate(vector.labels):
        try:
            bound = float(labels.get("le", ""))
        except ValueError:
            continue
        own = {name: value for name, value in labels.items() if name != "le"}
        groups.setdefault(key(own), (own, []))[1].append((bound, row))
    if not groups:
        return empty(times)
    values = np.full((len(groups), times), np.nan)
    present = np.zeros(values.shape, np.bool_)
    for place, (_, members) in enumerate(groups.values()):
        members.sort()
        bounds = np.array([bound for bound, _ in members])
        rows = [row for _, row in members]
        for at in range(times):
            there = vector.present[rows, at]
            if there.any():
                counts = vector.values[rows, at][there]
                values[place, at] = of(at, _coalesced(bounds[there], counts))
                present[place, at] = True
    own_labels = [own for own, _ in groups.values()]
    return Vector(own_labels, values, present, [True] * len(own_labels))


def _coalesced(bounds: Floats, counts: Floats) -> Buckets:
    distinct, place = np.unique(bounds, return_inverse=True)
    if len(distinct) == len(bounds):
        return bounds, counts
    sums = np.zeros(len(distinct))
    np.add.at(sums, place, counts)
    return distinct, sums


def _rising(counts: Floats) -> Floats:
    """Counts without decreases, nor differences that are errors of rounding."""
    rising = counts.copy()
    before = rising[0]
    for i in range(1, len(rising)):
        now = rising[i]
        if now < before or _almost(before, now):
            rising[i] = before
        else:
            before = now
    return rising


def _almost(a: float, b: float) -> bool:
    if a == b:
        return True
    size = abs(a) + abs(b)
    return abs(a - b) / min(size, math.inf) < _TOLERANCE if size else True


def _quantile(q: float, buckets: Buckets) -> float:
    """Interpolated within its bucket, whose observations count as spread evenly."""
    bounds, counts = buckets
    if math.isnan(q):
        return math.nan
    if q < 0 or q > 1:
        return -math.inf if q < 0 else math.inf
    if bounds[-1] != math.inf or len(bounds) < 2:
        return math.nan
    rising = _rising(counts)
    observations = rising[-1]
    if not observations > 0:
        return math.nan
    rank = q * observations
    above = np.flatnonzero(rising[:-1] >= rank)
    if not len(above):
        return float(bounds[-2])
    bucket = int(above[0])
    if bucket == 0 and bounds[0] <= 0:
        return float(bounds[0])
    start, held = 0.0, rising[bucket]
    if bucket > 0:
        start = bounds[bucket - 1]
        held, rank = held - rising[bucket - 1], rank - rising[bucket - 1]
    with np.errstate(all="ignore"):
        return float(start + (bounds[bucket] - start) * np.divide(rank, held))


def _fraction(lower: float, upper: float, buckets: Buckets) -> float:
    bounds, counts = buckets
    if bounds[-1] != math.inf:
        return math.nan
    observations = counts[-1]
    if not observations or math.isnan(lower) or math.isnan(upper):
        return math.nan
    if lower >= upper:
        return 0.0
    ranks = [_rank(value, bounds, counts) for value in (lower, upper)]
    low, high = (min(rank, float(observations)) for rank in ranks)
    return float((high - low) / observations)


def _rank(value: float, bounds: Floats, counts: Floats) -> float:
    """How many observations lie below a value."""
    start = 0.0 if bounds[0] > 0 else -math.inf
    below = 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if start >= value:
            return below
        if bound > value:
            if math.isinf(start):
                return float(count)
            return float(below + (count - below) * (value - start) / (bound - start))
        start, below = bound, float(count)
    return float(counts[-1])
