"""Reading a run back: one layer or scalar over steps, and many layers as a byte matrix.

Steps fall into buckets of a fixed power-of-two width, so that a curve does not jump on
refresh. Every bucket keeps its extremes and counts its non-finite values: a single spike
or NaN is visible at every zoom. Steps that a later attempt redid are left out.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwarden import wire
from gradwarden_server.store.frames import FrameLog
from gradwarden_server.store.runs import RunStore

Floats = NDArray[np.float32]

_CACHE_BYTES = 256 << 20
_NON_FINITE_LISTED = 20_000
_NAN, _INF = wire.QUANTITIES.index("nan"), wire.QUANTITIES.index("inf")  # neighbours


@dataclass(frozen=True, slots=True)
class Heatmap:
    """``cells`` are rows x cols bytes: 0 no data, 1-254 linear in log10, 255 non-finite."""

    header: dict[str, Any]
    cells: bytes


@dataclass(frozen=True, slots=True)
class SeriesTable:
    """Per key and bucket: min, max and last of the finite values, and the non-finite count."""

    step: list[int]
    time_ns: list[int]
    keys: dict[str, dict[str, list[float | int | None]]]


@dataclass(frozen=True, slots=True)
class _Piece:
    """One decoded batch; ``matrix`` is [m, L, K] over the frames at ``rows``.

    ``squares`` is the sum of squared norms over the observed layers, [m].
    """

    rank: int
    layout: str
    frames: tuple[wire.Frame, ...]
    rows: NDArray[np.int64]
    steps: NDArray[np.int64]
    times_ns: NDArray[np.int64]
    matrix: Floats
    squares: NDArray[np.float64]
    shift_ns: int

    @property
    def size(self) -> int:
        return int(self.matrix.nbytes) + 500 * len(self.frames)


class History:
    """Queries over the frame log; decoded batches are kept while they fit in memory."""

    def __init__(self, log: FrameLog, runs: RunStore) -> None:
        self._log = log
        self._runs = runs
        self._cache: OrderedDict[tuple[str, str, int], _Piece] = OrderedDict()
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
        grid = _Buckets(span, first, last, cols)
        quantity = wire.QUANTITIES.index(metric)
        shape = (len(layout.parameters), grid.count)
        top = np.full(shape, -np.inf, dtype=np.float32)
        nan = np.zeros(shape, dtype=np.int64)
        inf = np.zeros(shape, dtype=np.int64)
        times = np.zeros(grid.count, dtype=np.int64)
        rows_of: dict[str, NDArray[np.int64]] = {}
        position = {p.name: i for i, p in enumerate(layout.parameters)}
        for piece, superseded_after in self._pieces(project, run, grid.first, grid.last):
            kept, columns = grid.columns(piece.steps, superseded_after)
            if not kept.size:
                continue
            if piece.layout not in rows_of:
                own = self._runs.layout(project, piece.layout)
                names = [p.name for p in own.parameters] if own else []
                rows_of[piece.layout] = np.array([position[n] for n in names], dtype=np.int64)
            block = piece.matrix[kept]
            starts = np.flatnonzero(np.diff(columns, prepend=-1))
            cell = np.ix_(rows_of[piece.layout], columns[starts])
            values = block[:, :, quantity]
            seen = np.isfinite(values) & ~np.isnan(block[:, :, _NAN])
            highest = np.maximum.reduceat(np.where(seen, values, -np.inf), starts, axis=0)
            top[cell] = np.maximum(top[cell], highest.T)
            counts = np.nan_to_num(block[:, :, _NAN : _INF + 1]).astype(np.int64)
            summed = np.add.reduceat(counts, starts, axis=0)
            nan[cell] += summed[:, :, 0].T
            inf[cell] += summed[:, :, 1].T
            first_times = piece.times_ns[kept][starts]
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
            return SeriesTable([], [], {key: _empty() for key in keys})
        grid = _Buckets(span, first, last, points)
        raw: dict[str, dict[int, float]] = {key: {} for key in keys}
        speaker: dict[tuple[str, int], int] = {}
        times: dict[int, int] = {}
        squares: dict[int, dict[int, float]] = {}
        for piece, superseded_after in self._pieces(project, run, grid.first, grid.last):
            matrix_of = {int(at): i for i, at in enumerate(piece.rows)}
            columns = self._layer_columns(project, piece, wanted)
            for at, frame in enumerate(piece.frames):
                if not grid.first <= frame.step <= grid.last or frame.step > superseded_after:
                    continue
                times.setdefault(frame.step, frame.time_ns + piece.shift_ns)
                index = matrix_of.get(at)
                for key in keys:
                    if key == "grad_norm":
                        if index is not None:
                            by_rank = squares.setdefault(frame.step, {})
                            by_rank[piece.rank] = float(piece.squares[index])
                        continue
                    if key in columns:
                        value = None if index is None else columns[key].get(index)
                    else:
                        value = frame.scalars.get(key)
                    if value is not None and speaker.get((key, frame.step), piece.rank) >= (
                        piece.rank
                    ):
                        speaker[key, frame.step] = piece.rank
                        raw[key][frame.step] = value
        if "grad_norm" in raw:
            raw["grad_norm"] = {
                step: math.sqrt(sum(by_rank.values())) for step, by_rank in squares.items()
            }
        return _bucketed(grid, raw, times)

    def _layer_columns(
        self, project: str, piece: _Piece, wanted: dict[str, tuple[str, int] | None]
    ) -> dict[str, dict[int, float]]:
        """Per layer key, the observed values of a piece by matrix index."""
        columns: dict[str, dict[int, float]] = {}
        for key, layer in wanted.items():
            if layer is None:
                continue
            columns[key] = {}
            own = self._runs.layout(project, piece.layout) if piece.layout else None
            names = [p.name for p in own.parameters] if own else []
            if layer[0] in names:
                row = names.index(layer[0])
                observed = np.flatnonzero(~np.isnan(piece.matrix[:, row, _NAN]))
                values = piece.matrix[observed, row, layer[1]]
                columns[key] = dict(zip(observed.tolist(), values.tolist(), strict=True))
        return columns

    def _pieces(
        self, project: str, run: str, first: int, last: int
    ) -> Iterator[tuple[_Piece, float]]:
        """Decoded batches, with the last step of their attempt that counts."""
        until = {
            a.ordinal: math.inf if a.superseded_after is None else a.superseded_after
            for a in self._runs.attempts(project, run)
        }
        entries = self._log.index(project, run, first, last)
        with self._lock:
            held = {
                e.position: self._cache[key]
                for e in entries
                if (key := (project, run, e.position)) in self._cache
            }
        misses = [e.position for e in entries if e.position not in held]
        for entry in self._log.bodies(project, run, misses):
            piece = _decode(entry.batch(), entry.rank, entry.shift_ns)
            held[entry.position] = piece
            self._keep((project, run, entry.position), piece)
        for entry in entries:
            if entry.position in held:
                yield held[entry.position], until.get(entry.ordinal, math.inf)

    def _keep(self, key: tuple[str, str, int], piece: _Piece) -> None:
        with self._lock:
            self._cache[key] = piece
            self._cached_bytes += piece.size
            while self._cached_bytes > _CACHE_BYTES and self._cache:
                _, oldest = self._cache.popitem(last=False)
                self._cached_bytes -= oldest.size


class _Buckets:
    """Steps [first, last] in at most ``limit`` buckets of a power-of-two width."""

    def __init__(
        self, span: tuple[int, int], first: int | None, last: int | None, limit: int
    ) -> None:
        self.first = span[0] if first is None else max(first, span[0])
        self.last = max(self.first, span[1] if last is None else min(last, span[1]))
        self.width = 1
        while self._count(self.width) > limit:
            self.width *= 2
        self.count = self._count(self.width)
        self.origin = self.first // self.width * self.width

    def _count(self, width: int) -> int:
        return self.last // width - self.first // width + 1

    def columns(
        self, steps: NDArray[np.int64], until: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices of the steps within range and up to ``until``, by column, and the columns."""
        kept = np.flatnonzero((steps >= self.first) & (steps <= min(self.last, until)))
        columns = (steps[kept] - self.origin) // self.width
        order = np.argsort(columns, kind="stable")
        return kept[order], columns[order]

    def starts(self) -> list[int]:
        return [self.origin + i * self.width for i in range(self.count)]


