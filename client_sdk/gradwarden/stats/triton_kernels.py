# mypy: ignore-errors
"""The CUDA kernels: gradients are read once, in chunks, and the chunks' numbers are joined.

A program of :func:`chunk_stats` reads one chunk of one tensor and writes eight words, so that
there are no atomics and the result is the same in every run. A program of :func:`join_chunks`
joins the words of one tensor in float64. Imported only when a CUDA tensor is measured.

A thread keeps one value of each sum. What lies outside a chunk is read as zeros, which costs no
mask per value; they are taken off the counts at the end.
"""

import triton
import triton.language as tl

THREADS = 128
TILE = 4096
"""Values read at a time: 32 by each thread, as 16-byte words."""
TILES = 7
"""Tiles of a chunk: 224 values a thread, which a byte can count."""
CHUNK = TILE * TILES
WORDS = 8
"""64-bit words of one chunk: sum of squares, checksum, largest, counts, four of the histogram."""
COLUMNS = 4
"""int64 columns of the table of tensors: elements, row of the result, first chunk, chunks."""

_INF = tl.constexpr(0x7F800000)
_TINY = tl.constexpr(0x322BCC77)  # 1e-8 rounded to float32; its bfloat16 neighbours agree
_LARGE = tl.constexpr((127 + 55) << 23)
_SMALL = tl.constexpr((127 - 50) << 23)
_THREADS, _TILE, _TILES = tl.constexpr(THREADS), tl.constexpr(TILE), tl.constexpr(TILES)
_CHUNK, _WORDS, _COLUMNS = tl.constexpr(CHUNK), tl.constexpr(WORDS), tl.constexpr(COLUMNS)
_STRIDE = tl.constexpr(512)
_OUT = tl.constexpr(23)


@triton.jit
def _place(tensors, pointers, chunk_of, WIDE: tl.constexpr):
    """Where this program's chunk starts, 16-byte aligned, and which values [low, high) are in it.

    A tensor that is not aligned is read from the aligned address below it.
    """
    pid = tl.program_id(0)
    tensor = tl.load(chunk_of + pid)
    row = tensors + tensor * _COLUMNS
    size = tl.load(row)
    first = tl.load(row + 2).to(tl.int32)
    start = tl.load(pointers + tensor)
    skipped = (start & 15) // WIDE
    offset = (pid - first).to(tl.int64) * _CHUNK
    low = tl.maximum(skipped - offset, 0).to(tl.int32)
    high = tl.minimum(skipped + size - offset, _CHUNK).to(tl.int32)
    return (start & -16) + offset * WIDE, low, high, first, tensor


@triton.jit
def _typed(address, KIND: tl.constexpr):
    """The address as a pointer to the values' words, known to be aligned."""
    if KIND == 0:
        return tl.multiple_of(address.to(tl.pointer_type(tl.int32)), 16)
    else:
        return tl.multiple_of(address.to(tl.pointer_type(tl.int16)), 16)


@triton.jit
def _bits(raw, KIND: tl.constexpr):
    """The float32 bits of words: 0 of float32, 1 of bfloat16, 2 of float16."""
    if KIND == 0:
        return raw
    elif KIND == 1:
        return raw.to(tl.int32) << 16
    else:
        return raw.to(tl.float16, bitcast=True).to(tl.float32).to(tl.int32, bitcast=True)


@triton.jit
def _lanes(VECTOR: tl.constexpr):
    """Offsets of a tile, [rows, threads, vector]: each thread reads 16 bytes a row."""
    ROWS: tl.constexpr = _TILE // _THREADS // VECTOR
    rows = tl.arange(0, ROWS)[:, None, None] * (_THREADS * VECTOR)
    return rows + tl.arange(0, _THREADS)[None, :, None] * VECTOR + tl.arange(0, VECTOR)[None, None]


@triton.jit
def _count(magnitudes, VECTOR: tl.constexpr):
    """Each thread's histogram of a tile, a byte a bin: the even bins, and the odd ones.

    The exponent picks one of sixteen counters of four bits in one word.
    """
    shifts = tl.minimum(tl.maximum((magnitudes >> 23) - 85, 0), 63) & 60
    ones = tl.full(shifts.shape, 1, tl.int64) << shifts.to(tl.int64)
    # Eight values each: the counters hold fifteen.
    FIRST: tl.constexpr = 2 if VECTOR == 8 else 0
    THEN: tl.constexpr = 0 if VECTOR == 8 else 1
    fours = tl.sum(ones, axis=FIRST)
    even, odd = fours & 0x0F0F0F0F0F0F0F0F, (fours >> 4) & 0x0F0F0F0F0F0F0F0F
    return tl.sum(even, axis=THEN), tl.sum(odd, axis=THEN)


