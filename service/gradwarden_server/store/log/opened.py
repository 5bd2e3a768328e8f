"""One batch of the log, opened for compaction: columns as they were sent, frames never built."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradwarden import wire
from gradwarden_server.store.log.entries import LogEntry
from gradwarden_server.store.shelves.spine import Ints


class Opened:
    """A batch, checked once."""

    def __init__(self, entry: LogEntry) -> None:
        """Raises gradwarden.wire.WireError: the batch is damaged."""
        self.entry = entry
        self._message = wire.check(entry.body)
        self.header = header = self._message.header
        self.matrices = sum(header.matrix)
        self.planes = self._message.planes
        """[4, matrices, rows] byte planes of each quantity in its turn, then others."""

    def begins(self, name: str) -> int:
        """Where a quantity begins in the planes, -1 where it was not sent."""
        header = self.header
        if name not in header.quantities:
            return -1
        return 4 * self.matrices * header.parameters * header.quantities.index(name)

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