def _decode(batch: wire.Batch, rank: int, shift_ns: int) -> _Piece:
    rows = [i for i, frame in enumerate(batch.frames) if frame.values]
    joined = b"".join(batch.frames[i].values for i in rows)
    shape = (len(rows), batch.parameters, len(batch.quantities))
    matrix = np.frombuffer(joined, dtype="<f4").reshape(shape)
    if tuple(batch.quantities) != wire.QUANTITIES:
        order = [
            batch.quantities.index(q) if q in batch.quantities else -1 for q in wire.QUANTITIES
        ]
        filler = np.full((*shape[:2], 1), np.nan, dtype=np.float32)
        matrix = np.concatenate([matrix, filler], axis=2)[:, :, order]
    norms = np.where(np.isnan(matrix[:, :, _NAN]), 0, matrix[:, :, 0]).astype(np.float64)
    frames = tuple(
        wire.Frame(f.seq, f.step, f.time_ns, f.scalars, capture=f.capture, stepped=f.stepped)
        for f in batch.frames
    )
    return _Piece(
        rank=rank,
        layout=batch.layout,
        frames=frames,
        rows=np.array(rows, dtype=np.int64),
        steps=np.array([frames[i].step for i in rows], dtype=np.int64),
        times_ns=np.array([frames[i].time_ns + shift_ns for i in rows], dtype=np.int64),
        matrix=matrix,
        squares=np.sum(norms * norms, axis=1),
        shift_ns=shift_ns,
    )


def _paint(
    metric: str,
    grid: _Buckets,
    top: Floats,
    nan: NDArray[np.int64],
    inf: NDArray[np.int64],
    times: NDArray[np.int64],
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


def _bucketed(
    grid: _Buckets, raw: dict[str, dict[int, float]], times: dict[int, int]
) -> SeriesTable:
    columns = sorted({(step - grid.origin) // grid.width for step in times})
    slot = {column: i for i, column in enumerate(columns)}
    when: list[int] = [0] * len(columns)
    for step in sorted(times, reverse=True):
        when[slot[(step - grid.origin) // grid.width]] = times[step]
    table: dict[str, dict[str, list[float | int | None]]] = {}
    for key, values in raw.items():
        cell = _empty(len(columns))
        for step in sorted(values):
            at, value = slot[(step - grid.origin) // grid.width], values[step]
            if not math.isfinite(value):
                cell["nonfinite"][at] = (cell["nonfinite"][at] or 0) + 1
                continue
            low, high = cell["min"][at], cell["max"][at]
            cell["min"][at] = value if low is None else min(low, value)
            cell["max"][at] = value if high is None else max(high, value)
            cell["last"][at] = value
        table[key] = cell
    steps = [grid.origin + column * grid.width for column in columns]
    return SeriesTable(steps, when, table)


def _empty(size: int = 0) -> dict[str, list[float | int | None]]:
    return {
        "min": [None] * size,
        "max": [None] * size,
        "last": [None] * size,
        "nonfinite": [0] * size,
    }


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
