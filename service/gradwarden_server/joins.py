"""The shards of one group become one matrix, the same way for detectors and for curves.

Ranks that split parameters between them each send a matrix over the same rows. A row that all
hold alike is anyone's; of a sharded one each part was measured alone, and the parts join by
:data:`gradwarden.wire.JOINS`. A sum with a part missing would look like a drop, so such a row
counts as not observed, unless what is there is non-finite: that is bad news already.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradwarden import wire

Matrix = NDArray[np.float32]
Flags = NDArray[np.bool_]

_COUNTED = ("nan", "inf", "zero")
_EVIDENCE = ("l2", "absmax", "nan", "inf")


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """The joined matrix, [..., L, K], and where no part of any row is missing, [...]."""

    values: Matrix
    complete: Flags


def observed(values: Matrix, quantities: tuple[str, ...]) -> Flags:
    """Rows that hold an observation: their counts are numbers. [..., L]"""
    counts = [quantities.index(q) for q in _COUNTED if q in quantities]
    if not counts:
        return np.asarray(~np.isnan(values).all(axis=-1), np.bool_)
    seen = ~np.isnan(values[..., counts[0]])
    for column in counts[1:]:
        if seen.all():
            break
        seen |= ~np.isnan(values[..., column])
    return np.asarray(seen, np.bool_)


def aligned(values: Matrix, have: tuple[str, ...], want: tuple[str, ...]) -> Matrix:
    """The columns that are wanted, in that order; NaN where they were not sent."""
    if have == want:
        return values
    first = have.index(want[0]) if want[0] in have else 0
    if have[first : first + len(want)] == want:  # neighbours are one copy
        return values[..., first : first + len(want)].copy()
    found = np.full((*values.shape[:-1], len(want)), np.nan, np.float32)
    for i, name in enumerate(want):
        if name in have:
            found[..., i] = values[..., have.index(name)]
    return found


def join(
    parts: Iterable[Matrix], shards: int, quantities: tuple[str, ...], sharded: Flags
) -> Whole:
    """Join the parts of one group.

    Args:
        parts: [..., L, K] float32 each, at most one a shard, in the order of shards; rows that
            a shard did not observe are NaN, and a shard that said nothing may be left out.
        shards: How many parts make up the whole.
        quantities: What the K columns are.
        sharded: [L], rows of which each shard holds a part; of the others the first
            observation counts.
    """
    sums: NDArray[np.float64] | None = None
    for part in parts:
        seen = observed(part, quantities)
        terms = _terms(part, quantities)
        if sums is None:
            sums = np.zeros(terms.shape)
            largest = np.zeros(part.shape, np.float32)
            count = np.zeros(seen.shape, np.int64)
            spoke = np.zeros(seen.shape[:-1], np.int64)
            plain = np.full(part.shape, np.nan, np.float32)
        sums += np.where(seen[..., None], terms, 0.0)
        largest = np.where(seen[..., None], np.maximum(largest, part), largest)
        first = seen & (count == 0) & ~sharded
        plain = np.where(first[..., None], part, plain)
        count += seen
        spoke += seen.any(axis=-1)
    if sums is None:
        raise ValueError("no parts to join")
    values = _values(sums, largest, quantities)
    lacking = count < shards
    if lacking.any():
        values = np.where(lacking[..., None], _evidence(values, quantities), values)
    values = np.where(sharded[:, None], values, plain)
    torn = lacking & (count > 0) & sharded
    return Whole(values, np.asarray((spoke >= shards) & ~torn.any(axis=-1), np.bool_))


def _terms(part: Matrix, quantities: tuple[str, ...]) -> NDArray[np.float64]:
    """What is added up over shards, column by column, with the weights' squares last."""
    values = part.astype(np.float64)
    squares = np.square(values)
    weights = np.full((*part.shape[:-1], 1), np.nan)
    if "weight_l2" in quantities:
        weights = squares[..., quantities.index("weight_l2")][..., None]
    terms = np.empty((*part.shape[:-1], len(quantities) + 1))
    terms[..., -1:] = weights
    for i, name in enumerate(quantities):
        kind = wire.JOINS.get(name)
        if kind == "norm":
            terms[..., i] = squares[..., i]
        elif kind == "ratio":  # an empty part weighs nothing, whatever its ratio would be
            moved = squares[..., i] * weights[..., 0]
            terms[..., i] = np.where(weights[..., 0] == 0, 0.0, moved)
        else:
            terms[..., i] = values[..., i]
    return terms


def _values(sums: NDArray[np.float64], largest: Matrix, quantities: tuple[str, ...]) -> Matrix:
    values = sums[..., :-1]
    for i, name in enumerate(quantities):
        kind = wire.JOINS.get(name)
        if kind == "norm":
            values[..., i] = np.sqrt(values[..., i])
        elif kind == "ratio":
            with np.errstate(divide="ignore", invalid="ignore"):
                values[..., i] = np.sqrt(values[..., i] / sums[..., -1])
        elif kind == "max":
            values[..., i] = largest[..., i]
        elif kind is None:  # nobody says how it joins
            values[..., i] = np.nan
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _evidence(values: Matrix, quantities: tuple[str, ...]) -> Matrix:
    """What a row with a part missing still tells: that it is non-finite, or nothing."""
    bad = np.zeros(values.shape[:-1], np.bool_)
    for name in ("nan", "inf"):
        if name in quantities:
            bad |= values[..., quantities.index(name)] > 0
    kept = np.array([name in _EVIDENCE for name in quantities], np.bool_)
    return np.where(bad[..., None] & kept, values, np.float32(np.nan)).astype(np.float32)
