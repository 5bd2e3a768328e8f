"""Ranks that hold checksums of the same parameters, and the steps that a detector sees of them.

The words are made the slow obvious way, from one number a row, as the wire describes them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from gradwarden_server.detect.steps import RankStep, Step
from tests.server.detection import ROWS, step

Flip = Callable[[int], bool]
"""Whether a corruption shows at a step."""


def since(first: int) -> Flip:
    """From a step on."""
    return lambda at: at >= first


def at(*steps: int) -> Flip:
    """At these steps alone."""
    return lambda now: now in steps


@dataclass
class Fleet:
    """``ranks`` of one group; a rank's shard is its number modulo ``shards``.

    ``weights`` and ``gradients`` say, by (rank, row), at which steps that word is another one
    than on the other ranks. ``light`` reads no weights.
    """

    ranks: int = 4
    rows: int = ROWS
    shards: int = 1
    light: bool = False
    weights: Mapping[tuple[int, int], Flip] = field(default_factory=dict)
    gradients: Mapping[tuple[int, int], Flip] = field(default_factory=dict)
    full: Callable[[int, int], bool] = lambda rank, step: False
    captured: Callable[[int, int], bool] = lambda rank, step: True
    reported: Callable[[int, int], bool] = lambda rank, step: True
    slices: Callable[[int, int], int] = lambda rank, step: step % 16

    def row_words(self, kind: str, rank: int, at_step: int) -> list[int]:
        """One word a row, equal on all ranks of a shard but for what is corrupt."""
        flips = self.weights if kind == "weights" else self.gradients
        # Weights move slowly, but every word changes with every step.
        salt = {"weights": 3, "gradients": 7}[kind]
        words = []
        for row in range(self.rows):
            word = (row + 1) * 2654435761 + salt * at_step + 97 * (rank % self.shards)
            flip = flips.get((rank, row))
            words.append((word ^ (1 << 40 if flip and flip(at_step) else 0)) % 2**64)
        return words

    def roots(self, rank: int, at_step: int) -> bytes:
        number = self.slices(rank, at_step)
        totals = [0] * 32
        for row, word in enumerate(self.row_words("gradients", rank, at_step)):
            totals[row % 16] += word
        for row, word in enumerate(self.row_words("weights", rank, at_step)):
            if row % 16 == number and not self.light:
                totals[16 + row // 16 % 16] += word
        return struct.pack("<33Q", number, *(total % 2**64 for total in totals))

    def checksums(self, rank: int, at_step: int) -> dict[str, bytes]:
        columns = {"checksum": "gradients", "weight_checksum": "weights"}
        return {
            name: struct.pack(f"<{self.rows}Q", *self.row_words(kind, rank, at_step))
            for name, kind in columns.items()
        }

    def step(self, number: int, **changed: object) -> Step:
        made = step(number, **changed)  # type: ignore[arg-type]
        base: RankStep = made.ranks[0]
        ranks = {
            rank: replace(
                base,
                shard=rank % self.shards,
                shards=self.shards,
                spoke=rank < self.shards,
                roots=self.roots(rank, number) if self.captured(rank, number) else b"",
                checksums=self.checksums(rank, number) if self.full(rank, number) else {},
            )
            for rank in range(self.ranks)
            if self.reported(rank, number)
        }
        return replace(made, ranks=ranks)

    def steps(self, numbers: Iterable[int], **changed: object) -> list[Step]:
        return [self.step(n, **changed) for n in numbers]


def brute_odd(column: Iterable[int]) -> set[int] | None:
    """Indices that more than half contradict, by counting; None without a majority."""
    values = list(column)
    for value in values:
        if 2 * values.count(value) > len(values):
            return {i for i, other in enumerate(values) if other != value}
    return None


def table_of(values: Iterable[Iterable[int]]) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    """Rows of Python integers as 64-bit words."""
    return np.array([[v % 2**64 for v in row] for row in values], np.uint64)
