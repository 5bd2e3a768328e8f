"""Reading a run back: one layer or scalar over steps, and many layers as a byte matrix.

Steps fall into buckets of a fixed power-of-two width, so that a curve does not jump on
refresh. Every bucket keeps its extremes and counts its non-finite values: a single spike
or NaN is visible at every zoom. Steps that a later attempt redid are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradwarden import wire
from gradwarden_server.store.log.entries import LogReader
from gradwarden_server.store.reading.curves import (
    Buckets,
    Curve,
    Doubles,
    Ints,
    SeriesTable,
    empty,
    table,
)
from gradwarden_server.store.reading.gather import one_voice
from gradwarden_server.store.reading.heat import Canvas, Heatmap, joined
from gradwarden_server.store.reading.pieces import Quantity
from gradwarden_server.store.reading.rows import Layer, fill_from_piece, fill_from_segments
from gradwarden_server.store.reading.strip import Strips, strips
from gradwarden_server.store.reading.telling import Held, Telling
from gradwarden_server.store.reading.zoom import Zoom
from gradwarden_server.store.runs import RunStore

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
    """Queries over what a run sent, whether segments or the log hold it."""

    def __init__(self, log: LogReader, runs: RunStore) -> None:
        self._log = log
        self._runs = runs
        self._telling = Telling(log, runs, log.cache)

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

        def placed(digest: str) -> tuple[Ints, Doubles | None]:
            if digest not in known:
                rows = [position[n] for n in self._rows(project, digest)]
                scale = self._scale(project, digest, quantity)
                known[digest] = np.array(rows, dtype=np.int64), scale
            return known[digest]

        held = self._telling.held(project, run, grid.first, grid.last)
        zoom = Zoom(grid, held.until, held.entries, [*held.whole, *held.split])
        zoom.paint(canvas, quantity, self._log.segments, placed)
        for columns in dict.fromkeys((quantity.columns, wire.QUANTITIES)):
            pieces = self._telling.pieces(held, zoom.rest, columns)
            for part in joined(one_voice(pieces)):
                if columns == quantity.columns:
                    canvas.add(part, *placed(part.layout))
                else:
                    canvas.count(part, placed(part.layout)[0])
        return canvas.painted()

    def series(
        self,
        project: str,
        run: str,
        keys: Sequence[str],
        first: int | None,
        last: int | None,
        points: int,
        attempt: int | None = None,
    ) -> SeriesTable:
        """Scalars by name, ``grad_norm``, or ``layer:<row>:<quantity>``, bucketed by step.

        Of one ``attempt`` with all that a later one did again, or of the run as it stands.

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
        held = self._telling.held(project, run, grid.first, grid.last)
        if attempt is not None:
            held = held.only(attempt)
        for piece, until in self._telling.scalars(held):
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
        layers = [Layer(curves[key], *layer) for key, layer in wanted.items() if layer is not None]
        if layers:
            self._layers(project, held, layers)
        found = {key: curve.of_first_rank(grid) for key, curve in curves.items()}
        if _GRAD_NORM in curves:
            steps, squares = curves[_GRAD_NORM].summed(grid)
            found[_GRAD_NORM] = steps, np.sqrt(squares)
        return table(grid, times, found, sorted(reported))

    def _layers(self, project: str, held: Held, layers: Sequence[Layer]) -> None:
        """Fill the curves of single parameters."""
        rows_of: dict[str, dict[str, int]] = {}

        def placed(digest: str, layer: Layer) -> tuple[int, float] | None:
            if digest not in rows_of:
                rows_of[digest] = self._rows(project, digest)
            row = rows_of[digest].get(layer.name)
            if row is None:
                return None
            scale = self._scale(project, digest, layer.quantity)
            return row, 1.0 if scale is None else float(scale[row])

        fill_from_segments(layers, self._log.segments, held.whole, held.until, placed)
        for columns in dict.fromkeys(layer.quantity.columns for layer in layers):
            of_these = [layer for layer in layers if layer.quantity.columns == columns]
            for piece, end in self._telling.pieces(held, held.split, columns):
                fill_from_piece(of_these, piece, end, placed)

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
            held = self._telling.held(project, run, first, last)
            segments = [*held.whole, *held.split]
            for piece, until in self._telling.pieces(held, segments, wire.HISTOGRAM):
                at = self._rows(project, piece.layout).get(name)
                if at is None:
                    continue
                steps = piece.matrix_steps
                seen = (steps >= first) & (steps <= min(last, until))
                seen &= ~np.isnan(piece.matrix[:, at]).any(axis=1)
                for i in np.flatnonzero(seen)[np.argsort(steps[seen])][-1:].tolist():
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
        found = RankValues({}, {name: {} for name in names})
        for piece, end in self._telling.scalars(self._telling.held(project, run, first, last)):
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

    def rank_strips(
        self,
        project: str,
        run: str,
        names: Sequence[str],
        first: int | None,
        last: int | None,
        cols: int,
    ) -> Strips | None:
        """Every rank over at most ``cols`` buckets of steps; None without data."""
        span = self._log.span(project, run)
        if span is None:
            return None
        held = self._telling.held(project, run, *span)
        return strips(self._telling.scalars(held), names, Buckets(span, first, last, cols))

    def _rows(self, project: str, digest: str) -> dict[str, int]:
        """The row of each parameter in matrices of this layout."""
        layout = self._runs.layout(project, digest) if digest else None
        return {p.name: i for i, p in enumerate(layout.parameters)} if layout else {}

    def _scale(self, project: str, digest: str, quantity: Quantity) -> Doubles | None:
        layout = self._runs.layout(project, digest) if digest else None
        return quantity.scale(layout) if layout else None


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
