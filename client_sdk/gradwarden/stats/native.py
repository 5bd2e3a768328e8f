"""The C kernel for tensors of a host: one call, outside the interpreter lock, one read of each.

The kernel has no threads of its own. It runs on those of the OpenMP runtime that torch was
linked with, found through torch's own library, so that the two never compete; where there is
none, and in a forked child, whose copy of that runtime would hang, it runs on the caller.
"""

from __future__ import annotations

import ctypes
import functools
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gradwarden.stats.tensors import WORDS, flat

LIBRARY = Path(__file__).with_name("kernel.so")
"""Put there by client_sdk/build_kernel.py, where a C compiler is."""
_CALLS = 1
"""What the kernel must say of its functions; see kernel.h."""
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}

_address = Tensor.data_ptr
_size = Tensor.numel
_is_contiguous = Tensor.is_contiguous
_dtype = Tensor.dtype.__get__  # type: ignore[attr-defined]


class Kernel(NamedTuple):
    """The loaded library."""

    library: ctypes.CDLL
    ways: tuple[str, ...]
    """Instruction sets that this processor has, the best first."""
    spread: int
    """The address of the OpenMP runtime's entry, or 0."""


@functools.cache
def load() -> Kernel | None:
    """The kernel, or None where it was not built or is another version's."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
        if library.gradwarden_calls() != _CALLS:
            return None
    except (OSError, AttributeError):
        return None
    pointer, word, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    table = (pointer, pointer, ctypes.c_char_p, word)
    library.gradwarden_measure.argtypes = (*table, number, number, number, pointer, pointer)
    library.gradwarden_nonfinite.argtypes = (*table, number, number, pointer)
    library.gradwarden_way.restype = ctypes.c_char_p
    ways: list[str] = []
    while name := library.gradwarden_way(len(ways)):
        ways.append(name.decode())
    return Kernel(library, tuple(ways), _openmp())


def available() -> bool:
    """Whether the kernel can be called."""
    return load() is not None


def describe() -> str:
    """ "native" and the instruction set."""
    kernel = load()
    return "no kernel" if kernel is None else f"native {kernel.ways[0]}"


def measure(tensors: Sequence[Tensor], histogram: bool, way: int = 0) -> Tensor:
    """[n, 23] int64 as :func:`gradwarden.stats.measure` says, by the ``way``-th best set."""
    kernel = load()
    assert kernel is not None
    n = len(tensors)
    rows = torch.empty((n, WORDS), dtype=torch.int64, device="cpu")
    held, addresses, sizes, kinds = _table(tensors)
    failed = kernel.library.gradwarden_measure(
        addresses.buffer_info()[0],
        sizes.buffer_info()[0],
        kinds,
        n,
        histogram,
        way,
        torch.get_num_threads(),
        _spread(kernel),
        rows.data_ptr(),
    )
    del held  # until here: copies of what does not lie densely
    if failed:
        raise MemoryError("no memory for the kernel's jobs")
    return rows


def nonfinite(tensors: Sequence[Tensor], way: int = 0) -> Tensor:
    """[1] float32: 1.0 if any value is NaN or Inf, as :func:`gradwarden.stats.nonfinite` says."""
    kernel = load()
    assert kernel is not None
    held, addresses, sizes, kinds = _table(tensors)
    found = kernel.library.gradwarden_nonfinite(
        addresses.buffer_info()[0],
        sizes.buffer_info()[0],
        kinds,
        len(tensors),
        way,
        torch.get_num_threads(),
        _spread(kernel),
    )
    del held
    if found < 0:
        raise MemoryError("no memory for the kernel's jobs")
    return torch.full((1,), float(bool(found)), dtype=torch.float32, device="cpu")


def _table(
    tensors: Sequence[Tensor],
) -> tuple[Sequence[Tensor], array[int], array[int], bytes]:
    """What the kernel reads, and the tensors that must live as long.

    Whole passes of C over the list, since 160 small tensors are measured in 100 microseconds.
    """
    if not all(map(_is_contiguous, tensors)):
        tensors = [flat(t) for t in tensors]
    dtypes = list(map(_dtype, tensors))
    if dtypes and dtypes.count(dtypes[0]) == len(dtypes):
        kinds = bytes((_KINDS[dtypes[0]],)) * len(dtypes)
    else:
        kinds = bytes(map(_KINDS.__getitem__, dtypes))
    return tensors, array("q", map(_address, tensors)), array("q", map(_size, tensors)), kinds


def _openmp() -> int:
    """GOMP_parallel as torch itself finds it: in the process, then among its dependencies."""
    torch_cpu = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    for name in (None, str(torch_cpu)):
        try:
            entry = ctypes.CDLL(name).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(entry, ctypes.c_void_p).value or 0
    return 0


_forked = False


def _spread(kernel: Kernel) -> int:
    return 0 if _forked else kernel.spread


def _in_child() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
