"""The tidy table that CSV and Parquet share: a row per layer, scalar and event of every frame.

``kind`` says what a row is. A ``frame`` row opens each frame and says when and how it was
captured; then come its ``scalar`` rows (name, value), ``event`` rows (name, data), and one
``layer`` row per layer with a column for each quantity. Empty means: not sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradwarden import wire
from gradwarden_server.transfer import numbers
from gradwarden_server.transfer.faults import Unreadable
from gradwarden_server.transfer.frames import one_frame
from gradwarden_server.transfer.head import Head, parse

KEYS = ("kind", "attempt", "rank", "group", "step", "time_ns", "layer", "name", "value")
REST = ("more", "data", "seq", "capture", "stepped", "open", "layout", "roots")
COLUMNS = (*KEYS, *wire.COLUMNS, *wire.CHECKSUMS, *REST)
"""All of them, always: a program that reads one export reads every other one too."""

_FRAME = ("attempt", "rank", "seq")


@dataclass(slots=True)
class Row:
    """One row as its format read it: cells by column, those that are empty left out.

    Whole numbers, flags and doubles have their types, ``data`` and ``more`` are JSON text,
    roots are bytes; ``values`` are the float32 columns that hold something, called ``names``.
    """

    where: str
    cells: dict[str, Any]
    names: tuple[str, ...] = ()
    values: numbers.Singles = field(default_factory=lambda: np.empty(0, np.float32))


def more_of(
    batch: wire.Batch, values: numbers.Singles, words: Any, row: int
) -> dict[str, str | float]:
    """What of a layer has no column of its own, or is a NaN that text cannot tell."""
    more: dict[str, str | float] = {}
    for i, name in enumerate(batch.quantities):
        if name not in wire.COLUMNS:
            (text,) = numbers.texts(values[row, i : i + 1])
            more[name] = numbers.odd_nans(values[row, i : i + 1]).get(0, text)
    for i, name in enumerate(batch.wide):
        if name not in wire.CHECKSUMS:
            more[f"wide:{name}"] = f"{int(words[row, i]):016x}"
    return more


def frames(head: Head, rows: Iterable[Row]) -> Iterator[wire.Batch]:
    """Batches of one frame each from the rows of a table.

    Raises:
        Unreadable: a row is not what it should be; the text names it.
    """
    building: _Building | None = None
    for row in rows:
        kind = row.cells.get("kind")
        if kind == "frame":
            if building is not None:
                yield building.batch()
            building = _Building(head, row)
        elif building is None or not building.holds(row):
            remedy = "rows of one frame follow its own row, whose kind is frame"
            told = ", ".join(str(row.cells.get(name)) for name in _FRAME)
            raise Unreadable(row.where, ", ".join(_FRAME), told, remedy)
        else:
            building.add(kind, row)
    if building is not None:
        yield building.batch()


class _Building:
    """One frame, row by row."""

    def __init__(self, head: Head, row: Row) -> None:
        self._head, self._row = head, row
        self._key = tuple(row.cells.get(name) for name in _FRAME)
        self._digest = row.cells.get("layout", "")
        self._layout = head.layouts.get(self._digest)
        self._scalars: dict[str, float] = {}
        self._events: list[Any] = []
        self._names: tuple[str, ...] = ()
        self._wide: tuple[str, ...] = ()
        self._values: list[numbers.Singles] = []
        self._words: list[list[int]] = []

    def holds(self, row: Row) -> bool:
        return self._key == tuple(row.cells.get(name) for name in _FRAME)

    def add(self, kind: str | None, row: Row) -> None:
        cells = row.cells
        if kind == "scalar":
            self._scalars[_need(row, "name")] = _need(row, "value")
        elif kind == "event":
            self._events.append(parse(row.where, _need(row, "data")))
        elif kind == "layer":
            self._layer(row)
        else:
            remedy = "one of frame, scalar, event, layer"
            raise Unreadable(row.where, "kind", cells.get("kind"), remedy)

    def _layer(self, row: Row) -> None:
        at, layout = len(self._values), self._layout
        name = row.cells.get("layer")
        if layout is None or at >= len(layout.parameters) or layout.parameters[at].name != name:
            remedy = f"row {at} of layout {self._digest!r} is another; keep the order of rows"
            raise Unreadable(row.where, "layer", name, remedy)
        names, values = row.names, row.values
        words = {n: row.cells[n] for n in wire.CHECKSUMS if n in row.cells}
        if "more" in row.cells:
            told = parse(row.where, row.cells["more"])
            found = dict(zip(names, values, strict=True))
            try:
                for key, text in told.items():
                    if key.startswith("wide:"):
                        words[key.removeprefix("wide:")] = int(text, 16)
                    else:
                        found[key] = numbers.singles([text])[0]
            except (TypeError, ValueError) as error:
                raise Unreadable(row.where, f"more.{key}", text, str(error)) from None
            names, values = tuple(found), np.array(list(found.values()), np.float32)
        if not self._values:
            self._names, self._wide = names, tuple(words)
        if names != self._names or tuple(words) != self._wide:
            remedy = f"all layers of a frame have the same columns: {', '.join(self._names)}"
            raise Unreadable(row.where, "columns", ", ".join(names), remedy)
        self._values.append(values)
        self._words.append([words[n] for n in self._wide])

    def batch(self) -> wire.Batch:
        row, cells, rows = self._row, self._row.cells, len(self._values)
        expected = len(self._layout.parameters) if self._layout else 0
        if rows not in (0, expected):
            remedy = f"layout {self._digest} has {expected} layers; is the file cut off?"
            raise Unreadable(row.where, "layer", f"{rows} rows", remedy)
        try:
            words = np.array(self._words, "<u8").tobytes() if self._wide else b""
        except OverflowError as error:
            raise Unreadable(row.where, "checksum", "a word", str(error)) from None
        frame = wire.Frame(
            seq=_need(row, "seq"),
            step=_need(row, "step"),
            time_ns=_need(row, "time_ns"),
            scalars=self._scalars,
            events=tuple(self._events),
            capture=cells.get("capture", ""),
            stepped=cells.get("stepped"),
            open=cells.get("open") is True,
            values=np.stack(self._values).astype("<f4").tobytes() if rows else b"",
            wide=words,
            roots=cells.get("roots", b""),
        )
        key = wire.StreamKey(
            self._head.run.run, _need(row, "attempt"), _need(row, "rank"), "import", _group(row)
        )
        names = self._names if rows else ()
        size = rows or expected
        return one_frame(row.where, key, frame, self._digest, size, names, self._wide)


def _need(row: Row, name: str) -> Any:
    if name not in row.cells:
        raise Unreadable(row.where, name, "", "this cell cannot be empty here")
    return row.cells[name]


def _group(row: Row) -> int:
    return int(row.cells.get("group", 0))


def event_text(event: wire.Event) -> str:
    """An event as the ``data`` of its row."""
    return json.dumps(dict(event), allow_nan=False)
