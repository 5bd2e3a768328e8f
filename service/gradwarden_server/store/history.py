"""Reading a run back: one layer or scalar over steps, and many layers as a byte matrix.

Steps fall into buckets of a fixed power-of-two width, so that a curve does not jump on
refresh. Every bucket keeps its extremes and counts its non-finite values: a single spike
or NaN is visible at every zoom. Steps that a later attempt redid are left out.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwarden import wire
from gradwarden_server.store.curves import Buckets, Curve, Ints, SeriesTable, empty, table
from gradwarden_server.store.frames import FrameLog, LogEntry
from gradwarden_server.store.gather import gathered, one_voice
from gradwarden_server.store.pieces import INF, NAN, Piece, decode
from gradwarden_server.store.runs import RunStore

Floats = NDArray[np.float32]

_CACHE_BYTES = 256 << 20
_PAGE = 64
_GRAD_NORM = "grad_norm"
_NOTHING = np.zeros(0, dtype=np.int64), np.zeros(0)
_NON_FINITE_LISTED = 20_000


@dataclass(frozen=True, slots=True)
class Heatmap:
    """``cells`` are rows x cols bytes: 0 no data, 1-254 linear in log10, 255 non-finite."""

    header: dict[str, Any]
    cells: bytes


@dataclass(frozen=True, slots=True)
class RankValues:
    """What ranks themselves said: step -> rank -> value, the times corrected to this host's."""

    times_ns: dict[int, dict[int, int]]
    scalars: dict[str, dict[int, dict[int, float]]]


@dataclass(frozen=True, slots=True)
class _Joined:
    """The matrices of several batches of one layout, end to end over ``steps``."""

    layout: str
    superseded_after: float
    steps: Ints
    times_ns: Ints
    matrix: Floats


