"""Which values of a gradient are measured, and how they lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradwarden.wire import HISTOGRAM, QUANTITIES

FLOATS = len(QUANTITIES) + len(HISTOGRAM)
"""float64 numbers of a measured row."""
WORDS = FLOATS + 1
"""64-bit words of a measured row: the numbers' bits, then the checksum."""

TINY = 1e-8
"""What counts as tiny lies below this, rounded to float32 where the values have at most 32 bits."""


class Form(NamedTuple):
    """How a floating-point type is read as integers; magnitudes order as their bits do."""

    word: torch.dtype
    mask: int
    """All bits but the sign's."""
    inf: int
    """The bits of infinity: whatever lies above is NaN."""
    fraction: int
    """Bits below the exponent."""
    tiny: int
    """The smallest bits whose value is not tiny."""


FORMS = {
    torch.float32: Form(torch.int32, 0x7FFFFFFF, 0x7F800000, 23, 0x322BCC77),
    torch.bfloat16: Form(torch.int16, 0x7FFF, 0x7F80, 7, 0x322C),
    torch.float16: Form(torch.int16, 0x7FFF, 0x7C00, 10, 1),
    torch.float64: Form(torch.int64, (1 << 63) - 1, 0x7FF << 52, 52, 0x3E45798EE2308C3A),
}
"""The types that are measured."""

_PLAIN = (Tensor, torch.nn.Parameter)


def local(gradient: Tensor) -> Tensor | None:
    """The dense values that this rank holds, or None where they cannot be measured.

    A DTensor gives its shard (no communication), a sparse gradient is coalesced first since
    repeated indices add up; complex, quantised and 8-bit gradients are not measured.
    """
    if type(gradient) not in _PLAIN:
        shard = getattr(gradient, "_local_tensor", None)
        if shard is not None:
            gradient = shard
        gradient = gradient.detach()
    if gradient.layout is not torch.strided:
        gradient = gradient.detach()
        if gradient.layout is torch.sparse_coo:
            gradient = gradient.coalesce()
        gradient = gradient.values()
    return gradient if gradient.dtype in FORMS else None


def by_device(tensors: Sequence[Tensor]) -> dict[torch.device, list[int]]:
    """Indices of the tensors on each device, in order."""
    groups: dict[torch.device, list[int]] = {}
    for i, tensor in enumerate(tensors):
        groups.setdefault(tensor.device, []).append(i)
    return groups


def flat(tensor: Tensor) -> Tensor:
    """The values as one contiguous row, in whatever order they lie: a view where they are dense.

    No statistic depends on the order. Values that overlap or leave gaps are copied.
    """
    if tensor.is_contiguous():
        return tensor.view(-1)
    tensor = tensor.resolve_neg()
    reach = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != reach:
                return tensor.contiguous().view(-1)
            reach *= size
    return tensor.as_strided((reach,), (1,))
