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

import numpy as np

from gradwarden import wire
from gradwarden_server.store.curves import (
    Buckets,
    Curve,
    Doubles,
    Ints,
    SeriesTable,
    empty,
    table,
)
from gradwarden_server.store.entries import LogEntry, LogReader
from gradwarden_server.store.gather import gathered, one_voice
from gradwarden_server.store.heat import Canvas, Heatmap, joined
from gradwarden_server.store.pieces import Piece, Quantity, decode
from gradwarden_server.store.runs import RunStore

_Key = tuple[str, str, int, tuple[str, ...]]

_CACHE_BYTES = 256 << 20
_PAGE = 64
_GRAD_NORM = "grad_norm"
_NOTHING = np.zeros(0, dtype=np.int64), np.zeros(0)
_HISTOGRAM_STEPS = 256
"""Looked through at a time for the newest histogram, then twice as many, and so on."""


@dataclass(frozen=True, slots=True)
class RankValues:
    """What ranks themselves said: step -> rank -> value, the times corrected to this host's."""

    times_ns: dict[int, dict[int, int]]
    scalars: dict[str, dict[int, dict[int, float]]]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Finite non-zero values of one row at ``step``, counted in the bins of the wire format."""

    name: str
    step: int
    time_ns: int
    counts: list[int]


class History:
    """Queries over the frame log; decoded batches are kept while they fit in memory."""

    def __init__(self, log: LogReader, runs: RunStore) -> None:
        self._log = log
        self._runs = runs
        self._cache: OrderedDict[_Key, Piece] = OrderedDict()
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
        quantity = Quantity.named(metric)
        grid = Buckets(span, first, last, cols)
        canvas = Canvas(quantity, grid, len(layout.parameters))
        position = {p.name: i for i, p in enumerate(layout.parameters)}
        known: dict[str, tuple[Ints, Doubles | None]] = {}
        for columns in dict.fromkeys((quantity.columns, wire.QUANTITIES)):
            pieces = self._pieces(project, run, grid.first, grid.last, columns)
            for part in joined(one_voice(pieces)):
                if part.layout not in known:
                    rows = [position[n] for n in self._rows(project, part.layout)]
                    scale = self._scale(project, part.layout, quantity)
                    known[part.layout] = np.array(rows, dtype=np.int64), scale
                if columns == quantity.columns:
                    canvas.add(part, *known[part.layout])
                else:
                    canvas.count(part, known[part.layout][0])
        return canvas.painted()

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
            return SeriesTable([], [], {key: empty() for key in keys}, [])
        grid = Buckets(span, first, last, points)
        times = Curve()
        curves = {key: Curve() for key in keys}
        reported: set[str] = set()
        for piece, until in self._pieces(project, run, grid.first, grid.last):
            times.add(piece.steps, piece.times_ns, piece.rank, until)
            reported.update(piece.scalars)
            if piece.normed.any():
                reported.add(_GRAD_NORM)
            for key, curve in curves.items():
                if key == _GRAD_NORM:
                    kept = piece.normed
                    steps, values = piece.matrix_steps[kept], piece.squares[kept]
                    curve.add(steps, values, piece.rank, until, piece.group)
                elif wanted[key] is None:
                    steps, values = piece.scalars.get(key, _NOTHING)
                    curve.add(steps, values, piece.rank, until)
        layers = [(curves[key], *layer) for key, layer in wanted.items() if layer is not None]
        for columns in dict.fromkeys(quantity.columns for _, _, quantity in layers):
            of_these = [layer for layer in layers if layer[2].columns == columns]
            self._layers(
                project, self._pieces(project, run, grid.first, grid.last, columns), of_these
            )
        found = {key: curve.of_first_rank(grid) for key, curve in curves.items()}
        if _GRAD_NORM in curves:
            steps, squares = curves[_GRAD_NORM].summed(grid)
            found[_GRAD_NORM] = steps, np.sqrt(squares)
        return table(grid, times, found, sorted(reported))

    def _layers(
        self,
        project: str,
        pieces: Iterable[tuple[Piece, float]],
        layers: Sequence[tuple[Curve, str, Quantity]],
    ) -> None:
        """Fill the curves of single parameters, by name, from matrices of their columns."""
        rows_of: dict[str, dict[str, int]] = {}
        scales: dict[tuple[str, str], Doubles | None] = {}
        for piece, until in pieces:
            if piece.layout not in rows_of:
                rows_of[piece.layout] = self._rows(project, piece.layout)
            for curve, name, quantity in layers:
                row = rows_of[piece.layout].get(name)
                if row is None or not piece.matrix_steps.size:
                    continue
                key = piece.layout, quantity.name
                if key not in scales:
                    scales[key] = self._scale(project, piece.layout, quantity)
                scale = scales[key]
                only = slice(row, row + 1)
                values, measured = quantity.of(
                    piece.matrix[:, only], None if scale is None else scale[only]
                )
                kept = measured[:, 0]
                curve.add(piece.matrix_steps[kept], values[kept, 0], piece.rank, until)

    def histogram(self, project: str, run: str, row: int, step: int | None) -> Histogram | None:
        """The newest histogram of a row at or before ``step``, or of all; None without one.

        Raises:
            ValueError: the run has no such row.
        """
        layout, span = self.layers(project, run), self._log.span(project, run)
        rows = len(layout.parameters) if layout else 0
        if layout is None or row >= rows:
            raise ValueError(f"row: {row}; the run has {rows} rows")
        if span is None:
            return None
        name = layout.parameters[row].name
        last = span[1] if step is None else min(step, span[1])
        width = _HISTOGRAM_STEPS
        while last >= span[0]:
            first = max(span[0], last - width + 1)
            best: tuple[int, int] | None = None
            found = None
            for piece, until in self._pieces(project, run, first, last, wire.HISTOGRAM):
                at = self._rows(project, piece.layout).get(name)
                if at is None:
                    continue
                steps = piece.matrix_steps
                held = (steps >= first) & (steps <= min(last, until))
                held &= ~np.isnan(piece.matrix[:, at]).any(axis=1)
                for i in np.flatnonzero(held)[np.argsort(steps[held])][-1:].tolist():
                    if best is None or (int(steps[i]), -piece.rank) > best:
                        best = int(steps[i]), -piece.rank
                        counts = [int(n) for n in piece.matrix[i, at].tolist()]
                        found = Histogram(name, best[0], int(piece.matrix_times_ns[i]), counts)
            if found is not None:
                return found
            last, width = first - 1, width * 2
        return None

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

    def _scale(self, project: str, digest: str, quantity: Quantity) -> Doubles | None:
        layout = self._runs.layout(project, digest) if digest else None
        return quantity.scale(layout) if layout else None

    def _pieces(
        self,
        project: str,
        run: str,
        first: int,
        last: int,
        columns: tuple[str, ...] = wire.QUANTITIES,
    ) -> Iterator[tuple[Piece, float]]:
        """Decoded batches, shards joined, with the last step of their attempt that counts."""
        until = self._until(project, run)
        entries = self._log.index(project, run, first, last)
        split = {e.ordinal for e in entries if e.shards > 1}
        if split:  # the shards of one step have to meet, whenever each of them arrived
            entries.sort(key=lambda e: (e.ordinal, e.step0 if e.ordinal in split else 0))
        told = self._decoded(project, run, entries, until, columns)
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
        columns: tuple[str, ...] = wire.QUANTITIES,
    ) -> Iterator[tuple[Piece, float]]:
        """Batches page by page, those in memory as they are."""
        for start in range(0, len(entries), _PAGE):
            page = entries[start : start + _PAGE]
            held = self._cached(project, run, [e.position for e in page], columns)
            misses = [e.position for e in page if e.position not in held]
            for entry in self._log.bodies(project, run, misses):
                piece = decode(entry, columns)
                held[entry.position] = piece
                self._keep((project, run, entry.position, columns), piece)
            for entry in page:
                if entry.position in held:
                    yield held[entry.position], until.get(entry.ordinal, math.inf)

    def _cached(
        self, project: str, run: str, positions: Sequence[int], columns: tuple[str, ...]
    ) -> dict[int, Piece]:
        found = {}
        with self._lock:
            for position in positions:
                key = (project, run, position, columns)
                piece = self._cache.get(key)
                if piece is not None:
                    self._cache.move_to_end(key)
                    found[position] = piece
        return found

    def _keep(self, key: _Key, piece: Piece) -> None:
        with self._lock:
            if key in self._cache:
                return  # decoded by two readers at once
            self._cache[key] = piece
            self._cached_bytes += piece.size
            while self._cached_bytes > _CACHE_BYTES and self._cache:
                _, oldest = self._cache.popitem(last=False)
                self._cached_bytes -= oldest.size


def _layer_key(key: str, layout: wire.Layout | None) -> tuple[str, Quantity] | None:
    """``layer:<row>:<quantity>`` as the parameter's name and what to read; None for others."""
    if not key.startswith("layer:"):
        return None
    _, _, rest = key.partition(":")
    row, _, name = rest.partition(":")
    try:
        quantity = Quantity.named(name)
    except ValueError as error:
        raise ValueError(f"keys: {key!r}; {error}") from None
    rows = len(layout.parameters) if layout else 0
    if layout is None or not row.isdigit() or int(row) >= rows:
        raise ValueError(f"keys: {key!r}; the row is a number below {rows}")
    return layout.parameters[int(row)].name, quantity