class History:
    """Queries over the frame log; decoded batches are kept while they fit in memory."""

    def __init__(self, log: FrameLog, runs: RunStore) -> None:
        self._log = log
        self._runs = runs
        self._cache: OrderedDict[tuple[str, str, int], Piece] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def layers(self, project: str, run: str) -> wire.Layout | None:
        """Every parameter of the run, in model order, from its newest layouts."""
        union: dict[str, wire.Parameter] = {}
        backward: tuple[int, ...] = ()
        for digest in self._log.layouts(project, run):
            layout = self._runs.layout(project, digest)
            if layout is not None:
                backward = backward or layout.backward
                for parameter in layout.parameters:
                    union.setdefault(parameter.name, parameter)
        return wire.Layout(tuple(union.values()), backward) if union else None

    def heatmap(
        self, project: str, run: str, metric: str, first: int | None, last: int | None, cols: int
    ) -> Heatmap | None:
        """Layers x steps of one quantity, at most ``cols`` columns wide; None without data."""
        span = self._log.span(project, run)
        layout = self.layers(project, run)
        if span is None or layout is None:
            return None
        grid = Buckets(span, first, last, cols)
        quantity = wire.QUANTITIES.index(metric)
        shape = (len(layout.parameters), grid.count)
        top = np.full(shape, -np.inf, dtype=np.float32)
        nan = np.zeros(shape, dtype=np.int64)
        inf = np.zeros(shape, dtype=np.int64)
        times = np.zeros(grid.count, dtype=np.int64)
        rows_of: dict[str, Ints] = {}
        position = {p.name: i for i, p in enumerate(layout.parameters)}
        for joined in _joined(one_voice(self._pieces(project, run, grid.first, grid.last))):
            kept, columns = grid.columns(joined.steps, joined.superseded_after)
            if not kept.size:
                continue
            if joined.layout not in rows_of:
                names = self._rows(project, joined.layout)
                rows_of[joined.layout] = np.array([position[n] for n in names], dtype=np.int64)
            block = joined.matrix[kept]
            starts = np.flatnonzero(np.diff(columns, prepend=-1))
            cell = np.ix_(rows_of[joined.layout], columns[starts])
            values = block[:, :, quantity]
            seen = np.isfinite(values) & ~np.isnan(block[:, :, NAN])
            highest = np.maximum.reduceat(np.where(seen, values, -np.inf), starts, axis=0)
            top[cell] = np.maximum(top[cell], highest.T)
            counts = block[:, :, NAN : INF + 1]
            if (counts > 0).any():
                counts = np.nan_to_num(counts).astype(np.int64)
                summed = np.add.reduceat(counts, starts, axis=0)
                nan[cell] += summed[:, :, 0].T
                inf[cell] += summed[:, :, 1].T
            first_times = joined.times_ns[kept][starts]
            held = times[columns[starts]]
            times[columns[starts]] = np.where(held > 0, held, first_times)
        return _paint(metric, grid, top, nan, inf, times)

    def series(
        self,
        project: str,
        run: str,
        keys: Sequence[str],
        first: int | None,
        last: int | None,
        points: int,
    ) -> SeriesTable:
        """Scalars by name, ``grad_norm``, or ``layer:<row>:<quantity>``, bucketed by step.

        Raises:
            ValueError: a layer key that names no row or quantity.
        """
        span = self._log.span(project, run)
        layout = self.layers(project, run)
        wanted = {key: _layer_key(key, layout) for key in keys}
        if span is None:
            return SeriesTable([], [], {key: empty() for key in keys})
        grid = Buckets(span, first, last, points)
        times = Curve()
        curves = {key: Curve() for key in keys}
        rows_of: dict[str, dict[str, int]] = {}
        for piece, until in self._pieces(project, run, grid.first, grid.last):
            times.add(piece.steps, piece.times_ns, piece.rank, until)
            if piece.layout not in rows_of:
                rows_of[piece.layout] = self._rows(project, piece.layout)
            for key, curve in curves.items():
                layer = wanted[key]
                if key == _GRAD_NORM:
                    kept = piece.normed
                    steps, values = piece.matrix_steps[kept], piece.squares[kept]
                    curve.add(steps, values, piece.rank, until, piece.group)
                elif layer is None:
                    steps, values = piece.scalars.get(key, _NOTHING)
                    curve.add(steps, values, piece.rank, until)
                elif (row := rows_of[piece.layout].get(layer[0])) is not None:
                    observed = ~np.isnan(piece.matrix[:, row, NAN])
                    values = piece.matrix[observed, row, layer[1]]
                    curve.add(piece.matrix_steps[observed], values, piece.rank, until)
        found = {key: curve.of_first_rank(grid) for key, curve in curves.items()}
        if _GRAD_NORM in curves:
            steps, squares = curves[_GRAD_NORM].summed(grid)
            found[_GRAD_NORM] = steps, np.sqrt(squares)
        return table(grid, times, found)

    def of_ranks(
        self, project: str, run: str, names: Sequence[str], first: int, last: int
    ) -> RankValues:
        """Scalars as each rank reported them, of the newest attempt that has the step."""
        until = self._until(project, run)
        entries = self._log.index(project, run, first, last)
        found = RankValues({}, {name: {} for name in names})
        for piece, end in self._decoded(project, run, entries, until):
            end = min(end, last)
            for step, at in zip(piece.steps.tolist(), piece.times_ns.tolist(), strict=True):
                if first <= step <= end:
                    found.times_ns.setdefault(step, {}).setdefault(piece.rank, at)
            for name, by_step in found.scalars.items():
                steps, values = piece.scalars.get(name, _NOTHING)
                for step, value in zip(steps.tolist(), values.tolist(), strict=True):
                    if first <= step <= end:
                        by_step.setdefault(step, {})[piece.rank] = value
        return found

    def _rows(self, project: str, digest: str) -> dict[str, int]:
        """The row of each parameter in matrices of this layout."""
        layout = self._runs.layout(project, digest) if digest else None
        return {p.name: i for i, p in enumerate(layout.parameters)} if layout else {}

    def _pieces(
        self, project: str, run: str, first: int, last: int
    ) -> Iterator[tuple[Piece, float]]:
        """Decoded batches, shards joined, with the last step of their attempt that counts."""
        until = self._until(project, run)
        entries = self._log.index(project, run, first, last)
        split = {e.ordinal for e in entries if e.shards > 1}
        if split:  # the shards of one step have to meet, whenever each of them arrived
            entries.sort(key=lambda e: (e.ordinal, e.step0 if e.ordinal in split else 0))
        told = self._decoded(project, run, entries, until)
        yield from gathered(told, lambda digest: self._runs.layout(project, digest))

    def _until(self, project: str, run: str) -> dict[int, float]:
        """The last step that counts of each attempt."""
        return {
            a.ordinal: math.inf if a.superseded_after is None else a.superseded_after
            for a in self._runs.attempts(project, run)
        }

    def _decoded(
        self,
        project: str,
        run: str,
        entries: Sequence[LogEntry],
        until: Mapping[int, float],
    ) -> Iterator[tuple[Piece, float]]:
        """Batches page by page, those in memory as they are."""
        for start in range(0, len(entries), _PAGE):
            page = entries[start : start + _PAGE]
            held = self._cached(project, run, [e.position for e in page])
            misses = [e.position for e in page if e.position not in held]
            for entry in self._log.bodies(project, run, misses):
                piece = decode(entry)
                held[entry.position] = piece
                self._keep((project, run, entry.position), piece)
            for entry in page:
                if entry.position in held:
                    yield held[entry.position], until.get(entry.ordinal, math.inf)

    def _cached(self, project: str, run: str, positions: Sequence[int]) -> dict[int, Piece]:
        found = {}
        with self._lock:
            for position in positions:
                key = (project, run, position)
                piece = self._cache.get(key)
                if piece is not None:
                    self._cache.move_to_end(key)
                    found[position] = piece
        return found

    def _keep(self, key: tuple[str, str, int], piece: Piece) -> None:
        with self._lock:
            if key in self._cache:
                return  # decoded by two readers at once
            self._cache[key] = piece
            self._cached_bytes += piece.size
            while self._cached_bytes > _CACHE_BYTES and self._cache:
                _, oldest = self._cache.popitem(last=False)
                self._cached_bytes -= oldest.size


