"""CSV: a first line ``# {...}`` with the run, then the tidy table of :mod:`.table`.

Read it with ``pandas.read_csv(file, skiprows=1)``. An empty cell was not sent; ``NaN``,
``Infinity`` and ``-Infinity`` were. Checksums are whole numbers, roots are hex digits.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gradwarden import wire
from gradwarden_server.transfer import numbers, table
from gradwarden_server.transfer.faults import Unreadable
from gradwarden_server.transfer.head import Head

MEDIA_TYPE = "text/csv; charset=utf-8"
_WHOLE = ("rank", "group", "step", "time_ns", "seq", *wire.CHECKSUMS)
_FLAGS = {"true": True, "false": False}
_LONGEST = 64 << 20  # of one cell; the line of the run holds every layer's name


def write(head: Head, batches: Iterable[wire.Batch]) -> Iterator[bytes]:
    """The text of a run, as it comes."""
    yield f"# {head.to_text()}\n{','.join(table.COLUMNS)}\n".encode()
    for batch in batches:
        text = io.StringIO()
        for frame in batch.frames:
            _frame(text, head, batch, frame)
        yield text.getvalue().encode()


def read(path: Path) -> tuple[Head, Iterator[wire.Batch]]:
    """The head of a file, and its frames as they are read.

    Raises:
        Unreadable: a row is not what it should be; while iterating, too.
    """
    with path.open(encoding="utf-8", newline="") as file:
        try:
            first, columns = file.readline(), file.readline().rstrip("\r\n").split(",")
        except UnicodeDecodeError as error:
            raise Unreadable(f"{path}", "text", error.reason, "a file in UTF-8") from None
    if not first.startswith("# {"):
        remedy = "the first line of an export is # and the run as JSON"
        raise Unreadable(f"{path}, line 1", "line", first[:60], remedy)
    head = Head.from_text(f"{path}, line 1", first[2:])
    missing = [name for name in table.COLUMNS if name not in columns]
    if missing or len(set(columns)) != len(columns):
        remedy = f"these are missing or doubled: {', '.join(missing) or 'none missing'}"
        raise Unreadable(f"{path}, line 2", "columns", ",".join(columns), remedy)
    return head, table.frames(head, _rows(path, columns))


def _frame(text: io.StringIO, head: Head, batch: wire.Batch, frame: wire.Frame) -> None:
    rows = csv.DictWriter(_Lines(text), table.COLUMNS, lineterminator="\r\n")
    key = batch.stream
    keys: dict[str, Any] = {"attempt": key.attempt, "rank": key.rank, "group": key.group}
    keys |= {"step": frame.step, "time_ns": frame.time_ns, "seq": frame.seq}
    rows.writerow(
        {
            **keys,
            "kind": "frame",
            "capture": frame.capture,
            "stepped": "" if frame.stepped is None else str(frame.stepped).lower(),
            "open": "true" if frame.open else "",
            "layout": batch.layout,
            "roots": frame.roots.hex(),
        }
    )
    for name, value in frame.scalars.items():
        rows.writerow({**keys, "kind": "scalar", "name": name, "value": numbers.double_text(value)})
    for event in frame.events:
        data = table.event_text(event)
        rows.writerow({**keys, "kind": "event", "name": event["kind"], "data": data})
    if not frame.values:
        return
    values = np.frombuffer(frame.values, "<f4").reshape(-1, len(batch.quantities))
    words = np.frombuffer(frame.wide, "<u8").reshape(-1, len(batch.wide)) if frame.wide else None
    plain = all(name in wire.COLUMNS for name in batch.quantities)
    odd = {i // len(batch.quantities): True for i in numbers.odd_nans(values)}
    texts = np.array(numbers.texts(values), object).reshape(values.shape)
    for at, parameter in enumerate(head.layouts[batch.layout].parameters):
        row = {**keys, "kind": "layer", "layer": parameter.name, "capture": frame.capture}
        row |= {n: t for n, t in zip(batch.quantities, texts[at], strict=True) if n in wire.COLUMNS}
        if words is not None:
            pairs = zip(batch.wide, words[at].tolist(), strict=True)
            row |= {name: word for name, word in pairs if name in wire.CHECKSUMS}
        if not plain or at in odd or words is not None:
            more = _more(batch, values, words, at)
            row["more"] = json.dumps(more) if more else ""
        rows.writerow(row)


class _Lines:
    """Lines that end as Unix does; the writer quotes only what its own line end is made of."""

    def __init__(self, text: io.StringIO) -> None:
        self._text = text

    def write(self, line: str) -> int:
        return self._text.write(line.removesuffix("\r\n") + "\n")


def _more(batch: wire.Batch, values: numbers.Singles, words: Any, at: int) -> dict[str, Any]:
    odd = numbers.odd_nans(values[at])
    told = {batch.quantities[i]: text for i, text in odd.items()}
    return {**told, **table.more_of(batch, values, words, at)}


def _rows(path: Path, columns: list[str]) -> Iterator[table.Row]:
    singles = [(i, name) for i, name in enumerate(columns) if name in wire.COLUMNS]
    texts = ("kind", "attempt", "layer", "name", "more", "data", "capture", "layout")
    wanted = [(i, name) for i, name in enumerate(columns) if name in texts]
    wanted += [(i, name) for i, name in enumerate(columns) if name in _WHOLE]
    wanted += [(i, name) for i, name in enumerate(columns) if name in _TYPED]
    csv.field_size_limit(_LONGEST)
    with path.open(encoding="utf-8", newline="") as file:
        file.readline()
        file.readline()
        lines = csv.reader(file, strict=True)
        where = f"{path}, line 3"
        try:
            for found in lines:
                where = f"{path}, line {lines.line_num + 2}"
                if len(found) != len(columns):
                    remedy = f"{len(columns)} cells, as the header has; is the file cut off?"
                    raise Unreadable(where, "row", f"{len(found)} cells", remedy)
                cells: dict[str, Any] = {n: found[i] for i, n in wanted if found[i] != ""}
                for name in cells.keys() & _TYPED.keys() | cells.keys() & set(_WHOLE):
                    cells[name] = _typed(where, name, cells[name])
                held = [(name, found[i]) for i, name in singles if found[i] != ""]
                try:
                    values = numbers.singles([text for _, text in held])
                except ValueError as error:
                    raise Unreadable(where, "quantities", "a number", str(error)) from None
                yield table.Row(where, cells, tuple(name for name, _ in held), values)
        except csv.Error as error:
            raise Unreadable(where, "row", "as it is", f"{error}; is the file cut off?") from None
        except UnicodeDecodeError as error:
            raise Unreadable(where, "text", error.reason, "a file in UTF-8") from None


_TYPED = {
    "value": numbers.double,
    "stepped": _FLAGS.__getitem__,
    "open": _FLAGS.__getitem__,
    "roots": bytes.fromhex,
}


def _typed(where: str, name: str, text: str) -> Any:
    try:
        return _TYPED[name](text) if name in _TYPED else int(text)
    except (KeyError, ValueError) as error:
        remedy = f"{error}; expected what an export has here"
        raise Unreadable(where, name, text, remedy) from None
