"""All that is measured of a gradient, in one pass over it by the best engine at hand.

A C kernel on hosts, a Triton kernel on CUDA devices, plain torch operations elsewhere and
where a kernel is missing. Counts, maxima and checksums are the same to the bit in all three.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradwarden.stats import native, plain
from gradwarden.stats.tensors import FLOATS, WORDS, by_device, local

__all__ = ["FLOATS", "WORDS", "by_device", "describe", "local", "measure", "nonfinite"]


def measure(tensors: Sequence[Tensor], histogram: bool) -> Tensor:
    """Statistics of each tensor: [n, 23] int64 on the tensors' one device, never waiting for it.

    The first 22 words of a row are the bits of float64: the L2 norm, the largest magnitude, the
    counts of NaN, Inf, zeros and values below 1e-8 (zeros included), then the histogram, NaN
    unless ``histogram``; see :mod:`gradwarden.wire.quantity`. The last word is the checksum: the
    sum modulo 2^64 of the values' bits as signed words of their own size. On a device without
    float64 (mps) instead: [n, 22] float32 with the same numbers and no checksum.

    The tensors are dense, real and of float32, bfloat16, float16 or float64, as
    :func:`local` gives them; of any shape, strides and size, 0 included.
    """
    found: Tensor = _engine(tensors[0].device if tensors else None).measure(tensors, histogram)
    return found


def nonfinite(tensors: Sequence[Tensor]) -> Tensor:
    """[1] float32 on the tensors' one device: 1.0 if any value is NaN or Inf, else 0.0."""
    found: Tensor = _engine(tensors[0].device if tensors else None).nonfinite(tensors)
    return found


def describe(device: torch.device | None = None) -> str:
    """The engine for tensors of a device (the host unless given), with why it is no kernel:
    "native avx2", "triton 3.9.0", "torch (triton is not installed)"."""
    triton = _triton() if device is not None and device.type == "cuda" else None
    if triton is not None:
        return str(triton.describe())
    return native.describe() if _engine(device) is native else "torch"


def _engine(device: torch.device | None) -> Any:
    """The module that measures tensors of a device."""
    if device is None or device.type == "cpu":
        return native if native.available() else plain
    if device.type == "cuda":
        triton = _triton()
        if triton is not None and triton.available(device):
            return triton
    return plain


@functools.cache
def _triton() -> Any:
    """The kernel for CUDA devices; imported when the first of them is seen."""
    try:
        triton = importlib.import_module("gradwarden.stats.triton")
    except ImportError:
        return None
    return triton
