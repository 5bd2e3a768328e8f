"""Aggregations over series: one result for each group, or the choice of some of its members."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gradwarden_server.promql.errors import ExecutionError
from gradwarden_server.promql.histograms import number
from gradwarden_server.promql.sums import careful_sum, nan_first, quantile_sorted
from gradwarden_server.promql.vector import METADATA, Floats, Key, Labels, Vector, empty, key

_CANCELLED = 1e-9
_INT64 = 2**63


class Groups:
    """The rows of each group, with what is left of their labels."""

    def __init__(self, vector: Vector, by: Sequence[str] | None, without: Sequence[str]) -> None:
        """``by`` None groups by all labels but those of ``without``."""
        self.labels: list[Labels] = []
        self.rows: list[list[int]] = []
        places: dict[Key | tuple[str, ...], int] = {}
        out = {*without, *METADATA}
        names = None if by is None else tuple(dict.fromkeys(by))
        for row, held in enumerate(vector.labels):
            own: Labels | None = None
            identity: Key | tuple[str, ...]
            if names is None:
                own = {name: value for name, value in held.items() if name not in out}
                identity = key(own)
            else:
                identity = tuple([held.get(name, "") for name in names])
            place = places.setdefault(identity, len(places))
            if place < len(self.rows):
                self.rows[place].append(row)
                continue
            if own is None:
                pairs = zip(names or (), identity, strict=True)
                own = {name: str(value) for name, value in pairs if value}
            self.labels.append(own)
            self.rows.append([row])
        flags = vector.nameless
        self.nameless = [any(flags[row] for row in rows) for rows in self.rows]


def aggregate(vector: Vector, groups: Groups, op: str, parameter: Floats | None) -> Vector:
    """One series a group.

    Args:
        vector: What is aggregated.
        groups: Its groups.
        op: sum, avg, count, min, max, group, stddev, stdvar or quantile.
        parameter: [T], of quantile.
    """
    times = vector.values.shape[1]
    if not len(vector):
        return empty(times)
    values = np.empty((len(groups.rows), times))
    present = np.empty(values.shape, np.bool_)
    for place, rows in enumerate(groups.rows):
        held, there = vector.values[rows], vector.present[rows]
        present[place] = there.any(axis=0)
        with np.errstate(all="ignore"):
            if op == "quantile":
                assert parameter is not None
                values[place] = _quantile(held, there, parameter)
            else:
                values[place] = _REDUCED[op](held, there)
    return Vector(groups.labels, values, present, groups.nameless)


def choose(vector: Vector, groups: Groups, op: str, wanted: Floats) -> Vector:
    """topk, bottomk and limitk: some members of each group, with their own labels.

    Raises:
        ExecutionError: ``wanted`` [T] is no whole number.
    """
    times = vector.values.shape[1]
    if np.isnan(wanted).any():
        raise ExecutionError("Parameter value is NaN")
    if wanted.max() < 1:
        return empty(times)
    for limit, word in ((wanted.min() <= -_INT64, "under"), (wanted.max() >= _INT64, "over")):
        if limit:
            extreme = wanted.min() if word == "under" else wanted.max()
            raise ExecutionError(f"Scalar value {extreme:g} {word}flows int64")
    if not len(vector):
        return empty(times)
    chosen = np.zeros_like(vector.present)
    order: list[int] = []
    for rows in groups.rows:
        for at in range(times):
            members = [row for row in rows if vector.present[row, at]]
            if op != "limitk":
                members.sort(key=_place(vector.values[:, at], op == "topk"))
            members = members[: max(0, int(wanted[at]))]
            chosen[members, at] = True
            order += members
    kept = Vector(vector.labels, vector.values, chosen, vector.nameless)
    if times == 1:
        kept = kept.taken(order)
        kept.ordered = op != "limitk"
        return kept
    return kept.taken([int(row) for row in np.flatnonzero(chosen.any(axis=1))])


def count_values(vector: Vector, groups: Groups, label: str) -> Vector:
    """How many members of each group have which value."""
    times = vector.values.shape[1]
    counts: dict[Key, tuple[Labels, Floats]] = {}
    for own, rows in zip(groups.labels, groups.rows, strict=True):
        for row in rows:
            for at in np.flatnonzero(vector.present[row]):
                labels = {**own, label: number(float(vector.values[row, at]))}
                held = counts.setdefault(key(labels), (labels, np.zeros(times)))
                held[1][at] += 1
    if not counts:
        return empty(times)
    values = np.stack([held for _, held in counts.values()])
    return Vector([labels for labels, _ in counts.values()], values, values > 0)


def _place(values: Floats, descending: bool) -> Callable[[int], tuple[bool, float]]:
    def place(row: int) -> tuple[bool, float]:
        value = float(values[row])
        return (value != value, 0.0 if value != value else -value if descending else value)

    return place


def _sum(values: Floats, present: np.ndarray) -> Floats:
    """Sums over rows, exact where terms cancel. [S, T] to [T]."""
    held = np.where(present, values, 0.0)
    sums = held.sum(axis=0)
    weight = np.abs(held).sum(axis=0)
    doubtful = np.isfinite(weight) & (np.abs(sums) < weight * _CANCELLED) | ~np.isfinite(sums)
    for at in np.flatnonzero(doubtful):
        sums[at] = careful_sum(held[:, at])
    return np.asarray(sums, np.float64)


def _avg(values: Floats, present: np.ndarray) -> Floats:
    counts = np.maximum(present.sum(axis=0), 1)
    mean = _sum(values, present) / counts
    overflown = ~np.isfinite(mean)
    if overflown.any():
        mean = np.where(overflown, _sum(values / counts, present), mean)
    return np.asarray(mean, np.float64)


def _variance(values: Floats, present: np.ndarray) -> Floats:
    """Of the population, about one of its members, so that equal values have none at all."""
    member = np.take_along_axis(values, np.argmax(present, axis=0)[None, :], axis=0)
    apart = values - member
    counts = np.maximum(present.sum(axis=0), 1)
    mean = _avg(apart, present)
    return np.asarray(np.where(present, np.square(apart - mean), 0.0).sum(axis=0) / counts)


def _quantile(values: Floats, present: np.ndarray, q: Floats) -> Floats:
    if present.all():
        ordered = nan_first(np.ascontiguousarray(values.T))
        counts = np.full(len(ordered), float(ordered.shape[1]))
        if (q == q[0]).all():
            return quantile_sorted(float(q[0]), ordered, counts)
    result = np.full(values.shape[1], np.nan)
    for at in range(values.shape[1]):
        held = nan_first(values[present[:, at], at])
        if len(held):
            count = np.array([float(len(held))])
            result[at] = quantile_sorted(float(q[at]), held[None, :], count)[0]
    return result


_REDUCED: Mapping[str, Callable[[Floats, np.ndarray], Floats]] = {
    "avg": _avg,
    "count": lambda values, present: present.sum(axis=0).astype(np.float64),
    "group": lambda values, present: np.ones(values.shape[1]),
    "max": lambda values, present: np.fmax.reduce(np.where(present, values, np.nan), axis=0),
    "min": lambda values, present: np.fmin.reduce(np.where(present, values, np.nan), axis=0),
    "stddev": lambda values, present: np.sqrt(_variance(values, present)),
    "stdvar": _variance,
    "sum": _sum,
}
AGGREGATES = frozenset({*_REDUCED, "quantile"})
CHOICES = frozenset({"topk", "bottomk", "limitk"})
