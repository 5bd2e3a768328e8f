"""ClickHouse's RowBinary, as far as our tables need it: numbers, strings, arrays of numbers."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


def text(value: str) -> bytes:
    """A String."""
    raw = value.encode()
    return _length(len(raw)) + raw


def array(values: NDArray[Any]) -> bytes:
    """An Array of the numbers' own type, bit for bit."""
    return _length(values.size) + np.ascontiguousarray(values).tobytes()


def read(body: bytes, fixed: str, arrays: str) -> Iterator[tuple[Any, ...]]:
    """Rows of numbers (a struct format, such as "<QqI") and then arrays (such as "f4", "u8").

    The arrays of a row are views of the body.

    Raises:
        ValueError: the body ends within a row.
    """
    head = struct.Struct(fixed)
    types = [np.dtype(f"<{name}") for name in arrays.split()]
    at = 0
    while at < len(body):
        try:
            found: list[Any] = list(head.unpack_from(body, at))
            at += head.size
            for kind in types:
                count, at = _read_length(body, at)
                found.append(np.frombuffer(body, kind, count, at))
                at += count * kind.itemsize
        except (struct.error, IndexError):
            raise ValueError(f"the answer ends at byte {len(body)}, within a row") from None
        yield tuple(found)


def _length(count: int) -> bytes:
    parts = bytearray()
    while count > 0x7F:
        parts.append(count & 0x7F | 0x80)
        count >>= 7
    parts.append(count)
    return bytes(parts)


def _read_length(body: bytes, at: int) -> tuple[int, int]:
    """The count, and where what follows begins."""
    count = shift = 0
    while True:
        byte = body[at]
        count |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return count, at
        shift += 7
