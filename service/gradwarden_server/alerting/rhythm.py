"""When each of many is due, so that they are not all due at once."""

from __future__ import annotations

import zlib


def last_due_ms(name: str, interval_ms: int, now_ms: int) -> int:
    """The last moment at which what is due once in an interval was due.

    The name says at which moment of the interval, the same after a restart, so a pause of
    everybody does not bring them together.
    """
    offset_ms = zlib.crc32(name.encode()) % interval_ms
    return (now_ms - offset_ms) // interval_ms * interval_ms + offset_ms
