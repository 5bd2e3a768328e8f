"""Roll-ups: what a column was over power-of-two widths of steps, so that every zoom is cheap.

Of the finite values of a bucket the least, the greatest, the mean and the last, and how many
there were and how many were not finite: a single NaN or spike is visible at every width. A
bucket that two segments share is told by both in part, and parts merge exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradwarden_server.joins import Flags, Matrix

Ints = NDArray[np.int64]

WIDTHS = (16, 128, 1024)
COUNTS = ("count", "nonfinite")
AGGREGATES = ("min", "max", "mean", "last", *COUNTS)
"""In this order; all [rows, buckets] float32. Of a bucket without finite values the first four
are NaN; counts are exact up to 2**24."""


@dataclass(frozen=True, slots=True)
class Rolled:
    """One column over buckets of one width, each array [buckets, rows].

    ``plain`` says that every value was measured and finite: then the counts follow from the
    steps alone.
    """

    values: Mapping[str, Matrix]
    plain: bool


def buckets(steps: Ints, width: int) -> tuple[Ints, Ints]:
    """The buckets (step // width) that these ordered steps fall in, and where each begins."""
    numbers = steps // width
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1)) if numbers.size else numbers
    return numbers[starts], starts


def roll(
    steps: Ints, values: Matrix, observed: Flags | None, widths: Sequence[int] = WIDTHS
) -> Iterator[tuple[int, Rolled]]:
    """Each of these ascending widths with the column rolled up to it.

    Args:
        steps: [m], rising.
        values: [m, rows] float32.
        observed: [m, rows], what was measured; None where a NaN says that it was not.
        widths: Each a multiple of the one before.
    """
    if not widths:
        return
    finite = np.isfinite(values)
    plain = bool(finite.all()) and (observed is None or bool(observed.all()))
    width = widths[0]
    numbers, starts = buckets(steps, width)
    sizes = np.diff(np.append(starts, steps.size))
    rolled = _first(values, finite, observed, starts, sizes, plain)
    yield width, Rolled(_narrow(rolled), plain)
    for wider in widths[1:]:
        numbers, starts = buckets(numbers, wider // width)
        rolled = _merged(rolled, starts)
        width = wider
        yield width, Rolled(_narrow(rolled), plain)


Sums = dict[str, NDArray[np.float64]]


def _first(
    values: Matrix, finite: Flags, observed: Flags | None, starts: Ints, sizes: Ints, plain: bool
) -> Sums:
    if plain:
        return {
            "min": _reduced(np.minimum, values, starts, sizes),
            "max": _reduced(np.maximum, values, starts, sizes),
            "sum": _reduced(np.add, values, starts, sizes, np.float64),
            "last": values[starts + sizes - 1].astype(np.float64),
            "count": np.repeat(sizes[:, None], values.shape[1], axis=1).astype(np.float64),
            "nonfinite": np.zeros((starts.size, values.shape[1])),
        }
    seen = finite if observed is None else finite & observed
    bad = np.isinf(values) if observed is None else observed & ~finite
    order = np.arange(len(values))[:, None]
    newest = np.maximum.reduceat(np.where(seen, order, -1), starts, axis=0)
    last = np.take_along_axis(values, np.maximum(newest, 0), axis=0).astype(np.float64)
    filled = np.where(seen, values, 0.0)
    return {
        "min": _reduced(np.minimum, np.where(seen, values, np.inf), starts, sizes),
        "max": _reduced(np.maximum, np.where(seen, values, -np.inf), starts, sizes),
        "sum": _reduced(np.add, filled, starts, sizes, np.float64),
        "last": np.where(newest >= 0, last, np.nan),
        "count": _reduced(np.add, seen, starts, sizes, np.float64),
        "nonfinite": _reduced(np.add, bad, starts, sizes, np.float64),
    }


def _merged(parts: Sums, starts: Ints) -> Sums:
    found = {
        "min": np.minimum.reduceat(parts["min"], starts, axis=0),
        "max": np.maximum.reduceat(parts["max"], starts, axis=0),
    }
    for name in ("sum", "count", "nonfinite"):
        found[name] = np.add.reduceat(parts[name], starts, axis=0)
    order = np.arange(len(parts["last"]))[:, None]
    newest = np.maximum.reduceat(np.where(parts["count"] > 0, order, -1), starts, axis=0)
    last = np.take_along_axis(parts["last"], np.maximum(newest, 0), axis=0)
    found["last"] = np.where(newest >= 0, last, np.nan)
    return found


def _narrow(sums: Sums) -> dict[str, Matrix]:
    """As stored. A mean lies between its least and greatest, also after rounding."""
    count = sums["count"]
    empty = count == 0
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean = np.where(empty, np.nan, sums["sum"] / count)
        low = np.where(empty, np.nan, sums["min"])
        high = np.where(empty, np.nan, sums["max"])
        found = {
            "min": low,
            "max": high,
            "mean": np.clip(mean, low, high),
            "last": sums["last"],
            "count": count,
            "nonfinite": sums["nonfinite"],
        }
        return {name: array.astype(np.float32) for name, array in found.items()}


def _reduced(
    ufunc: np.ufunc,
    values: NDArray[np.generic],
    starts: Ints,
    sizes: Ints,
    dtype: type[np.float64] | None = None,
) -> NDArray[np.float64]:
    """``reduceat`` over the first axis; equally full buckets are reduced in one go."""
    inner = sizes[1:-1]
    if inner.size < 2 or (inner != inner[0]).any():
        return np.asarray(ufunc.reduceat(values, starts, axis=0, dtype=dtype), np.float64)
    first, last = int(starts[1]), int(starts[-1])
    blocks = values[first:last].reshape(inner.size, int(inner[0]), *values.shape[1:])
    ends = (
        ufunc.reduce(values[:first], axis=0, dtype=dtype)[None],
        ufunc.reduce(blocks, axis=1, dtype=dtype),
        ufunc.reduce(values[last:], axis=0, dtype=dtype)[None],
    )
    return np.concatenate(ends).astype(np.float64)
