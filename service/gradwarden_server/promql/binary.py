"""Binary operators: between numbers, a vector and a number, and two vectors that are matched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gradwarden_server.promql.errors import ExecutionError
from gradwarden_server.promql.vector import (
    NAME,
    Flags,
    Floats,
    Key,
    Labels,
    Vector,
    empty,
    key,
    merged,
    stacked,
    told,
    without_name,
)

COMPARISONS: Mapping[str, Callable[[Floats, Floats], Flags]] = {
    "==": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}
ARITHMETIC: Mapping[str, Callable[[Floats, Floats], Floats]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.fmod,
    "^": np.power,
    "atan2": np.arctan2,
}
SETS = frozenset({"and", "or", "unless"})


@dataclass(frozen=True, slots=True)
class Matching:
    """How series of two sides find each other.

    Attributes:
        on: The labels that must agree; None for all but those of ``ignoring``.
        ignoring: Labels that need not agree.
        many: Which side may have several series for one of the other.
        include: Labels that the many take from the one.
        fill: In place of a series that is lacking where there may be many, and where only one.
        keep_bool: Whether a comparison answers 0 or 1 in place of choosing.
    """

    on: tuple[str, ...] | None = None
    ignoring: tuple[str, ...] = ()
    many: Literal["none", "left", "right"] = "none"
    include: tuple[str, ...] = ()
    fill: tuple[float | None, float | None] = (None, None)
    keep_bool: bool = False

    def signature(self, labels: Labels) -> Key:
        """What a series is matched by."""
        if self.on is not None:
            return tuple((name, labels[name]) for name in self.on if labels.get(name))
        out = {*self.ignoring, NAME}
        return key({name: value for name, value in labels.items() if name not in out})


def scalars(op: str, left: Floats, right: Floats) -> Floats:
    """Between two numbers at each time."""
    with np.errstate(all="ignore"):
        if op in COMPARISONS:
            return np.asarray(COMPARISONS[op](left, right), np.float64)
        return np.asarray(ARITHMETIC[op](left, right), np.float64)


def with_scalar(op: str, vector: Vector, scalar: Floats, swapped: bool, keep_bool: bool) -> Vector:
    """Between each series and one number a time; ``swapped`` where the number is on the left."""
    left, right = (scalar[None, :], vector.values) if swapped else (vector.values, scalar[None, :])
    with np.errstate(all="ignore"):
        if op in ARITHMETIC:
            return vector.changed(np.asarray(ARITHMETIC[op](left, right), np.float64))
        holds = np.asarray(COMPARISONS[op](left, right), np.bool_)
    if keep_bool:
        return vector.changed(holds.astype(np.float64))
    return vector.changed(vector.values, vector.present & holds, drop=False)


def sets(op: str, left: Vector, right: Vector, matching: Matching) -> Vector:
    """``and``, ``or``, ``unless``: which series there are, never their values."""
    times = left.values.shape[1]
    if op == "or":
        held = _presence(left, matching, times)
        there = [
            right.present[row] & ~held.get(matching.signature(labels), np.False_)
            for row, labels in enumerate(right.labels)
        ]
        kept = right.changed(right.values, np.array(there, np.bool_).reshape(-1, times), drop=False)
        return stacked([left, kept], times)
    other = _presence(right, matching, times)
    nothing = np.zeros(times, np.bool_)
    matched = np.array(
        [other.get(matching.signature(labels), nothing) for labels in left.labels], np.bool_
    ).reshape(-1, times)
    present = left.present & (matched if op == "and" else ~matched)
    return left.changed(left.values, present, drop=False)


def vectors(op: str, left: Vector, right: Vector, matching: Matching) -> Vector:
    """Between series that match.

    Raises:
        ExecutionError: a match is not unique on a side where it must be.
    """
    times = left.values.shape[1]
    swapped = matching.many == "right"
    many, one = (right, left) if swapped else (left, right)
    fill_many, fill_one = matching.fill  # not by side: Prometheus fills what it has swapped
    if fill_one is not None:
        one = _filled(one, many, matching, fill_one)
    if fill_many is not None:
        many = _filled(many, one, matching, fill_many)
    if not len(many) or not len(one):
        return empty(times)
    ones = _ones(one, many, matching, swapped)
    parts: list[tuple[Labels, int, int]] = []
    used: dict[Key, Flags] = {}
    for row, labels in enumerate(many.labels):
        signature = matching.signature(labels)
        for match in ones.get(signature, ()):
            both = many.present[row] & one.present[match]
            if not both.any():
                continue
            if matching.many == "none":
                before = used.get(signature)
                if before is not None and (before & both).any():
                    raise ExecutionError(
                        "multiple matches for labels: many-to-one matching must be explicit "
                        "(group_left/group_right)"
                    )
                used[signature] = both if before is None else before | both
            result = _result(op, labels, one.labels[match], matching)
            parts.append((result, row, match))
    if not parts:
        return empty(times)
    rows, matches = [row for _, row, _ in parts], [match for _, _, match in parts]
    a, b = (one.values[matches], many.values[rows])
    a, b = (a, b) if swapped else (b, a)
    both = many.present[rows] & one.present[matches]
    results = [held for held, _, _ in parts]
    if matching.many != "none":
        _unique(results, [matching.signature(many.labels[row]) for row in rows], both)
    with np.errstate(all="ignore"):
        if op in ARITHMETIC:
            return merged(Vector(results, np.asarray(ARITHMETIC[op](a, b), np.float64), both))
        holds = np.asarray(COMPARISONS[op](a, b), np.bool_)
    if matching.keep_bool:
        return Vector(results, holds.astype(np.float64), both, [True] * len(results))
    return merged(Vector(results, a, both & holds))


def _presence(vector: Vector, matching: Matching, times: int) -> dict[Key, Flags]:
    held: dict[Key, Flags] = {}
    for row, labels in enumerate(vector.labels):
        signature = matching.signature(labels)
        before = held.get(signature)
        there = vector.present[row]
        held[signature] = there if before is None else before | there
    return held


def _filled(lacking: Vector, other: Vector, matching: Matching, value: float) -> Vector:
    """A side with series of one value where only the other has something to match."""
    times = other.values.shape[1]
    known = _presence(lacking, matching, times)
    wanted = _presence(other, matching, times)
    nothing = np.zeros(times, np.bool_)
    fresh = {s: there & ~known.get(s, nothing) for s, there in wanted.items()}
    added = {s: there for s, there in fresh.items() if there.any()}
    if not added:
        return lacking
    labels = [dict(signature) for signature in added]
    filled = Vector(labels, np.full((len(added), times), value), np.array(list(added.values())))
    return stacked([lacking, filled], times)


def _ones(one: Vector, many: Vector, matching: Matching, swapped: bool) -> dict[Key, Sequence[int]]:
    """The series of the side where one match must be unique, by signature."""
    ones: dict[Key, list[int]] = {}
    for row, labels in enumerate(one.labels):
        ones.setdefault(matching.signature(labels), []).append(row)
    for signature, rows in ones.items():
        if len(rows) > 1 and (one.present[rows].sum(axis=0) > 1).any():
            side = "left" if swapped else "right"
            first, second = sorted(told(one.labels[row].items()) for row in rows[:2])
            raise ExecutionError(
                f"found duplicate series for the match group {told(signature)} on the {side} "
                f"hand-side of the operation: [{first}, {second}];many-to-many matching not "
                "allowed: matching labels must be unique on one side"
            )
    return dict(ones)


def _result(op: str, many: Labels, one: Labels, matching: Matching) -> Labels:
    labels = without_name(many) if op in ARITHMETIC else dict(many)
    if matching.many == "none":
        if matching.on is not None:
            return {name: value for name, value in labels.items() if name in matching.on}
        return {n: v for n, v in labels.items() if n not in matching.ignoring}
    for name in matching.include:
        if one.get(name):
            labels[name] = one[name]
        else:
            labels.pop(name, None)
    return labels


def _unique(labels: Sequence[Labels], signatures: Sequence[Key], present: Flags) -> None:
    seen: dict[tuple[Key, Key], Flags] = {}
    for own, signature, there in zip(labels, signatures, present, strict=True):
        place = signature, key(own)
        before = seen.get(place)
        if before is not None and (before & there).any():
            raise ExecutionError(
                "multiple matches for labels: grouping labels must ensure unique matches"
            )
        seen[place] = there if before is None else before | there
