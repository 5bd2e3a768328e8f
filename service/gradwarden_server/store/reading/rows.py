"""Single parameters over steps: from segments only the chunks that hold their rows are read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gradwarden_server.store.columns import rollup
from gradwarden_server.store.log.segments import RAW, Segment, SegmentReader
from gradwarden_server.store.reading.curves import Curve
from gradwarden_server.store.reading.pieces import RMS, Piece, Quantity
from gradwarden_server.store.shelves.spine import Spine

Row = NDArray[np.float32]

_NORMS = ("l2", "absmax")


@dataclass(frozen=True, slots=True)
class Layer:
    """A curve to fill with one quantity of one parameter."""

    curve: Curve
    name: str
    quantity: Quantity


Placed = Callable[[str, Layer], tuple[int, float] | None]
"""Of a layout's hash and a layer: its row in matrices and the factor of its values, or None."""


def fill_from_segments(
    layers: Sequence[Layer],
    reader: SegmentReader,
    segments: Sequence[Segment],
    until: Mapping[int, float],
    placed: Placed,
) -> None:
    """Add what segments hold of these layers.

    Raises:
        Damaged: a chunk is.
    """
    told = list(reader.spines([segment for segment in segments if segment.matrices]))
    for layer in layers:
        column = "l2" if layer.quantity.name == RMS else layer.quantity.name
        of_row: dict[int, list[int]] = {}
        scales: dict[int, float] = {}
        for i, (segment, _) in enumerate(told):
            place = placed(segment.layout, layer)
            if place is not None:
                of_row.setdefault(place[0], []).append(i)
                scales[segment.id] = place[1]
        for row, which in of_row.items():
            some = [told[i] for i in which if told[i][0].held == RAW]
            _fill_from_rollups(layer, reader, [told[i] for i in which], row, scales, until)
            counts: dict[int, Row] = {}
            if column in _NORMS:  # their NaN may be the value itself
                counts = {s.id: found for s, _, found in reader.row(some, "nan", row)}

            parts = reader.row(some, column, row)
            spoken = partial(_spoken, until, scales)
            for (rank, end, scale), alike in itertools.groupby(parts, spoken):
                joined = list(alike)
                values = np.concatenate([found for *_, found in joined])
                seen = [counts.get(segment.id, found) for segment, _, found in joined]
                kept = ~np.isnan(np.concatenate(seen) if counts else values)
                steps = reader.steps([(segment, spine) for segment, spine, _ in joined], column)
                if scale != 1:
                    values = values * np.float32(scale)
                if not kept.all():
                    steps, values = steps[kept], values[kept]
                layer.curve.add(steps, values, rank, end)


def _spoken(
    until: Mapping[int, float], scales: Mapping[int, float], part: tuple[Segment, Spine, Row]
) -> tuple[int, float, float]:
    """What neighbours must have in common to be added as one: rank, last step, factor."""
    segment = part[0]
    return segment.rank, until.get(segment.ordinal, math.inf), scales[segment.id]


def _fill_from_rollups(
    layer: Layer,
    reader: SegmentReader,
    told: Sequence[tuple[Segment, Spine]],
    row: int,
    scales: Mapping[int, float],
    until: Mapping[int, float],
) -> None:
    """Where the steps themselves are no longer held: each bucket is told by its first steps,
    as its least, greatest and last value, and one that is not finite if there was any."""
    column = "l2" if layer.quantity.name == RMS else layer.quantity.name
    shown = ("min", "max", "last", "nonfinite")
    of_width: dict[int, list[tuple[Segment, Spine]]] = {}
    for segment, spine in told:
        if segment.held != RAW:
            width = spine.width_of(column, rollup.WIDTHS[segment.held == "coarse"])
            if width is not None:
                of_width.setdefault(width, []).append((segment, spine))
    for width, some in of_width.items():
        for segment, numbers, found in reader.rollups(some, width, column, shown):
            end = until.get(segment.ordinal, math.inf)
            for i, name in enumerate(shown):
                values = found[name][:, row] * np.float32(scales[segment.id])
                if name == "nonfinite":
                    values = np.where(values > 0, np.float32(np.nan), np.float32(0))
                    kept = np.isnan(values)
                else:
                    kept = ~np.isnan(values)
                steps = numbers[kept] * width + i
                layer.curve.add(steps, values[kept], segment.rank, end)


def fill_from_piece(layers: Sequence[Layer], piece: Piece, until: float, placed: Placed) -> None:
    """Add what a piece holds of these layers, whose quantities are among its columns."""
    for layer in layers:
        place = placed(piece.layout, layer) if piece.matrix_steps.size else None
        if place is None:
            continue
        row, scale = place
        factor = np.array([scale]) if layer.quantity.name == RMS else None
        values, measured = layer.quantity.of(piece.matrix[:, row : row + 1], factor)
        kept = measured[:, 0]
        layer.curve.add(piece.matrix_steps[kept], values[kept, 0], piece.rank, until)
