"""The plain JSON form for curl and other languages: one object per frame, rows as lists."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from gradwarden.wire.checks import (
    DEFAULT_LIMITS,
    Limits,
    Malformed,
    TooLarge,
    from_json_number,
    member,
    to_json_number,
)
from gradwarden.wire.message import VERSION, Batch, Header, check_version
from gradwarden.wire.quantity import QUANTITIES

_VERSION_1 = QUANTITIES[:5]


def to_json(batch: Batch) -> dict[str, Any]:
    """The plain form for curl and other languages: one object per frame, rows as lists.

    Non-finite numbers become the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.
    64-bit columns and roots are not part of the plain form.
    """
    width = len(batch.quantities)
    return {
        "version": VERSION,
        "run": batch.stream.run,
        "attempt": batch.stream.attempt,
        "rank": batch.stream.rank,
        "nonce": batch.stream.nonce,
        "group": batch.stream.group,
        "layout": batch.layout,
        "quantities": list(batch.quantities),
        "sent_ns": batch.sent_ns,
        "frames": [
            {
                "seq": f.seq,
                "step": f.step,
                "time_ns": f.time_ns,
                "scalars": {k: to_json_number(v) for k, v in f.scalars.items()},
                "events": [dict(e) for e in f.events],
                "capture": f.capture,
                "stepped": f.stepped,
                "open": f.open,
                "values": _rows(f.values, width),
            }
            for f in batch.frames
        ],
    }


def from_json(data: object, limits: Limits = DEFAULT_LIMITS) -> Batch:
    """Read the plain form; the inverse of :func:`to_json`.

    Raises:
        Malformed, TooLarge, UnsupportedVersion: as :func:`decode`.
    """
    items = member(data, "frames", list)
    assert isinstance(data, dict)
    if len(items) > limits.frames:
        raise TooLarge("frames", len(items), f"send at most {limits.frames} a batch")
    rows = [member(f, "values", list) for f in items]
    counts = {len(r) for r in rows if r}
    if len(counts) > 1:
        raise Malformed("values", sorted(counts), "all matrices of a batch have L rows")
    columns = {
        **{k: data.get(k) for k in data if k != "frames"},
        "n": len(items),
        "L": counts.pop() if counts else 0,
        "first_seq": items[0].get("seq") if items and isinstance(items[0], dict) else None,
        "steps": [member(f, "step", int) for f in items],
        "times_ns": [member(f, "time_ns", int) for f in items],
        "scalars": _columns_of_scalars(items),
        "events": [[i, e] for i, f in enumerate(items) for e in f.get("events", [])],
        "capture": [f.get("capture", "") for f in items],
        "stepped": [f.get("stepped") for f in items],
        "open": [int(bool(f.get("open", False))) for f in items],
        "matrix": [int(bool(r)) for r in rows],
        "sent_ns": data.get("sent_ns", 0),
        "group": data.get("group", 0),
    }
    columns["wide"], columns["rooted"] = [], [0] * len(items)
    columns.setdefault("layout", "")
    check_version(columns)
    known = QUANTITIES if columns["version"] > 1 else _VERSION_1
    columns.setdefault("quantities", list(known))
    fields = Header(columns, limits)
    width = len(fields.quantities)
    if sum(fields.matrix) * fields.parameters * width * 4 > limits.payload_bytes:
        raise TooLarge("values", fields.parameters, f"at most {limits.payload_bytes} bytes")
    values = [b"".join(_pack_row(row, width) for row in matrix) for matrix in rows]
    nothing = [b""] * len(items)
    frames = fields.frames(values, nothing, nothing)
    if any(f.seq != member(items[i], "seq", int) for i, f in enumerate(frames)):
        raise Malformed("seq", [i.get("seq") for i in items][:8], "frames are consecutive")
    return fields.batch(frames)


def _rows(values: bytes, width: int) -> list[list[float | str | None]]:
    row = struct.Struct(f"<{width}f")
    return [[to_json_number(v) for v in r] for r in row.iter_unpack(values)] if values else []


def _pack_row(row: object, width: int) -> bytes:
    if not isinstance(row, list) or len(row) != width:
        raise Malformed("values", row, f"rows of {width} numbers")
    try:
        return struct.pack(f"<{width}f", *(from_json_number(v, "values") for v in row))
    except OverflowError:
        raise Malformed("values", row, "numbers that a float32 can hold") from None


def _columns_of_scalars(items: Sequence[Any]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for i, item in enumerate(items):
        scalars = item.get("scalars", {})
        if not isinstance(scalars, dict):
            raise Malformed("scalars", scalars, "expected an object of numbers")
        for name, value in scalars.items():
            columns.setdefault(name, [None] * len(items))[i] = value
    return columns
