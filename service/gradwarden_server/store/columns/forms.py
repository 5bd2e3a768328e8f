"""What both engines take and give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]
Words = NDArray[np.uint32]

HOLE = 0x7FC00000
"""The bits of the NaN that stands for "not measured"; any other NaN is kept as it is."""


class Batches:
    """Inflated batches whose matrices follow one layout, end to end."""

    def __init__(self, payloads: Sequence[bytes], matrices: Sequence[int], rows: int) -> None:
        """Payloads begin with [4, matrices, rows] byte planes of each column in its turn."""
        self.payloads = [np.frombuffer(payload, np.uint8) for payload in payloads]
        self.addresses = np.array([payload.ctypes.data for payload in self.payloads], np.int64)
        self.matrices = np.array(matrices, np.int64)
        self.rows = rows

    @property
    def total(self) -> int:
        """How many matrices there are."""
        return int(self.matrices.sum())


class Survey(NamedTuple):
    """Of each block of rows: how many words are holes, how many any NaN, and if all are alike."""

    holes: list[int]
    nans: list[int]
    alike: list[bool]


class Level(NamedTuple):
    """Columns over buckets of steps, each [rows, buckets].

    The least and the greatest finite value as keys, int32 that lie among each other as their
    floats do, the extremes of int32 where there is none; the sum in float64, the last value's
    word (a hole where there is none), and how many were finite, and measured but not finite.
    """

    least: NDArray[np.int32]
    most: NDArray[np.int32]
    sum: NDArray[np.float64]
    last: Words
    finite: NDArray[np.int32]
    others: NDArray[np.int32]


def keys(words: Words) -> NDArray[np.int32]:
    """Words as signed integers that lie among each other as their floats do."""
    signs = (words.view(np.int32) >> 31).view(np.uint32)
    found: NDArray[np.int32] = (words ^ (signs >> np.uint32(1))).view(np.int32)
    return found


def words_of(found: NDArray[np.int32]) -> Words:
    """The words of :func:`keys`."""
    return keys(found.view(np.uint32)).view(np.uint32)


class Engine(Protocol):
    """One of the two; each function is described in the module :mod:`.plain`."""

    def measured(self, batches: Batches, at: Ints) -> Flags: ...
    def lay(self, batches: Batches, at: Ints, kept: Flags) -> Words: ...
    def survey(self, words: Words, block: int) -> Survey: ...
    def fold(self, words: Words, block: int, together: int) -> Bytes: ...
    def roll(self, words: Words, seen: Flags | None, starts: Ints) -> Level: ...