@triton.jit
def _fold(raw, KIND: tl.constexpr, HIST: tl.constexpr, VECTOR: tl.constexpr):
    """Each thread's numbers of one tile, [threads] each."""
    bits = _bits(raw, KIND)
    values = bits.to(tl.float32, bitcast=True)
    magnitudes = bits & 0x7FFFFFFF
    squares = tl.sum(tl.sum(values * values, axis=2), axis=0)
    top = tl.max(tl.max(magnitudes, axis=2), axis=0)
    if KIND == 0:
        words = tl.sum(tl.sum(raw.to(tl.int64), axis=2), axis=0)
    else:  # 28672 words of 16 bits need 31
        words = tl.sum(tl.sum(raw.to(tl.int32), axis=2), axis=0)
    # The borrow of a subtraction counts without a comparison, in fewer instructions.
    tiny = (magnitudes - _TINY).to(tl.uint32, bitcast=True) >> 31
    zeros = (magnitudes - 1).to(tl.uint32, bitcast=True) >> 31
    tiny = tl.sum(tl.sum(tiny.to(tl.int32), axis=2), axis=0)
    counts = tiny * 65536 + tl.sum(tl.sum(zeros.to(tl.int32), axis=2), axis=0)
    if HIST:
        even, odd = _count(magnitudes, VECTOR)
    else:
        even, odd = tl.zeros([_THREADS], tl.int64), tl.zeros([_THREADS], tl.int64)
    return squares, top, words, counts, even, odd


@triton.jit
def _slowly(source, low, high, KIND: tl.constexpr):
    """The sum of the finite squares in float64, and the counts of NaN and Inf, of one chunk."""
    lanes = tl.arange(0, _STRIDE)
    squares = tl.zeros([_STRIDE], tl.float64)
    odd = tl.zeros([_STRIDE], tl.int32)
    for at in range(0, _CHUNK, _STRIDE):
        index = at + lanes
        raw = tl.load(source + index, mask=(index >= low) & (index < high), other=0)
        bits = _bits(raw, KIND)
        magnitudes = bits & 0x7FFFFFFF
        value = tl.where(magnitudes < _INF, bits, 0).to(tl.float32, bitcast=True).to(tl.float64)
        squares += value * value
        odd += (magnitudes > _INF).to(tl.int32) + (magnitudes == _INF).to(tl.int32) * 65536
    nans = tl.sum((odd & 65535).to(tl.int64), axis=0)
    return tl.sum(squares, axis=0), nans, tl.sum((odd >> 16).to(tl.int64), axis=0)


@triton.jit
def chunk_stats(tensors, pointers, chunk_of, partials, KIND: tl.constexpr, HIST: tl.constexpr):
    """The words of one chunk. Grid: chunks. KIND: 0 float32, 1 bfloat16, 2 float16."""
    WIDE: tl.constexpr = 4 if KIND == 0 else 2
    VECTOR: tl.constexpr = 16 // WIDE
    address, low, high, first, tensor = _place(tensors, pointers, chunk_of, WIDE)
    source = _typed(address, KIND)
    lanes = _lanes(VECTOR)
    squares = tl.zeros([_THREADS], tl.float32)
    top = tl.zeros([_THREADS], tl.int32)
    words = tl.zeros([_THREADS], tl.int64 if KIND == 0 else tl.int32)
    counts = tl.zeros([_THREADS], tl.int32)
    even, odd = tl.zeros([_THREADS], tl.int64), tl.zeros([_THREADS], tl.int64)
    missing = 0
    if (low == 0) & (high == _CHUNK):
        for tile in range(_TILES):
            raw = tl.load(source + tile * _TILE + lanes)
            s, t, w, c, e, o = _fold(raw, KIND, HIST, VECTOR)
            squares, top, words, counts = squares + s, tl.maximum(top, t), words + w, counts + c
            even, odd = even + e, odd + o
    else:
        tiles = tl.cdiv(tl.maximum(high, 0), _TILE)
        for tile in range(tiles):
            index = tile * _TILE + lanes
            raw = tl.load(source + index, mask=(index >= low) & (index < high), other=0)
            s, t, w, c, e, o = _fold(raw, KIND, HIST, VECTOR)
            squares, top, words, counts = squares + s, tl.maximum(top, t), words + w, counts + c
            even, odd = even + e, odd + o
        missing = tiles * _TILE - tl.maximum(high - low, 0)
    largest = tl.max(top, axis=0)
    total = tl.sum(squares, axis=0).to(tl.float64)
    nans, infs = tl.zeros([], tl.int64), tl.zeros([], tl.int64)
    if (largest >= _LARGE) | ((largest < _SMALL) & (largest > 0)):  # squares may leave float32
        total, nans, infs = _slowly(source, low, high, KIND)
    zeros = tl.sum((counts & 65535).to(tl.int64), axis=0) - missing
    tiny = tl.sum((counts >> 16).to(tl.int64), axis=0) - missing
    # The words of one tensor's chunks lie side by side, word by word.
    number = tl.load(tensors + tensor * _COLUMNS + 3)
    place = partials + first.to(tl.int64) * _WORDS + (tl.program_id(0) - first)
    tl.store(place, total.to(tl.int64, bitcast=True))
    tl.store(place + number, tl.sum(words.to(tl.int64), axis=0))
    tl.store(place + 2 * number, largest.to(tl.int64))
    tl.store(place + 3 * number, zeros | (tiny << 16) | (nans << 32) | (infs << 48))
    if HIST:
        byte: tl.constexpr = 0x00FF00FF00FF00FF
        tl.store(place + 4 * number, tl.sum(even & byte, axis=0) - zeros - missing)
        tl.store(place + 5 * number, tl.sum(odd & byte, axis=0))
        tl.store(place + 6 * number, tl.sum((even >> 8) & byte, axis=0))
        tl.store(place + 7 * number, tl.sum((odd >> 8) & byte, axis=0) - ((nans + infs) << 48))


