"""What each rank itself said at a step, for one to be compared with the others.

Scalars come from every rank. Matrices come from those that speak for their replicas, so a
norm is known of a few; of a rank that holds one shard it is that shard's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwarden import wire
from gradwarden_server.store.log.entries import LogReader
from gradwarden_server.store.log.segments import Segment
from gradwarden_server.store.reading.curves import Doubles, Ints
from gradwarden_server.store.reading.history import History
from gradwarden_server.store.reading.pieces import NAN, Quantity, decode
from gradwarden_server.store.runs import RunStore
from gradwarden_server.store.shelves.spine import Spine

Floats = NDArray[np.floating[Any]]

NORM = "grad_norm"
_WINDOW = 256
"""Steps looked through at first; four times as many while nobody said anything in them."""


@dataclass(frozen=True, slots=True)
class Told:
    """The newest value that a rank gave at or before a step."""

    step: int
    value: float


@dataclass(frozen=True, slots=True)
class Layer:
    """One quantity of one parameter."""

    parameter: str
    quantity: Quantity


_Found = dict[str, dict[int, Told]]


class Comparison:
    """Reads of single steps over all ranks of a run."""

    def __init__(self, log: LogReader, runs: RunStore, history: History) -> None:
        self._log = log
        self._runs = runs
        self._history = history

    def at(
        self, project: str, run: str, keys: Sequence[str], step: int | None
    ) -> tuple[int, _Found] | None:
        """The step, the newest where left out, and by key and rank what was told at or before it.

        Keys are scalars by name, ``grad_norm``, or ``layer:<row>:<quantity>``. None: the run
        has no steps yet.

        Raises:
            ValueError: a layer key that names no row or quantity.
            Damaged: what would have to be read is.
        """
        layout, span = self._history.layers(project, run), self._log.span(project, run)
        matrices = {key: _layer(key, layout) for key in keys if _of_matrices(key)}
        if span is None:
            return None
        step = span[1] if step is None else step
        scalars = [key for key in keys if key not in matrices]
        last = min(step, span[1])

        def of_scalars(low: int, high: int) -> _Found:
            said = self._history.of_ranks(project, run, scalars, low, high).scalars
            return {key: _newest_of(said[key]) for key in scalars}

        def of_matrices(low: int, high: int) -> _Found:
            return {
                key: self._of_matrices(project, run, layer, low, high)
                for key, layer in matrices.items()
            }

        found = _widening(of_scalars, span[0], last) if scalars else {}
        if matrices:
            found |= _widening(of_matrices, span[0], last)
        return step, found

    def _of_matrices(
        self, project: str, run: str, layer: Layer | None, first: int, last: int
    ) -> dict[int, Told]:
        """By rank the newest value of a layer, or of the norm of all, within [first, last]."""
        until = {
            a.ordinal: last if a.superseded_after is None else min(last, a.superseded_after)
            for a in self._runs.attempts(project, run)
        }
        best: dict[int, tuple[int, int, float]] = {}
        for ordinal, rank, steps, values in self._told(project, run, layer, first, last):
            kept = (steps >= first) & (steps <= until.get(ordinal, last))
            if kept.any():
                at = int(np.argmax(np.where(kept, steps, -1)))
                candidate = int(steps[at]), ordinal, float(values[at])
                best[rank] = max(best.get(rank, candidate), candidate, key=lambda c: c[:2])
        return {rank: Told(step, value) for rank, (step, _, value) in best.items()}

    def _told(
        self, project: str, run: str, layer: Layer | None, first: int, last: int
    ) -> Iterator[tuple[int, int, Ints, Floats]]:
        """Attempt, rank, steps and measured values, of segments and of the log past them."""
        entries, segments = self._log.holding(project, run, first, last)
        told = list(self._log.segments.spines(segments))
        if layer is None:
            for segment, of in told:
                yield segment.ordinal, segment.rank, of.steps[of.matrix_frames], np.sqrt(of.squares)
        else:
            yield from self._compacted(project, told, layer)
        columns = wire.QUANTITIES if layer is None else layer.quantity.columns
        for entry in self._log.bodies(project, run, [e.position for e in entries]):
            piece = decode(entry, columns)
            if layer is None:
                yield entry.ordinal, entry.rank, piece.matrix_steps, np.sqrt(piece.squares)
                continue
            row, scale = self._place(project, piece.layout, layer)
            if row is not None:
                values, measured = layer.quantity.of(piece.matrix[:, row], scale)
                yield entry.ordinal, entry.rank, piece.matrix_steps[measured], values[measured]

    def _compacted(
        self, project: str, told: Sequence[tuple[Segment, Spine]], layer: Layer
    ) -> Iterator[tuple[int, int, Ints, Floats]]:
        """The same of segments: one column of all of them at a time."""
        columns = layer.quantity.columns
        wanted = {columns[layer.quantity.index]}
        if columns == wire.QUANTITIES:
            wanted.add(columns[NAN])  # tells which rows were observed
        places = {
            segment.layout: self._place(project, segment.layout, layer) for segment, _ in told
        }
        for row in {row for row, _ in places.values() if row is not None}:
            here = [
                (segment, of)
                for segment, of in told
                if places[segment.layout][0] == row and wanted <= set(of.columns)
            ]
            found: dict[int, dict[str, Floats]] = {segment.id: {} for segment, _ in here}
            for column in wanted:
                for segment, _, values in self._log.segments.row(here, column, row):
                    found[segment.id][column] = values
            for segment, of in here:
                if len(found[segment.id]) < len(wanted):
                    continue  # retention took it
                steps = of.steps[of.frames_of(columns[layer.quantity.index])]
                matrix = np.full((steps.size, len(columns)), np.nan, np.float32)
                for column, values in found[segment.id].items():
                    matrix[:, columns.index(column)] = values
                taken, measured = layer.quantity.of(matrix, places[segment.layout][1])
                yield segment.ordinal, segment.rank, steps[measured], taken[measured]

    def _place(self, project: str, digest: str, layer: Layer) -> tuple[int | None, Doubles | None]:
        """The parameter's row in matrices of this layout, and its scale."""
        layout = self._runs.layout(project, digest) if digest else None
        names = [p.name for p in layout.parameters] if layout else []
        if layout is None or layer.parameter not in names:
            return None, None
        row = names.index(layer.parameter)
        scale = layer.quantity.scale(layout)
        return row, None if scale is None else scale[row]


