"""The engine in C: each function one call, outside the interpreter lock. See kernel.c."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import numpy as np

from gradwarden_server.store.columns.forms import (
    Batches,
    Bytes,
    Flags,
    Ints,
    Level,
    Survey,
    Words,
)

LIBRARY = Path(__file__).with_name("kernel.so")
"""Put there by service/build_kernel.py, where a C compiler is."""
_CALLS = 1
_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS = {
    "measured": (_POINTER, _POINTER, _NUMBER, _NUMBER, _POINTER),
    "lay": (_POINTER, _POINTER, _NUMBER, _NUMBER, _POINTER, _NUMBER, _POINTER),
    "survey": (_POINTER, _NUMBER, _NUMBER, _NUMBER, _POINTER, _POINTER, _POINTER),
    "fold": (_POINTER, _NUMBER, _NUMBER, _NUMBER, _NUMBER, _POINTER),
    "roll": (_POINTER, _POINTER, _NUMBER, _NUMBER, _POINTER, _NUMBER, *[_POINTER] * 6),
}


@functools.cache
def _kernel() -> ctypes.CDLL | None:
    """The library, or None where it was not built or is another version's."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
        if library.gradwarden_columns() != _CALLS:
            return None
        for name, arguments in _ARGUMENTS.items():
            function = getattr(library, f"gradwarden_{name}")
            function.argtypes, function.restype = arguments, None
    except (OSError, AttributeError):
        return None
    return library


def available() -> bool:
    """Whether the kernel can be called."""
    return _kernel() is not None


def measured(batches: Batches, at: Ints) -> Flags:
    """As :func:`gradwarden_server.store.columns.plain.measured`."""
    flags = np.zeros(batches.total, np.bool_)
    _call("measured", *_column(batches, at), batches.rows, flags)
    return flags


def lay(batches: Batches, at: Ints, kept: Flags) -> Words:
    """As :func:`gradwarden_server.store.columns.plain.lay`."""
    steps = int(np.count_nonzero(kept))
    words = np.empty((batches.rows, steps), np.uint32)
    _call("lay", *_column(batches, at), batches.rows, kept, steps, words)
    return words


def survey(words: Words, block: int) -> Survey:
    """As :func:`gradwarden_server.store.columns.plain.survey`."""
    blocks = -(-len(words) // block)
    holes, nans = np.empty(blocks, np.int64), np.empty(blocks, np.int64)
    alike = np.empty(blocks, np.bool_)
    _call("survey", words, *words.shape, block, holes, nans, alike)
    return Survey(holes.tolist(), nans.tolist(), alike.tolist())


def fold(words: Words, block: int, together: int) -> Bytes:
    """As :func:`gradwarden_server.store.columns.plain.fold`."""
    out = np.empty(words.nbytes, np.uint8)
    _call("fold", words, *words.shape, block, together, out)
    return out


def roll(words: Words, seen: Flags | None, starts: Ints) -> Level:
    """As :func:`gradwarden_server.store.columns.plain.roll`."""
    shape = len(words), starts.size - 1
    found = Level(
        np.empty(shape, np.int32),
        np.empty(shape, np.int32),
        np.empty(shape, np.float64),
        np.empty(shape, np.uint32),
        np.empty(shape, np.int32),
        np.empty(shape, np.int32),
    )
    _call("roll", words, seen, *words.shape, starts, shape[1], *found)
    return found


def _column(batches: Batches, at: Ints) -> tuple[Ints, Ints, int]:
    """Addresses of the planes of a column, 0 where there are none; matrices; and batches."""
    addresses = np.where(at < 0, 0, batches.addresses + at)
    return addresses, batches.matrices, addresses.size


def _call(name: str, *arguments: object) -> None:
    """Arrays are passed as they lie: each has to be whole in memory, and of the type expected."""
    passed = []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            assert argument.flags.c_contiguous
            argument = argument.ctypes.data
        passed.append(argument)
    getattr(_kernel(), f"gradwarden_{name}")(*passed)
