"""The matrices that the shards of a group sent for one step, read back as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from gradwarden import wire
from gradwarden_server import joins
from gradwarden_server.joins import Matrix
from gradwarden_server.store.reading.curves import Ints
from gradwarden_server.store.reading.pieces import Piece, squares

Layouts = Callable[[str], wire.Layout | None]
Told = tuple[Piece, float]

_HELD_BYTES = 32 << 20
"""Matrices of a group that wait for their other shards before those that are due are joined."""
_NONE = np.zeros(0, np.int64)


def gathered(told: Iterable[Told], layouts: Layouts) -> Iterator[Told]:
    """Pieces with the last step that counts; those of shards become pieces of their group.

    Pieces of shards come in the order of their first step, so that what lies before a piece's
    first step is all there. Their scalars pass on at once and as they are.
    """
    waiting: dict[tuple[int, str], list[Piece]] = {}
    limits: dict[tuple[int, str], int] = {}
    last = 0.0
    for piece, until in told:
        if piece.shards == 1:
            yield piece, until
            continue
        if until != last:
            yield from ((_join(held, layouts), last) for held in waiting.values())
            waiting.clear()
            last = until
        yield piece.chosen(np.zeros(piece.matrix_steps.size, np.bool_)), until
        if not piece.matrix_steps.size:
            continue
        key = piece.group, _rows(piece.layout, layouts)
        held = waiting.setdefault(key, [])
        held.append(piece)
        size = sum(p.matrix.nbytes for p in held)
        if size > limits.get(key, _HELD_BYTES):
            before = int(piece.steps.min())
            ready = [p.chosen(p.matrix_steps < before) for p in held]
            waiting[key] = [p.chosen(p.matrix_steps >= before) for p in held]
            limits[key] = max(_HELD_BYTES, 2 * sum(p.matrix.nbytes for p in waiting[key]))
            if any(p.matrix_steps.size for p in ready):
                yield _join(ready, layouts), until
    yield from ((_join(held, layouts), last) for held in waiting.values())


def one_voice(told: Iterable[Told]) -> Iterator[Told]:
    """A step that several replicas told counts once, by the first of them.

    A rank with evidence of its own sends its matrix beside the speaker's, and so does one that
    was asked to; what is counted must not be counted for each.
    """
    voices: dict[int, dict[int, int]] = {}
    for piece, until in told:
        first = voices.setdefault(piece.group, {})
        rank = piece.rank
        kept = [
            s <= until and first.setdefault(s, rank) == rank for s in piece.matrix_steps.tolist()
        ]
        yield piece if all(kept) else piece.chosen(np.array(kept, np.bool_)), until


def _rows(digest: str, layouts: Layouts) -> str:
    """What the rows are, whatever the order in which they became ready on a rank."""
    layout = layouts(digest)
    return digest if layout is None else wire.Layout(layout.parameters).hash


def _join(pieces: Sequence[Piece], layouts: Layouts) -> Piece:
    """One piece of pieces over the same rows; of one shard's replicas the lowest rank counts."""
    steps, at = np.unique(np.concatenate([p.matrix_steps for p in pieces]), return_inverse=True)
    times = np.full(steps.size, np.iinfo(np.int64).max)
    np.minimum.at(times, at, np.concatenate([p.matrix_times_ns for p in pieces]))
    of_shard: dict[int, list[Piece]] = {}
    for piece in pieces:
        of_shard.setdefault(piece.shard, []).append(piece)
    lowest = of_shard[min(of_shard)][0]
    layout = layouts(lowest.layout)
    sharded = np.ones(lowest.matrix.shape[1], np.bool_)
    if layout is not None:
        sharded = np.array([p.sharded for p in layout.parameters], np.bool_)
    shards = max(p.shards for p in pieces)
    parts = (_laid(held, steps) for _, held in sorted(of_shard.items()))
    whole = joins.join(parts, shards, lowest.columns, sharded)
    return replace(
        lowest,
        rank=lowest.group,
        steps=_NONE,
        times_ns=_NONE,
        scalars={},
        matrix_steps=steps,
        matrix_times_ns=times,
        matrix=whole.values,
        squares=squares(whole.values, lowest.columns),
        complete=whole.complete,
    )


def _laid(pieces: Sequence[Piece], steps: Ints) -> Matrix:
    """One shard's matrices over these steps; unobserved rows cover nothing."""
    laid = np.full((steps.size, *pieces[0].matrix.shape[1:]), np.nan, np.float32)
    for piece in sorted(pieces, key=lambda p: -p.rank):
        at = np.searchsorted(steps, piece.matrix_steps)
        left = np.arange(at.size)
        while left.size:  # a step told in several frames takes several turns
            _, first = np.unique(at[left], return_index=True)
            turn, left = left[first], np.delete(left, first)
            rows = piece.matrix[turn]
            seen = joins.observed(rows, piece.columns)
            laid[at[turn]] = np.where(seen[..., None], rows, laid[at[turn]])
    return laid
