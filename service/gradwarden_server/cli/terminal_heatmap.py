"""The heatmap of a run in a terminal: a row of cells for each layer or block of layers."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.style import Style
from rich.text import Text

NONFINITE = 255
_MAGENTA = Style(color="#ff2bd6", bold=True)
_NOTHING = Text("·", "dim")
# Anchors of cividis, which people with any colour vision read alike, from low to high.
_ANCHORS = ((0, 32, 76), (64, 77, 107), (124, 123, 120), (185, 172, 112), (255, 233, 69))


@dataclass(frozen=True, slots=True)
class Heat:
    """Rows x columns of steps as the service sends them; cells are 0 for no data.

    ``layers`` are the rows' places among the run's parameters.
    """

    layers: tuple[int, ...]
    step: tuple[int, ...]
    low: float
    high: float
    cells: NDArray[np.uint8]


def decoded(body: bytes) -> Heat | None:
    """The answer of ``/v1/runs/{run}/heatmap``; None where it has no cell."""
    (length,) = struct.unpack_from("<I", body)
    header = json.loads(body[4 : 4 + length])
    rows, columns = header["rows"], header["cols"]
    if not rows or not columns:
        return None
    cells = np.frombuffer(body, np.uint8, rows * columns, 4 + length).reshape(rows, columns)
    return Heat(tuple(header["layers"]), tuple(header["step"]), header["lo"], header["hi"], cells)


def folded(
    heat: Heat, names: Sequence[str], rows: int, columns: int
) -> tuple[list[str], NDArray[np.uint8]]:
    """The newest columns, and neighbouring layers as one row by their largest value.

    Non-finite is the largest of all, so no NaN is folded away. ``names`` are those of the run's
    parameters.
    """
    cells = heat.cells[:, -columns:]
    edges = np.linspace(0, len(cells), min(rows, len(cells)) + 1).round().astype(int)
    labels, lines = [], []
    for first, behind in itertools.pairwise(edges):
        lines.append(cells[first:behind].max(axis=0))
        more = behind - first - 1
        labels.append(names[heat.layers[first]] + (f" +{more}" if more else ""))
    return labels, np.array(lines, np.uint8)


def line(cells: NDArray[np.uint8]) -> Text:
    """One row of cells, [columns]."""
    text = Text(no_wrap=True)
    for cell in cells.tolist():
        if cell == 0:
            text.append_text(_NOTHING)
        elif cell == NONFINITE:
            text.append("X", _MAGENTA)
        else:
            text.append(" ", _STYLES[cell])
    return text


def _style(cell: int) -> Style:
    at = (max(cell, 1) - 1) / 253 * (len(_ANCHORS) - 1)
    low = min(int(at), len(_ANCHORS) - 2)
    mixed = [
        round(a + (b - a) * (at - low))
        for a, b in zip(_ANCHORS[low], _ANCHORS[low + 1], strict=True)
    ]
    return Style(bgcolor="#{:02x}{:02x}{:02x}".format(*mixed))


_STYLES = [_style(cell) for cell in range(NONFINITE)]
