"""Numbers as compressed bytes: rows of float32 over time, bit for bit.

A row's values lie close to their neighbours in time, so each is told as the difference of its
bit pattern from the last one's, folded to small unsigned numbers (zigzag), and the four bytes
of all of them lie in planes: planes of exponents compress well, planes of noise do not slow
the others. A column that was not measured at most steps keeps a bit per hole; one that never
changes keeps its value alone.
"""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Sequence

import numpy as np
import zstandard
from numpy.typing import NDArray

from gradwarden_server.joins import Matrix
from gradwarden_server.store import columns
from gradwarden_server.store.columns import HOLE, Survey, Words

Bytes = NDArray[np.uint8]
Row = NDArray[np.float32]

BLOCK_ROWS = 16
"""Rows that are packed together: one layer's history reads few others with it."""

_CONSTANT, _DENSE, _SPARSE = 1, 2, 3
_PRELUDE = struct.Struct("<BII")
_BITS = struct.Struct("<I")
_LEVEL = 1
_PART_VALUES = 4096
_MOST_VALUES = 1 << 28


class Corrupt(ValueError):
    """Bytes that this module did not write, or that were damaged since."""


def pack(values: Matrix) -> bytes:
    """[rows, steps] float32 as bytes that :func:`unpack` gives back bit for bit."""
    if not len(values):
        return _PRELUDE.pack(_CONSTANT, *values.shape) + _BITS.pack(0)
    words = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return pack_blocks(words, len(words), columns.survey(words, len(words)))[0]


def pack_blocks(words: Words, rows: int, told: Survey) -> list[bytes]:
    """The same for every ``rows`` rows of [L, steps] bits, which were surveyed by as many."""
    steps = words.shape[1]
    together = _together(steps)
    folded: memoryview | None = None
    bodies = []
    for start, holes, alike in zip(range(0, len(words), rows), told.holes, told.alike, strict=True):
        end = min(start + rows, len(words))
        block = words[start:end]
        shape = block.shape
        if alike:
            bits = int(block[0, 0]) if steps else 0
            bodies.append(_PRELUDE.pack(_CONSTANT, *shape) + _BITS.pack(bits))
        elif 2 * holes > block.size:
            held = block != HOLE
            planes = columns.fold(block[held][None, :], 1, 1)
            payload = _compress(np.packbits(held).tobytes() + planes.tobytes())
            bodies.append(_PRELUDE.pack(_SPARSE, *shape) + payload)
        else:
            if folded is None:
                folded = columns.fold(words, rows, together).data
            ends = [4 * steps * row for row in (*range(start, end, together), end)]
            parts = [_compress(folded[a:b]) for a, b in itertools.pairwise(ends)]
            sizes = struct.pack(f"<{len(parts)}I", *map(len, parts))
            bodies.append(b"".join((_PRELUDE.pack(_DENSE, *shape), sizes, *parts)))
    return bodies


def unpack(body: bytes) -> Matrix:
    """The [rows, steps] float32 that were packed; a fresh array.

    Raises:
        Corrupt: the bytes are not whole.
    """
    try:
        kind, rows, steps = _prelude(body)
        if kind == _CONSTANT:
            (bits,) = _BITS.unpack_from(body, _PRELUDE.size)
            return filled(rows, steps, bits)
        if kind == _SPARSE:
            return _sparse(body[_PRELUDE.size :], rows, steps)
        words = np.empty((rows, steps), np.uint32)
        together = _together(steps)
        for i, part in enumerate(_parts(body, rows, steps)):
            some = words[i * together : (i + 1) * together]
            some[...] = _words(_decompress(part, 4 * some.size), some.shape)
        return words.view(np.float32)
    except (struct.error, zstandard.ZstdError, ValueError) as error:
        raise Corrupt(str(error)) from None


def unpack_rows(bodies: Sequence[bytes], row: int) -> list[Row]:
    """[steps] of one row of each, for a fraction of the work of all.

    Raises:
        Corrupt: the bytes of one are not whole.
        IndexError: one has fewer rows.
    """
    found: list[Row | None] = [None] * len(bodies)
    alike: dict[int, list[tuple[int, Bytes]]] = {}
    try:
        for i, body in enumerate(bodies):
            kind, rows, steps = _prelude(body)
            if kind == _DENSE and row < rows:
                planes = _planes_of(body, rows, steps, row)
                alike.setdefault(steps, []).append((i, planes))
            else:
                found[i] = unpack(body)[row]
    except (struct.error, zstandard.ZstdError, ValueError) as error:
        raise Corrupt(str(error)) from None
    for steps, some in alike.items():
        folded = np.empty((len(some), steps, 4), np.uint8)
        for at, (_, planes) in enumerate(some):
            folded[at] = planes.T
        values = _unfolded(folded.view(np.uint32)[:, :, 0]).view(np.float32)
        for (i, _), one in zip(some, values, strict=True):
            found[i] = one
    return [one for one in found if one is not None]


def _planes_of(body: bytes, rows: int, steps: int, row: int) -> Bytes:
    """[4, steps] bytes of one row of a dense body."""
    together = _together(steps)
    sizes, at = _sizes(body, rows, steps)
    which = row // together
    at += sum(sizes[:which])
    part = memoryview(body)[at : at + sizes[which]]
    count = min(together, rows - which * together)
    planes = np.frombuffer(_decompress(part, 4 * count * steps), np.uint8)
    return planes.reshape(4, count, steps)[:, row % together]


