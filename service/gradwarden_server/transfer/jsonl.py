"""JSON Lines: one line for the run, one for each layout, one for each frame.

A frame's numbers stand by quantity, each a list in the order of the layout's rows. What JSON
cannot say is text: ``"NaN"``, ``"Infinity"``, ``"-Infinity"``; 64-bit words are 16 hex digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gradwarden import wire
from gradwarden_server.transfer import numbers
from gradwarden_server.transfer.faults import Unreadable
from gradwarden_server.transfer.frames import matrix, one_frame
from gradwarden_server.transfer.head import Head, layout_from, layout_json, parse

MEDIA_TYPE = "application/x-ndjson"


def write(head: Head, batches: Iterable[wire.Batch]) -> Iterator[bytes]:
    """The lines of a run, as they come."""
    lines = [{"type": "run", **head.to_json()}]
    lines += [{"type": "layout", **layout_json(one)} for one in head.layouts.values()]
    yield "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode()
    for batch in batches:
        yield "".join(_line(batch, frame) + "\n" for frame in batch.frames).encode()


def read(path: Path) -> tuple[Head, Iterator[wire.Batch]]:
    """The head of a file, and its frames as they are read.

    Raises:
        Unreadable: a line is not what it should be; while iterating, too.
    """
    lines = _lines(path)
    where, first = next(lines, (f"{path}", {}))
    if first.get("type") != "run":
        remedy = 'the first line of an export says {"type": "run", ...}'
        raise Unreadable(where, "type", first.get("type"), remedy)
    head = Head.from_json(where, first)
    layouts: dict[str, wire.Layout] = {}
    ahead: tuple[str, dict[str, Any]] | None = None
    for where, line in lines:
        if line.get("type") != "layout":
            ahead = where, line
            break
        layout = layout_from(where, line)
        layouts[layout.hash] = layout
    head = replace(head, layouts=layouts)

    def frames() -> Iterator[wire.Batch]:
        if ahead is not None:
            yield _frame(*ahead, head)
        for where, line in lines:
            yield _frame(where, line, head)

    return head, frames()


def _line(batch: wire.Batch, frame: wire.Frame) -> str:
    key = batch.stream
    fields: dict[str, Any] = {
        "type": "frame",
        "attempt": key.attempt,
        "rank": key.rank,
        "group": key.group,
        "seq": frame.seq,
        "step": frame.step,
        "time_ns": frame.time_ns,
        "capture": frame.capture,
        "stepped": frame.stepped,
        "open": frame.open,
        "scalars": {
            name: value if np.isfinite(value) else numbers.double_text(value)
            for name, value in frame.scalars.items()
        },
        "events": [dict(event) for event in frame.events],
        "layout": batch.layout,
    }
    if frame.roots:
        fields["roots"] = numbers.words(frame.roots)
    if frame.wide:
        table = np.frombuffer(frame.wide, "<u8").reshape(-1, len(batch.wide))
        fields["wide"] = {
            name: [f"{word:016x}" for word in table[:, i].tolist()]
            for i, name in enumerate(batch.wide)
        }
    text = json.dumps(fields, allow_nan=False)
    if not frame.values:
        return text
    values = np.frombuffer(frame.values, "<f4").reshape(-1, len(batch.quantities))
    columns = ", ".join(
        f"{json.dumps(name)}: [{_column(values[:, i])}]" for i, name in enumerate(batch.quantities)
    )
    return f'{text[:-1]}, "quantities": {{{columns}}}}}'


def _column(values: numbers.Singles) -> str:
    found = numbers.texts(values)
    for i in np.flatnonzero(~np.isfinite(values)).tolist():
        found[i] = f'"{found[i]}"'
    for i, text in numbers.odd_nans(values).items():
        found[i] = f'"{text}"'
    return ", ".join(found)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                if not line.endswith("\n"):
                    remedy = "the file ends in the middle of a line; export the run again"
                    raise Unreadable(where, "line", line[-60:], remedy)
                yield where, parse(where, line)
        except UnicodeDecodeError as error:
            raise Unreadable(f"{path}", "text", error.reason, "a file in UTF-8") from None


def _frame(where: str, line: dict[str, Any], head: Head) -> wire.Batch:
    if line.get("type") != "frame":
        raise Unreadable(where, "type", line.get("type"), "a frame comes after run and layouts")
    digest = _member(where, line, "layout", str)
    quantities = _member(where, line, "quantities", dict, {})
    wide = _member(where, line, "wide", dict, {})
    rows = matrix(where, head.layouts.get(digest), digest, {**wide, **quantities})
    try:
        columns = [numbers.singles(column) for column in quantities.values()]
        values = np.stack(columns, axis=1).astype("<f4").tobytes() if columns else b""
        packed = [numbers.packed_words(column) for column in wide.values()]
        table = [np.frombuffer(column, "<u8") for column in packed]
        frame = wire.Frame(
            seq=_member(where, line, "seq", int),
            step=_member(where, line, "step", int),
            time_ns=_member(where, line, "time_ns", int),
            scalars={
                name: numbers.double(value)
                for name, value in _member(where, line, "scalars", dict).items()
            },
            events=tuple(_member(where, line, "events", list)),
            capture=line.get("capture", ""),
            stepped=line.get("stepped"),
            open=line.get("open") is True,
            values=values,
            wide=np.stack(table, axis=1).tobytes() if table else b"",
            roots=numbers.packed_words(_member(where, line, "roots", list, [])),
        )
    except Unreadable:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        remedy = f"{str(error)[:120]}; correct it, or export the run again"
        raise Unreadable(where, "frame", f"seq {line.get('seq')}", remedy) from None
    key = wire.StreamKey(
        head.run.run,
        _member(where, line, "attempt", str),
        _member(where, line, "rank", int),
        "import",
        _member(where, line, "group", int),
    )
    return one_frame(where, key, frame, digest, rows, tuple(quantities), tuple(wide))


def _member(where: str, line: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    found = line.get(name, default)
    if not isinstance(found, kind) or isinstance(found, bool):
        raise Unreadable(where, name, found, f"expected {kind.__name__}")
    return found
