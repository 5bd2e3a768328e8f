"""One batch of the log, opened for compaction: columns as they were sent, frames never built."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradwarden import wire
from gradwarden_server.joins import Flags, Matrix
from gradwarden_server.store.codec import HOLE
from gradwarden_server.store.entries import LogEntry
from gradwarden_server.store.spine import Ints

Bytes = NDArray[np.uint8]

_HOLE = HOLE.to_bytes(4, "little")


class Opened:
    """A batch, checked once; its byte planes are put together where they are wanted."""

    def __init__(self, entry: LogEntry) -> None:
        """Raises gradwarden.wire.WireError: the batch is damaged."""
        self.entry = entry
        self._message = wire.check(entry.body)
        self.header = header = self._message.header
        self.matrices = sum(header.matrix)
        self._planes: dict[str, Bytes] = {}

    def measured(self, names: Sequence[str]) -> Flags:
        """[m], whether any row of any of these columns was measured."""
        found = np.zeros(self.matrices, np.bool_)
        for name in names:
            planes = self._of(name)
            if planes is None or found.all():
                continue
            # A hole is told by its upper bytes; that its lower ones are zero is asked last.
            held = (planes[3] != _HOLE[3]) | (planes[2] != _HOLE[2])
            if not held.any(axis=1).all():
                held |= (planes[1] != 0) | (planes[0] != 0)
            found |= held.any(axis=1)
        return found

    def fill(self, name: str, kept: Flags, into: Matrix) -> None:
        """Write one column of the matrices that are kept, [k, L]; holes if it was not sent."""
        planes = self._of(name)
        if planes is None:
            into.view(np.uint32)[...] = HOLE
            return
        whole = bool(kept.all())
        if not planes.any():
            into[...] = 0
            return
        target = into.view(np.uint8).reshape(*into.shape, 4)
        for byte in range(4):
            target[:, :, byte] = planes[byte] if whole else planes[byte][kept]

    def words(self, name: str) -> NDArray[np.uint64]:
        """[w, L] 64-bit words of the frames that have them."""
        header = self.header
        raw = b"".join(frame.wide for frame in self._message.batch().frames)
        words = np.frombuffer(raw, "<u8").reshape(-1, header.parameters, len(header.wide))
        return np.ascontiguousarray(words[:, :, header.wide.index(name)])

    def roots(self) -> NDArray[np.uint64]:
        """[r, 33] words of the frames that have them."""
        return np.frombuffer(self._message.roots(), "<u8").reshape(-1, wire.ROOT_WORDS)

    def matrix_steps(self) -> Ints:
        """[m] steps of the frames with a matrix."""
        steps = np.array(self.header.steps, np.int64)
        return steps[np.flatnonzero(self.header.matrix)]

    def _of(self, name: str) -> Bytes | None:
        if name not in self._planes:
            raw = self._message.column(name)
            shape = (4, self.matrices, self.header.parameters)
            if name not in self.header.quantities:
                return None
            self._planes[name] = np.frombuffer(raw, np.uint8).reshape(shape)
        return self._planes[name]
