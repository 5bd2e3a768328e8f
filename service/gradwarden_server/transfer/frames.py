"""Frames on their way: one by one as a file holds them, and packed into batches to be sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from gradwarden import wire
from gradwarden_server.transfer.faults import Unreadable

MOST_FRAMES = 64
MOST_BYTES = 8 << 20
MOST_NAMES = 200
"""Of one batch: far below what a service takes, so that none is refused for its size."""


def one_frame(
    where: str,
    key: wire.StreamKey,
    frame: wire.Frame,
    layout: str = "",
    rows: int = 0,
    quantities: tuple[str, ...] = (),
    wide: tuple[str, ...] = (),
) -> wire.Batch:
    """A batch of one frame, whose fields are what the wire takes.

    Raises:
        Unreadable: a field is not; ``where`` tells which line.
    """
    batch = wire.Batch(key, (frame,), layout, rows, quantities or wire.QUANTITIES, wide)
    bare = replace(frame, values=b"", wide=b"", roots=b"")
    try:
        wire.decode(wire.encode(replace(batch, frames=(bare,))))
        if len(frame.roots) not in (0, 8 * wire.ROOT_WORDS):
            remedy = f"{wire.ROOT_WORDS} words of 64 bits, or none"
            raise wire.Malformed("roots", f"{len(frame.roots)} bytes", remedy)
    except wire.WireError as error:
        raise Unreadable(where, error.field, "as it is", str(error)) from None
    except (TypeError, ValueError, OverflowError) as error:
        raise Unreadable(where, "frame", "as it is", str(error)) from None
    return batch


def packed(singles: Iterable[wire.Batch]) -> Iterator[wire.Batch]:
    """Batches of consecutive frames of one stream, in the order of the file.

    A batch ends where the next frame is another stream's or has other columns, so frames come
    out in the very order in which they went in; and after a finish, which dates the run's end.
    """
    held: list[wire.Batch] = []
    size = 0
    names: set[str] = set()
    for single in singles:
        frame = single.frames[0]
        more = len(frame.values) + len(frame.wide) + len(frame.roots)
        now = names | set(frame.scalars)
        full = len(held) >= MOST_FRAMES or size + more > MOST_BYTES or len(now) > MOST_NAMES
        events = sum(len(one.frames[0].events) for one in held) > MOST_NAMES
        if held and (full or events or not _follows(held, single)):
            yield _joined(held)
            held, size, now = [], 0, set(frame.scalars)
        held.append(single)
        size += more
        names = now
        if any(event["kind"] == "finish" for event in frame.events):
            yield _joined(held)
            held, size, names = [], 0, set()
    if held:
        yield _joined(held)


def _follows(held: list[wire.Batch], after: wire.Batch) -> bool:
    before = held[-1]
    if before.stream != after.stream or before.layout != after.layout:
        return False
    spoke = next((one for one in held if one.frames[0].values), None)
    alike = (
        spoke is None
        or not after.frames[0].values
        or (spoke.quantities, spoke.wide) == (after.quantities, after.wide)
    )
    return alike and after.frames[0].seq == before.frames[0].seq + 1


def _joined(held: list[wire.Batch]) -> wire.Batch:
    shape = next((one for one in held if one.frames[0].values), held[0])
    return replace(shape, frames=tuple(one.frames[0] for one in held))


def matrix(where: str, layout: wire.Layout | None, digest: str, columns: Mapping[str, Any]) -> int:
    """The number of rows of a layout, after every column was found to have as many.

    Raises:
        Unreadable: the layout is not in the file, or a column has another number of rows.
    """
    if layout is None and not columns:
        return 0
    if layout is None:
        remedy = "the file does not say what its rows are; export the run again"
        raise Unreadable(where, "layout", digest, remedy)
    rows = len(layout.parameters)
    for name, column in columns.items():
        if len(column) != rows:
            remedy = f"layout {digest} has {rows} rows"
            raise Unreadable(where, f"quantities.{name}", f"{len(column)} rows", remedy)
    return rows
