"""Many layers over steps as a byte matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwarden import wire
from gradwarden_server.joins import Flags, Matrix
from gradwarden_server.store.reading.curves import Buckets, Doubles, Ints
from gradwarden_server.store.reading.pieces import INF, NAN, Piece, Quantity

_PAGE = 64
_NON_FINITE_LISTED = 20_000


@dataclass(frozen=True, slots=True)
class Heatmap:
    """``cells`` are rows x cols bytes: 0 no data, 1-254 linear in log10, 255 non-finite."""

    header: dict[str, Any]
    cells: bytes


@dataclass(frozen=True, slots=True)
class Joined:
    """The matrices of several batches of one layout, end to end over ``steps``."""

    layout: str
    superseded_after: float
    steps: Ints
    times_ns: Ints
    matrix: Matrix


def joined(pieces: Iterable[tuple[Piece, float]]) -> Iterator[Joined]:
    """Neighbours that read alike, laid end to end: many small batches cost like a few."""
    filled = (pair for pair in pieces if pair[0].matrix_steps.size)
    for (layout, until), group in groupby(filled, key=lambda pair: (pair[0].layout, pair[1])):
        while some := [piece for piece, _ in islice(group, _PAGE)]:
            yield Joined(
                layout,
                until,
                np.concatenate([piece.matrix_steps for piece in some]),
                np.concatenate([piece.matrix_times_ns for piece in some]),
                np.concatenate([piece.matrix for piece in some]),
            )


class Canvas:
    """One quantity of ``rows`` rows over the buckets of ``grid``.

    A bucket keeps the largest finite value of its steps, of columns that are measured now and
    then (:data:`gradwarden.wire.SLOW`) the newest. What was not measured leaves no trace; a
    non-finite gradient marks its cell whatever the quantity.
    """

    def __init__(self, quantity: Quantity, grid: Buckets, rows: int) -> None:
        self._quantity = quantity
        self._grid = grid
        self._newest = quantity.columns == wire.SLOW
        # Columns first: what comes in is step by step, each with all rows side by side.
        shape = (grid.count, rows)
        self._values = np.full(shape, -np.inf, dtype=np.float32)
        self._bad = np.zeros(shape, dtype=np.bool_)
        self._nan = np.zeros(shape, dtype=np.int64)
        self._inf = np.zeros(shape, dtype=np.int64)
        self._steps = np.full(shape if self._newest else (0, 0), -1, dtype=np.int64)
        self._times = np.zeros(grid.count, dtype=np.int64)

    def add(self, part: Joined, rows: Ints, scale: Doubles | None) -> None:
        """Take matrices whose rows are these of ours, scaled by ``scale``; of statistics the
        non-finite counts as well.
        """
        kept, columns = self._grid.columns(part.steps, part.superseded_after)
        if not kept.size:
            return
        if self._newest:  # a spool may have arrived late
            kept = kept[np.lexsort((part.steps[kept], columns))]
        block = part.matrix[kept]
        starts = np.flatnonzero(np.diff(columns, prepend=-1))
        cell = np.ix_(columns[starts], rows)
        values, measured = self._quantity.of(block, scale)
        if self._newest:
            self._keep_newest(cell, part.steps[kept], starts, values, measured)
        else:
            seen = np.isfinite(values) & measured
            highest = np.maximum.reduceat(np.where(seen, values, -np.inf), starts, axis=0)
            self._values[cell] = np.maximum(self._values[cell], highest)
        if self._quantity.columns == wire.QUANTITIES:
            self._count(cell, starts, block[:, :, NAN : INF + 1])
        first_times = part.times_ns[kept][starts]
        held = self._times[columns[starts]]
        self._times[columns[starts]] = np.where(held > 0, held, first_times)

    def add_rolled(
        self, rows: Ints, columns: Ints, values: Matrix, order: Ints, bad: Matrix | None
    ) -> None:
        """Take [buckets, rows] of roll-ups that lie in these columns, NaN where nothing was.

        ``order`` tells which bucket is newer, ``bad`` where columns that show the newest value
        had a non-finite one.
        """
        if not columns.size:
            return
        starts = np.flatnonzero(np.diff(columns, prepend=-1))
        cell = np.ix_(columns[starts], rows)
        if self._newest:
            order_of = np.where(np.isnan(values), -1, np.arange(order.size)[:, None])
            at = np.maximum.reduceat(order_of, starts, axis=0)
            newest = np.where(at >= 0, order[at], -1)
            taken = (at >= 0) & (newest >= self._steps[cell])
            found = np.take_along_axis(values, np.maximum(at, 0), axis=0)
            self._values[cell] = np.where(taken, found, self._values[cell])
            self._steps[cell] = np.where(taken, newest, self._steps[cell])
        else:
            found = np.fmax.reduceat(values, starts, axis=0)
            self._values[cell] = np.fmax(self._values[cell], found)
        if bad is not None and bad.any():
            self._bad[cell] |= np.add.reduceat(bad, starts, axis=0) > 0

    def add_counts(self, rows: Ints, columns: Ints, sums: Doubles, kind: int) -> None:
        """Take [buckets, rows] sums of NaN (``kind`` 0) or Inf (1) counts."""
        if not sums.any():
            return
        starts = np.flatnonzero(np.diff(columns, prepend=-1))
        counts = np.add.reduceat(sums, starts, axis=0).astype(np.int64)
        (self._inf if kind else self._nan)[np.ix_(columns[starts], rows)] += counts

    def mark_times(self, columns: Ints, times_ns: Ints) -> None:
        """Note when the first frame of each of these columns was."""
        held = self._times[columns]
        self._times[columns] = np.where(held > 0, np.minimum(held, times_ns), times_ns)

    def count(self, part: Joined, rows: Ints) -> None:
        """Take the non-finite counts alone, of matrices of statistics."""
        kept, columns = self._grid.columns(part.steps, part.superseded_after)
        if kept.size:
            starts = np.flatnonzero(np.diff(columns, prepend=-1))
            counts = part.matrix[kept, :, NAN : INF + 1]
            self._count(np.ix_(columns[starts], rows), starts, counts)

    def _count(self, cell: Any, starts: Ints, counts: Matrix) -> None:
        if not (counts > 0).any():
            return
        summed = np.add.reduceat(np.nan_to_num(counts).astype(np.int64), starts, axis=0)
        self._nan[cell] += summed[:, :, 0]
        self._inf[cell] += summed[:, :, 1]

    def _keep_newest(
        self, cell: Any, steps: Ints, starts: Ints, values: Matrix, measured: Flags
    ) -> None:
        order = np.arange(steps.size)[:, None]
        at = np.maximum.reduceat(np.where(measured, order, -1), starts, axis=0)
        newest = np.where(at >= 0, steps[at], -1)
        taken = (at >= 0) & (newest >= self._steps[cell])
        found = np.take_along_axis(values, np.maximum(at, 0), axis=0)
        self._bad[cell] = np.where(taken, np.isinf(found), self._bad[cell])
        found = np.where(np.isinf(found), -np.inf, found)
        self._values[cell] = np.where(taken, found, self._values[cell])
        self._steps[cell] = np.where(taken, newest, self._steps[cell])

    def painted(self) -> Heatmap:
        """What was added so far."""
        grid, nan, inf = self._grid, self._nan.T, self._inf.T
        bad = np.ascontiguousarray((self._bad | (self._nan > 0) | (self._inf > 0)).T)
        cells, lo, hi = _shades(np.ascontiguousarray(self._values.T))
        cells[bad] = 255
        rows, columns = np.nonzero(bad)
        starts = grid.starts()
        header = {
            "rows": cells.shape[0],
            "cols": grid.count,
            "layers": list(range(cells.shape[0])),
            "step": starts,
            "step_last": [min(s + grid.width - 1, grid.last) for s in starts],
            "time_ns": self._times.tolist(),
            "lo": lo,
            "hi": hi,
            "bucket": grid.width,
            "nonfinite": [
                [int(r), int(c), int(nan[r, c]), int(inf[r, c])]
                for r, c in zip(
                    rows[:_NON_FINITE_LISTED], columns[:_NON_FINITE_LISTED], strict=True
                )
            ],
            "nonfinite_total": len(rows),
            "metric": self._quantity.name,
            "agg": "last" if self._newest else "max",
        }
        return Heatmap(header, cells.tobytes())


def _shades(values: Matrix) -> tuple[NDArray[np.uint8], float, float]:
    """Bytes of the finite values, and log10 of the least and greatest above zero."""
    seen = np.isfinite(values)
    positive = values[seen & (values > 0)]
    lo = float(np.log10(positive.min())) if positive.size else 0.0
    hi = float(np.log10(positive.max())) if positive.size else 0.0
    span = hi - lo if hi > lo else 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = 1 + np.round((np.log10(np.maximum(values, 0)) - lo) / span * 253)
    cells = np.zeros(values.shape, dtype=np.uint8)
    cells[seen] = np.clip(np.nan_to_num(scaled[seen], neginf=1), 1, 254).astype(np.uint8)
    return cells, lo, hi