@triton.jit
def _put(out, column: tl.constexpr, value):
    """A number as the bits of its float64."""
    tl.store(out + column, value.to(tl.float64).to(tl.int64, bitcast=True))


@triton.jit
def _sixteen(words, field: tl.constexpr):
    """The sum of one 16-bit field of words."""
    return tl.sum((words >> (16 * field)) & 65535, axis=0)


@triton.jit
def join_chunks(tensors, partials, out, HIST: tl.constexpr, BLOCK: tl.constexpr):
    """One row of 23 words from the chunks of one tensor. Grid: tensors."""
    row = tensors + tl.program_id(0) * _COLUMNS
    out += tl.load(row + 1) * _OUT
    first, number = tl.load(row + 2), tl.load(row + 3)
    source = partials + first * _WORDS
    squares, largest = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.int64)
    checksum = tl.zeros([BLOCK], tl.int64)
    zeros, tiny = tl.zeros([BLOCK], tl.int64), tl.zeros([BLOCK], tl.int64)
    nans, infs = tl.zeros([BLOCK], tl.int64), tl.zeros([BLOCK], tl.int64)
    for at in range(0, number.to(tl.int32), BLOCK):
        index = at + tl.arange(0, BLOCK)
        inside = index < number
        here = source + index
        squares += tl.load(here, mask=inside, other=0).to(tl.float64, bitcast=True)
        checksum += tl.load(here + number, mask=inside, other=0)
        largest = tl.maximum(largest, tl.load(here + 2 * number, mask=inside, other=0))
        counts = tl.load(here + 3 * number, mask=inside, other=0)
        zeros += counts & 65535
        tiny += (counts >> 16) & 65535
        nans += (counts >> 32) & 65535
        infs += (counts >> 48) & 65535
    nan, inf = tl.sum(nans, axis=0), tl.sum(infs, axis=0)
    peak = tl.max(largest, axis=0).to(tl.int32).to(tl.float32, bitcast=True).to(tl.float64)
    norm = tl.sqrt(tl.sum(squares, axis=0))
    norm = tl.where(nan > 0, float("nan"), tl.where(inf > 0, float("inf"), norm))
    _put(out, 0, norm)
    _put(out, 1, tl.where(nan > 0, float("nan"), peak))
    _put(out, 2, nan)
    _put(out, 3, inf)
    _put(out, 4, tl.sum(zeros, axis=0))
    _put(out, 5, tl.sum(tiny, axis=0))
    for word in tl.static_range(4):
        if HIST:
            bins = tl.zeros([BLOCK, 4], tl.int64)
            shift = (tl.arange(0, 4) * 16)[None, :]
            for at in range(0, number.to(tl.int32), BLOCK):
                index = at + tl.arange(0, BLOCK)
                here = source + (4 + word) * number + index
                bins += (tl.load(here, mask=index < number, other=0)[:, None] >> shift) & 65535
            found = tl.sum(bins, axis=0).to(tl.float64).to(tl.int64, bitcast=True)
        else:
            found = tl.full([4], float("nan"), tl.float64).to(tl.int64, bitcast=True)
        tl.store(out + 6 + word + 4 * tl.arange(0, 4), found)
    tl.store(out + _OUT - 1, tl.sum(checksum, axis=0))


@triton.jit
def chunk_flag(tensors, pointers, chunk_of, flag, KIND: tl.constexpr):
    """Writes 1.0 where a chunk holds a NaN or Inf; all that write, write the same. Grid: chunks."""
    WIDE: tl.constexpr = 4 if KIND == 0 else 2
    VECTOR: tl.constexpr = 16 // WIDE
    address, low, high, _first, _tensor = _place(tensors, pointers, chunk_of, WIDE)
    source = _typed(address, KIND)
    lanes = _lanes(VECTOR)
    top = tl.zeros([_THREADS], tl.int32)
    if (low == 0) & (high == _CHUNK):
        for tile in range(_TILES):
            bits = _bits(tl.load(source + tile * _TILE + lanes), KIND) & 0x7FFFFFFF
            top = tl.maximum(top, tl.max(tl.max(bits, axis=2), axis=0))
    else:
        for tile in range(tl.cdiv(tl.maximum(high, 0), _TILE)):
            index = tile * _TILE + lanes
            raw = tl.load(source + index, mask=(index >= low) & (index < high), other=0)
            bits = _bits(raw, KIND) & 0x7FFFFFFF
            top = tl.maximum(top, tl.max(tl.max(bits, axis=2), axis=0))
    if tl.max(top, axis=0) >= _INF:
        tl.store(flag, 1.0)