def _newest_of(by_step: Mapping[int, Mapping[int, float]]) -> dict[int, Told]:
    """By rank the value of its newest step."""
    return {
        rank: Told(step, value) for step in sorted(by_step) for rank, value in by_step[step].items()
    }


def _widening(look: Callable[[int, int], _Found], first: int, last: int) -> _Found:
    """What is found in the steps before ``last``, further back while nobody told anything."""
    found: _Found = {}
    width = _WINDOW
    while last >= first and not any(found.values()):
        found = look(max(first, last - width + 1), last)
        last, width = last - width, width * 4
    return found


def _of_matrices(key: str) -> bool:
    return key == NORM or key.startswith("layer:")


def _layer(key: str, layout: wire.Layout | None) -> Layer | None:
    """``layer:<row>:<quantity>`` as the parameter and what to read; None for the norm of all."""
    if key == NORM:
        return None
    _, row, name = [*key.split(":", 2), ""][:3]
    try:
        quantity = Quantity.named(name)
    except ValueError as error:
        raise ValueError(f"keys: {key!r}; {error}") from None
    rows = len(layout.parameters) if layout else 0
    if layout is None or not row.isdecimal() or int(row) >= rows:
        raise ValueError(f"keys: {key!r}; the row is a number below {rows}")
    return Layer(layout.parameters[int(row)].name, quantity)