def _joined(pieces: Iterable[tuple[Piece, float]]) -> Iterator[_Joined]:
    """Neighbours that read alike, laid end to end: many small batches cost like a few."""
    filled = (pair for pair in pieces if pair[0].matrix_steps.size)
    for (layout, until), group in groupby(filled, key=lambda pair: (pair[0].layout, pair[1])):
        while some := [piece for piece, _ in islice(group, _PAGE)]:
            yield _Joined(
                layout,
                until,
                np.concatenate([piece.matrix_steps for piece in some]),
                np.concatenate([piece.matrix_times_ns for piece in some]),
                np.concatenate([piece.matrix for piece in some]),
            )


def _paint(
    metric: str,
    grid: Buckets,
    top: Floats,
    nan: Ints,
    inf: Ints,
    times: Ints,
) -> Heatmap:
    bad = (nan > 0) | (inf > 0)
    seen = np.isfinite(top)
    positive = top[seen & (top > 0)]
    lo = float(np.log10(positive.min())) if positive.size else 0.0
    hi = float(np.log10(positive.max())) if positive.size else 0.0
    span = hi - lo if hi > lo else 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = 1 + np.round((np.log10(np.maximum(top, 0)) - lo) / span * 253)
    cells = np.zeros(top.shape, dtype=np.uint8)
    cells[seen] = np.clip(np.nan_to_num(scaled[seen], neginf=1), 1, 254).astype(np.uint8)
    cells[bad] = 255
    rows, columns = np.nonzero(bad)
    starts = grid.starts()
    header = {
        "rows": top.shape[0],
        "cols": grid.count,
        "layers": list(range(top.shape[0])),
        "step": starts,
        "step_last": [min(s + grid.width - 1, grid.last) for s in starts],
        "time_ns": times.tolist(),
        "lo": lo,
        "hi": hi,
        "bucket": grid.width,
        "nonfinite": [
            [int(r), int(c), int(nan[r, c]), int(inf[r, c])]
            for r, c in zip(rows[:_NON_FINITE_LISTED], columns[:_NON_FINITE_LISTED], strict=True)
        ],
        "nonfinite_total": len(rows),
        "metric": metric,
    }
    return Heatmap(header, cells.tobytes())


def _layer_key(key: str, layout: wire.Layout | None) -> tuple[str, int] | None:
    """``layer:<row>:<quantity>`` as (parameter name, column); None for other keys."""
    if not key.startswith("layer:"):
        return None
    _, _, rest = key.partition(":")
    row, _, quantity = rest.partition(":")
    if quantity not in wire.QUANTITIES:
        raise ValueError(f"keys: {key!r}; the quantity is one of {', '.join(wire.QUANTITIES)}")
    rows = len(layout.parameters) if layout else 0
    if layout is None or not row.isdigit() or int(row) >= rows:
        raise ValueError(f"keys: {key!r}; the row is a number below {rows}")
    return layout.parameters[int(row)].name, wire.QUANTITIES.index(quantity)
