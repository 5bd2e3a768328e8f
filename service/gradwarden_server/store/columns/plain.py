"""The engine in numpy alone, for a machine without a C compiler; the kernel's slow twin."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradwarden_server.store.columns.forms import (
    HOLE,
    Batches,
    Bytes,
    Flags,
    Ints,
    Level,
    Survey,
    Words,
    keys,
)

_SIZE, _EXPONENT = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)


def measured(batches: Batches, at: Ints) -> Flags:
    """[total], whether any row of a column was measured.

    Args:
        batches: What was sent.
        at: Where the column begins in each payload, -1 where it was not sent.
    """
    return np.concatenate([(words != HOLE).any(axis=1) for words in _sent(batches, at)])


def lay(batches: Batches, at: Ints, kept: Flags) -> Words:
    """[rows, k] words of a column over the matrices that are kept, [total]; arguments as above."""
    return np.ascontiguousarray(np.concatenate(list(_sent(batches, at)))[kept].T)


def survey(words: Words, block: int) -> Survey:
    """What is worth knowing of [rows, steps] words before every ``block`` rows are packed."""
    blocks = [words[start : start + block] for start in range(0, len(words), block)]
    return Survey(
        [int(np.count_nonzero(some == HOLE)) for some in blocks],
        [int(np.count_nonzero(some & _SIZE > _EXPONENT)) for some in blocks],
        [bool((some == some[:1, :1]).all()) for some in blocks],
    )


def fold(words: Words, block: int, together: int) -> Bytes:
    """Differences of words along rows, small ones of either sign near zero, as byte planes.

    Of every ``together`` of ``block`` rows first all lowest bytes, at last all highest: the
    rows [r0, r1) of one part are the bytes from 4 * steps * r0 to 4 * steps * r1.
    """
    rows, steps = words.shape
    signed = words.view(np.int32)
    folded = np.empty_like(signed)
    folded[:, :1] = signed[:, :1]
    np.subtract(signed[:, 1:], signed[:, :-1], out=folded[:, 1:])
    signs = folded >> 31
    np.left_shift(folded, 1, out=folded)
    np.bitwise_xor(folded, signs, out=folded)
    out = np.empty((rows, 4 * steps), np.uint8)
    for start in range(0, rows, block):
        end = min(start + block, rows)
        for first in range(start, end, together):
            part = folded[first : min(first + together, end)]
            planes = part.view(np.uint8).reshape(-1, 4).T
            out[first : first + len(part)] = planes.reshape(len(part), -1)
    return out.reshape(-1)


def roll(words: Words, seen: Flags | None, starts: Ints) -> Level:
    """[rows, steps] words over the buckets [starts[b], starts[b + 1]), none of them empty.

    ``seen`` tells what was measured; without it a NaN was not.
    """
    sizes = words & _SIZE
    finite = sizes < _EXPONENT
    told = sizes <= _EXPONENT if seen is None else seen
    taken = finite & told
    firsts, lengths = starts[:-1], np.diff(starts)
    numbers = keys(words)
    order = np.arange(words.shape[1])
    newest = np.maximum.reduceat(np.where(taken, order, -1), firsts, axis=1)
    last = np.take_along_axis(words, np.maximum(newest, 0), axis=1)
    filled = np.where(taken, words, 0).view(np.float32)
    sums = np.zeros(newest.shape)
    for i in range(int(lengths.max(initial=0))):  # step after step, as the kernel adds them
        there = i < lengths
        sums[:, there] += filled[:, firsts[there] + i]
    return Level(
        np.minimum.reduceat(np.where(taken, numbers, np.int32(2**31 - 1)), firsts, axis=1),
        np.maximum.reduceat(np.where(taken, numbers, np.int32(-(2**31))), firsts, axis=1),
        sums,
        np.where(newest >= 0, last, np.uint32(HOLE)),
        np.add.reduceat(taken, firsts, axis=1, dtype=np.int32),
        np.add.reduceat(told & ~finite, firsts, axis=1, dtype=np.int32),
    )


def _sent(batches: Batches, at: Ints) -> Iterator[Words]:
    """[m, rows] words of a column of each batch."""
    for payload, m, first in zip(batches.payloads, batches.matrices, at, strict=True):
        if first < 0:
            yield np.full((m, batches.rows), HOLE, np.uint32)
        else:
            planes = payload[first : first + 4 * m * batches.rows].reshape(4, m, batches.rows)
            raw = np.ascontiguousarray(planes.transpose(1, 2, 0))
            yield raw.view("<u4")[:, :, 0]
