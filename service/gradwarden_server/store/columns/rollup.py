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
from gradwarden_server.store import columns
from gradwarden_server.store.columns import Level, Words

Ints = NDArray[np.int64]

WIDTHS = (16, 128, 1024)
COUNTS = ("count", "nonfinite")
AGGREGATES = ("min", "max", "mean", "last", *COUNTS)
"""In this order; all [rows, buckets] float32. Of a bucket without finite values the first four
are NaN; counts are exact up to 2**24."""


@dataclass(frozen=True, slots=True)
class Rolled:
    """One column over buckets of one width, each array [rows, buckets].

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
    steps: Ints, words: Words, observed: Flags | None, widths: Sequence[int] = WIDTHS
) -> Iterator[tuple[int, Rolled]]:
    """Each of these ascending widths with the column rolled up to it.

    Args:
        steps: [m], rising.
        words: [rows, m], bits of float32.
        observed: [rows, m], what was measured; None where a NaN says that it was not.
        widths: Each a multiple of the one before.
    """
    if not widths:
        return
    width = widths[0]
    numbers, starts = buckets(steps, width)
    level = columns.roll(words, observed, np.append(starts, steps.size))
    plain = int(level.finite.sum()) == words.size
    yield width, Rolled(_narrow(level), plain)
    for wider in widths[1:]:
        numbers, starts = buckets(numbers, wider // width)
        level = _merged(level, starts)
        width = wider
        yield width, Rolled(_narrow(level), plain)


def _merged(parts: Level, starts: Ints) -> Level:
    order = np.arange(parts.last.shape[1])
    newest = np.maximum.reduceat(np.where(parts.finite > 0, order, -1), starts, axis=1)
    # Where nothing is finite every part is a hole, so that any of them will do.
    last = np.take_along_axis(parts.last, np.maximum(newest, 0), axis=1)
    return Level(
        np.minimum.reduceat(parts.least, starts, axis=1),
        np.maximum.reduceat(parts.most, starts, axis=1),
        np.add.reduceat(parts.sum, starts, axis=1),
        np.where(newest >= 0, last, np.uint32(columns.HOLE)),
        np.add.reduceat(parts.finite, starts, axis=1),
        np.add.reduceat(parts.others, starts, axis=1),
    )


def _narrow(level: Level) -> dict[str, Matrix]:
    """As stored. A mean lies between its least and greatest, also after rounding."""
    empty = level.finite == 0
    nothing = np.uint32(columns.HOLE).view(np.float32)
    low = np.where(empty, nothing, columns.words_of(level.least).view(np.float32))
    high = np.where(empty, nothing, columns.words_of(level.most).view(np.float32))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.clip(level.sum / level.finite, low, high).astype(np.float32)
    return {
        "min": low,
        "max": high,
        "mean": np.where(empty, nothing, mean),
        "last": level.last.view(np.float32),
        "count": level.finite.astype(np.float32),
        "nonfinite": level.others.astype(np.float32),
    }
