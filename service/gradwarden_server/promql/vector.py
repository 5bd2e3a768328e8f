"""What flows between the nodes of a query: series on one grid of evaluation times.

A sample that is absent and one that is NaN are two things in PromQL, so presence is kept apart
from values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gradwarden_server.promql.errors import ExecutionError

Labels = dict[str, str]
Key = tuple[tuple[str, str], ...]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Millis = NDArray[np.int64]

NAME = "__name__"
METADATA = frozenset({NAME, "__type__", "__unit__"})
"""Labels that speak of the metric itself; another metric has others."""


@dataclass(slots=True, eq=False)
class Vector:
    """S series over T evaluation times.

    Attributes:
        labels: [S].
        values: [S, T].
        present: [S, T]; a value without presence means nothing.
        nameless: [S], series whose name is to be dropped at the end. Prometheus drops names
            late, so that ``label_replace`` can still read them.
        ordered: Whether the order of the series is the query's answer, as after ``sort``.
    """

    labels: list[Labels]
    values: Floats
    present: Flags
    nameless: list[bool] = field(default_factory=list)
    ordered: bool = False

    def __post_init__(self) -> None:
        """Names stay where nothing is said."""
        if not self.nameless:
            self.nameless = [False] * len(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def changed(self, values: Floats, present: Flags | None = None, drop: bool = True) -> Vector:
        """The same series with other values; ``drop`` because they are another metric now."""
        nameless = [True] * len(self) if drop else list(self.nameless)
        there = self.present if present is None else present
        return Vector(self.labels, values, there, nameless, self.ordered)

    def taken(self, rows: Sequence[int]) -> Vector:
        """Some of its series, in this order."""
        chosen = list(rows)
        return Vector(
            [self.labels[i] for i in chosen],
            self.values[chosen],
            self.present[chosen],
            [self.nameless[i] for i in chosen],
            self.ordered,
        )


def empty(times: int) -> Vector:
    """No series over so many evaluation times."""
    return Vector([], np.zeros((0, times)), np.zeros((0, times), np.bool_))


def single(values: Floats, labels: Labels | None = None, present: Flags | None = None) -> Vector:
    """One series; ``values`` [T]."""
    there = np.ones(len(values), np.bool_) if present is None else present
    return Vector([dict(labels or {})], values[None, :], there[None, :])


def stacked(parts: Sequence[Vector], times: int) -> Vector:
    """The series of several vectors behind each other."""
    held = [part for part in parts if len(part)]
    if not held:
        return empty(times)
    if len(held) == 1:
        return held[0]
    return Vector(
        [labels for part in held for labels in part.labels],
        np.concatenate([part.values for part in held]),
        np.concatenate([part.present for part in held]),
        [flag for part in held for flag in part.nameless],
    )


def key(labels: Labels) -> Key:
    """What identifies a series; an empty value is no label."""
    return tuple(sorted((name, value) for name, value in labels.items() if value))


def without_name(labels: Labels) -> Labels:
    """A copy without what speaks of the metric itself."""
    rest = labels.copy()
    for name in METADATA:
        rest.pop(name, None)
    return rest


def named(vector: Vector) -> Vector:
    """Drop the names that are to be dropped, and join series that became one.

    Raises:
        ExecutionError: two of them have a value at the same time.
    """
    labels = [
        without_name(held) if drop else held
        for held, drop in zip(vector.labels, vector.nameless, strict=True)
    ]
    return merged(Vector(labels, vector.values, vector.present, ordered=vector.ordered))


def merged(vector: Vector) -> Vector:
    """Series of one label set as one.

    Raises:
        ExecutionError: two of them have a value at the same time.
    """
    if _alike(vector.labels):
        return vector
    places: dict[frozenset[tuple[str, str]], list[int]] = {}
    for row, labels in enumerate(vector.labels):
        said = labels.items() if "" not in labels.values() else key(labels)
        places.setdefault(frozenset(said), []).append(row)
    if len(places) == len(vector):
        return vector
    firsts = []
    values, present = vector.values.copy(), vector.present.copy()
    for rows in places.values():
        first = rows[0]
        firsts.append(first)
        for row in rows[1:]:
            if (present[first] & present[row]).any():
                raise ExecutionError("vector cannot contain metrics with the same labelset")
            values[first] = np.where(present[row], values[row], values[first])
            present[first] |= present[row]
    whole = Vector(vector.labels, values, present, vector.nameless, vector.ordered)
    return whole.taken(firsts)


def _alike(labels: Sequence[Labels]) -> bool:
    """Whether all have the same names in one order, and no two the same values: thousands of
    series of one metric, which need no closer look. Where empty values are, it cannot tell."""
    if not labels:
        return True
    names = tuple(labels[0])
    values = {tuple(held.values()) for held in labels}
    return (
        len(values) == len(labels)
        and all(tuple(held) == names for held in labels)
        and not any("" in held for held in values)
    )


def told(labels: Iterable[tuple[str, str]]) -> str:
    """Labels as an error names them."""
    return "{" + ", ".join(f'{name}="{value}"' for name, value in sorted(labels)) + "}"
