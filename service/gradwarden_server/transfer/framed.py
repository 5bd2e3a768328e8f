"""Frames as they came over the wire: the smallest and fastest form, for replays and backtests.

``GWFR``, then records of a length (32 bits, little-endian) and so many bytes: first the head as
JSON with its layouts, then one message of the wire after the other, in the order of the log.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from gradwarden import wire
from gradwarden_server.transfer.faults import Unreadable
from gradwarden_server.transfer.head import Head

MEDIA_TYPE = "application/vnd.gradwarden.frames-file"
SIGN = b"GWFR"
_LENGTH = struct.Struct("<I")
_MOST = 1 << 30


def write(head: Head, batches: Iterable[wire.Batch]) -> Iterator[bytes]:
    """The records of a run, as they come."""
    yield SIGN + _record(head.to_text().encode())
    for batch in batches:
        yield b"".join(_record(wire.encode(part)) for part in _consecutive(batch))


def read(path: Path) -> tuple[Head, Iterator[wire.Batch]]:
    """The head of a file, and its frames one by one.

    Raises:
        Unreadable: a record is not what it should be; while iterating, too.
    """
    head, found = messages(path)

    def frames() -> Iterator[wire.Batch]:
        for message in found:
            batch = message.batch()
            yield from (replace(batch, frames=(frame,)) for frame in batch.frames)

    return head, frames()


def messages(path: Path) -> tuple[Head, Iterator[wire.Message]]:
    """The head of a file, and its messages with their matrices still packed.

    Raises:
        Unreadable: a record is not what it should be; while iterating, too.
    """
    records = _records(path)
    where, first = next(records, (f"{path}", b""))
    try:
        head = Head.from_text(where, first.decode())
    except UnicodeDecodeError as error:
        raise Unreadable(where, "head", error.reason, "export the run again") from None

    def found() -> Iterator[wire.Message]:
        for where, record in records:
            try:
                yield wire.check(record)
            except wire.WireError as error:
                raise Unreadable(where, error.field, "as it is", str(error)) from None

    return head, found()


def _record(body: bytes) -> bytes:
    return _LENGTH.pack(len(body)) + body


def _consecutive(batch: wire.Batch) -> Iterator[wire.Batch]:
    """A batch in parts whose frames follow each other: bounds of steps may leave some out."""
    part: list[wire.Frame] = []
    for frame in batch.frames:
        if part and frame.seq != part[-1].seq + 1:
            yield replace(batch, frames=tuple(part))
            part = []
        part.append(frame)
    yield replace(batch, frames=tuple(part))


def _records(path: Path) -> Iterator[tuple[str, bytes]]:
    torn = "the file ends in the middle of a record; export the run again"
    with path.open("rb") as file:
        file.seek(len(SIGN))
        number = 0
        while prefix := file.read(_LENGTH.size):
            where = f"{path}, record {number}"
            if len(prefix) < _LENGTH.size:
                raise Unreadable(where, "length", prefix.hex(), torn)
            (length,) = _LENGTH.unpack(prefix)
            if length > _MOST:
                raise Unreadable(where, "length", length, "no record is so long; export it again")
            body = file.read(length)
            if len(body) < length:
                raise Unreadable(where, "length", length, torn)
            yield where, body
            number += 1
