"""What a query reads, and how it looks it up: blocks of series that share their timestamps.

Layers of one run share their steps, so thousands of series are a few blocks, and everything
over a block is one operation of numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gradwarden_server.matchers import Matcher
from gradwarden_server.promql.vector import Flags, Floats, Labels, Millis, Vector, stacked

STALE_BITS = 0x7FF0000000000002
"""The NaN with which Prometheus says that a series ended."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """S series with the same N timestamps.

    Attributes:
        labels: [S].
        times: [N] milliseconds since the epoch, rising.
        values: [S, N].
    """

    labels: Sequence[Labels]
    times: Millis
    values: Floats


class Storage(Protocol):
    """Where samples come from."""

    def select(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> Iterable[Block]:
        """Every series that all matchers match, with its samples in (start, end]."""
        ...


def stale(values: Floats) -> Flags:
    """Which values are the mark of an end."""
    return np.asarray(values.view(np.uint64) == STALE_BITS, np.bool_)


def live(blocks: Iterable[Block]) -> Iterator[Block]:
    """The blocks without marks of an end; what has none stays as it is."""
    for block in blocks:
        marks = stale(block.values)
        ended = marks.any(axis=1)
        if not ended.any():
            yield block
            continue
        whole = np.flatnonzero(~ended).tolist()
        if whole:
            labels = [block.labels[i] for i in whole]
            yield Block(labels, block.times, block.values[whole])
        for row in np.flatnonzero(ended).tolist():
            keep = ~marks[row]
            yield Block([block.labels[row]], block.times[keep], block.values[row : row + 1, keep])


@dataclass(frozen=True, slots=True, eq=False)
class Looked:
    """The newest sample of each series at each time, with when it was taken, [S, T] ms."""

    vector: Vector
    taken: Millis


def look(blocks: Iterable[Block], at: Millis, lookback_ms: int) -> Looked:
    """The newest sample within ``(at - lookback, at]``, unless the series ended by then."""
    parts: list[Vector] = []
    moments: list[Millis] = []
    for block in blocks:
        if not len(block.times):
            continue
        index = np.searchsorted(block.times, at, "right") - 1
        held = np.maximum(index, 0)
        fresh = (index >= 0) & (block.times[held] > at - lookback_ms)
        values = block.values[:, held]
        present = fresh[None, :] & ~stale(values)
        rows = np.flatnonzero(present.any(axis=1)).tolist()
        if rows:
            labels = [dict(block.labels[i]) for i in rows]
            parts.append(Vector(labels, values[rows], present[rows]))
            moments.append(np.broadcast_to(block.times[held], (len(rows), len(at))))
    vector = stacked(parts, len(at))
    taken = np.concatenate(moments) if moments else np.zeros((0, len(at)), np.int64)
    return Looked(vector, taken)


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """The samples of one block within ``(at - range, at]``, for T times.

    Attributes:
        block: Where they lie.
        at: [T] right edges, in milliseconds.
        range_ms: How wide a window is.
        first, behind: [T] indices of the first sample of each window and of the first behind it.
    """

    block: Block
    at: Millis
    range_ms: int
    first: Millis
    behind: Millis

    @property
    def counts(self) -> Millis:
        """Samples of each window, [T]."""
        return self.behind - self.first


def windows(block: Block, at: Millis, range_ms: int) -> Windows:
    """The windows of a block."""
    first = np.searchsorted(block.times, at - range_ms, "right")
    behind = np.searchsorted(block.times, at, "right")
    return Windows(block, at, range_ms, first.astype(np.int64), behind.astype(np.int64))