def filled(rows: int, steps: int, bits: int) -> Matrix:
    """[rows, steps] of one value, given by its bits."""
    return np.full((rows, steps), bits, np.uint32).view(np.float32)


def constant(words: Words, told: Survey) -> int | None:
    """The bits that all these surveyed words share, or None; nothing shares those of zero."""
    if not words.size:
        return 0
    alike = all(told.alike) and bool((words[:, 0] == words[0, 0]).all())
    return int(words[0, 0]) if alike else None


def rounded(values: Matrix, bits: int) -> Matrix:
    """Finite values rounded to ``bits`` bits of mantissa, to nearest, ties to even.

    The relative error of normal numbers is at most 2**-(bits + 1): 1.2e-4 for 12 bits. What
    would round up to infinity is cut off instead; NaN and infinity stay as they are.
    """
    drop = 23 - bits
    words = np.ascontiguousarray(values, np.float32).view(np.uint32)
    odd = (words >> np.uint32(drop)) & np.uint32(1)
    half = np.uint32((1 << (drop - 1)) - 1)
    kept = np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)
    up = (words + half + odd) & kept
    up = np.where((up & np.uint32(0x7F800000)) == np.uint32(0x7F800000), words & kept, up)
    finite = (words & np.uint32(0x7F800000)) != np.uint32(0x7F800000)
    return np.where(finite, up, words).view(np.float32)


def pack_words(words: NDArray[np.uint64]) -> bytes:
    """[n, W] 64-bit words, which hold no order to make use of, as byte planes."""
    raw = np.ascontiguousarray(words, "<u8")
    planes = np.ascontiguousarray(raw.view(np.uint8).reshape(-1, 8).T).tobytes()
    return _PRELUDE.pack(0, *raw.shape) + _compress(planes)


def unpack_words(body: bytes) -> NDArray[np.uint64]:
    """The [n, W] words that :func:`pack_words` took.

    Raises:
        Corrupt: the bytes are not whole.
    """
    try:
        _, n, width = _PRELUDE.unpack_from(body)
        planes = _decompress(body[_PRELUDE.size :], 8 * n * width)
        flat = np.frombuffer(planes, np.uint8).reshape(8, -1)
        return np.ascontiguousarray(flat.T).view("<u8").reshape(n, width).astype(np.uint64)
    except (struct.error, zstandard.ZstdError, ValueError) as error:
        raise Corrupt(str(error)) from None


def _prelude(body: bytes) -> tuple[int, int, int]:
    kind, rows, steps = _PRELUDE.unpack_from(body)
    if kind not in (_CONSTANT, _DENSE, _SPARSE) or rows * steps > _MOST_VALUES:
        raise Corrupt(f"codec {kind}, {rows} x {steps} values")
    return kind, rows, steps


def _together(steps: int) -> int:
    """Rows that are compressed in one go: enough to be worth a call, few enough that a single
    row is read without most others."""
    return max(4, _PART_VALUES // max(1, steps))


def _sizes(body: bytes, rows: int, steps: int) -> tuple[tuple[int, ...], int]:
    """The sizes of what was compressed together, part by part, and where the first begins."""
    count = -(-rows // _together(steps))
    return struct.unpack_from(f"<{count}I", body, _PRELUDE.size), _PRELUDE.size + 4 * count


def _parts(body: bytes, rows: int, steps: int) -> list[bytes]:
    """The rows that were compressed together, part by part."""
    sizes, at = _sizes(body, rows, steps)
    ends = [*itertools.accumulate(sizes, initial=at)]
    return [body[start:end] for start, end in itertools.pairwise(ends)]


def _words(planes: bytes, shape: tuple[int, int]) -> Words:
    flat = np.frombuffer(planes, np.uint8).reshape(4, -1)
    folded = np.empty((flat.shape[1], 4), np.uint8)
    for plane in range(4):
        folded[:, plane] = flat[plane]
    return _unfolded(folded.reshape(-1).view(np.uint32).reshape(shape))


def _unfolded(words: Words) -> Words:
    """What was folded, see :func:`gradwarden_server.store.columns.plain.fold`."""
    steps = (words >> np.uint32(1)) ^ (np.uint32(0) - (words & np.uint32(1)))
    return np.cumsum(steps, axis=1, dtype=np.uint32)


def _sparse(payload: bytes, rows: int, steps: int) -> Matrix:
    size = rows * steps
    mask_bytes = (size + 7) // 8
    raw = _mine.decompressor.decompress(payload, max_output_size=mask_bytes + 4 * size)
    held = np.unpackbits(np.frombuffer(raw[:mask_bytes], np.uint8), count=size).astype(np.bool_)
    count = int(np.count_nonzero(held))
    if len(raw) != mask_bytes + 4 * count:
        raise Corrupt(f"{len(raw)} bytes for {count} values")
    words = np.full(size, HOLE, np.uint32)
    if count:
        words[held] = _words(raw[mask_bytes:], (1, count))[0]
    return words.reshape(rows, steps).view(np.float32)


class _Contexts(threading.local):
    """Making one costs more than using it; a thread keeps its own."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_mine = _Contexts()


def _compress(raw: bytes | memoryview) -> bytes:
    packed: bytes = _mine.compressor.compress(raw)
    return packed


def _decompress(payload: bytes | memoryview, size: int) -> bytes:
    raw: bytes = _mine.decompressor.decompress(payload, max_output_size=size)
    if len(raw) != size:
        raise Corrupt(f"{len(raw)} of {size} bytes")
    return raw
