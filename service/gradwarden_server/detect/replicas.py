"""Replicas side by side: which words of one step differ between the ranks of one cell. Pure.

Ranks of one cell (group, shard) hold the same values, so their checksums are equal to the bit;
ranks of different cells are never compared. A step counts where every rank of the cell that
reported it also captured it (see :func:`compare` for the exception), and where nothing is
non-finite: a NaN has many bit patterns, and which one an all-reduce leaves behind may depend on
the order of its operands.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from gradwarden.wire.quantity import ROOT_WORDS, SLICES
from gradwarden_server.detect.steps import RankStep, Step

Cell = tuple[int, int]
"""Group and shard."""
Flags = NDArray[np.bool_]
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Words:
    """The same words of several ranks: ``table`` is [ranks, words], 64-bit."""

    ranks: tuple[int, ...]
    table: NDArray[np.uint64]

    @cached_property
    def present(self) -> Flags:
        """Words that hold anything: a total of nothing is zero on every rank."""
        return np.asarray((self.table != 0).any(axis=0), np.bool_)

    @cached_property
    def unequal(self) -> Flags:
        """Words that are not the same on all ranks."""
        return np.asarray((self.table != self.table[:1]).any(axis=0), np.bool_)

    def odd(self, words: Flags) -> tuple[int, ...] | None:
        """The ranks that more than half of the others contradict in one of ``words``.

        None where a word has no majority, as with two ranks always.
        """
        found: set[int] = set()
        for column in self.table[:, words & self.unequal].T:
            values, counts = np.unique(column, return_counts=True)
            if 2 * counts.max() <= len(column):
                return None
            usual = values[counts.argmax()]
            found.update(r for r, v in zip(self.ranks, column, strict=True) if v != usual)
        return tuple(sorted(found)) or None


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """One cell at one step.

    ``gradients`` are 16 subtotals, word g over the rows with index mod 16 = g. ``weights``, if
    all ranks read the same ``slice``, are 16 more, word k over the rows with index mod 16 =
    slice and (index // 16) mod 16 = k. ``full`` has one word a row, by column, of the ranks
    that were asked for them.
    """

    cell: Cell
    ranks: tuple[int, ...]
    gradients: Words
    slice: int | None
    weights: Words
    full: Mapping[str, Words]


@lru_cache(maxsize=1)
def cells(step: Step) -> Mapping[Cell, Mapping[int, RankStep]]:
    """The ranks that reported a step, by cell. Several ask the same of one step."""
    found: dict[Cell, dict[int, RankStep]] = {}
    for rank, said in sorted(step.ranks.items()):
        found.setdefault((said.group, said.shard), {})[rank] = said
    return found


def compare(step: Step, among_some: Collection[Cell] = ()) -> list[Compared]:
    """Every cell of which at least two ranks can be compared at this step.

    Of the cells ``among_some`` those ranks are compared that captured the step, whoever else
    reported it: a rank whose capture failed for good must not blind the others.
    """
    return list(_evenly(step) if not among_some else _compared(step, among_some))


@lru_cache(maxsize=1)
def _evenly(step: Step) -> tuple[Compared, ...]:
    """Several detectors ask the same of one step after another."""
    return _compared(step, ())


def _compared(step: Step, among_some: Collection[Cell]) -> tuple[Compared, ...]:
    if any(said.bad_gradient or said.bad_loss for said in step.ranks.values()):
        return ()
    found = []
    for cell, ranks in cells(step).items():
        held = {r: said for r, said in ranks.items() if said.roots or cell not in among_some}
        one = _compare(cell, held) if len(held) > 1 else None
        if one is not None:
            found.append(one)
    return tuple(found)


def _compare(cell: Cell, held: Mapping[int, RankStep]) -> Compared | None:
    ranks = tuple(held)
    said = {rank.roots for rank in held.values()}
    sizes = {len(roots) for roots in said}
    if len(sizes) > 1 or not (size := sizes.pop()) or size % (8 * ROOT_WORDS):
        return None  # throttled on some ranks, or a frame was lost
    # Almost always all say the same, so that a thousand ranks cost what two do.
    spoken = said if len(said) == 1 else [rank.roots for rank in held.values()]
    words = np.stack([np.frombuffer(roots, "<u8") for roots in spoken])
    frames = words.reshape(len(words), -1, ROOT_WORDS)
    slices = np.unique(frames[:, :, 0])
    whole = slices.size == 1 and slices[0] < SLICES
    # Several optimizers bring several frames a step.
    total = frames[:, :, 1:].sum(axis=1, dtype=np.uint64)
    table = np.broadcast_to(total, (len(ranks), 2 * SLICES))
    return Compared(
        cell=cell,
        ranks=ranks,
        gradients=Words(ranks, table[:, :SLICES]),
        slice=int(slices[0]) if whole else None,
        weights=Words(ranks, table[:, SLICES:]),
        full=_full(held),
    )


def _full(held: Mapping[int, RankStep]) -> dict[str, Words]:
    found = {}
    for column in sorted({name for said in held.values() for name in said.checksums}):
        sent = {rank: s.checksums[column] for rank, s in held.items() if column in s.checksums}
        if len(sent) > 1 and len({len(words) for words in sent.values()}) == 1:
            table = np.stack([np.frombuffer(words, "<u8") for words in sent.values()])
            found[column] = Words(tuple(sent), table)
    return found


def gradient_words(rows: int) -> Rows:
    """The gradient word that each of so many rows belongs to."""
    return np.arange(rows) % SLICES


def weight_words(rows: int) -> Rows:
    """The weight word of each row over all slices: slice * 16 + k."""
    index = np.arange(rows)
    return index % SLICES * SLICES + index // SLICES % SLICES
