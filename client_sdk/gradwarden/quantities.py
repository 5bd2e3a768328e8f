"""What is measured of a gradient: one small unit each, in plain torch operations.

A unit takes dense real tensors of one device and answers one float32 value per tensor, on
that device. Nothing here synchronises an accelerator: on a CPU a unit may look at values to
save work, on a device it may not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradwarden.wire import QUANTITIES

Unit = Callable[[Sequence[Tensor]], Tensor]


def local(gradient: Tensor) -> Tensor | None:
    """The dense values that this rank holds, or None where they cannot be measured.

    A DTensor gives its shard (no communication), a sparse gradient is coalesced first since
    repeated indices add up, and a complex gradient is not measured.
    """
    shard = getattr(gradient, "_local_tensor", None)
    if shard is not None:
        gradient = shard
    gradient = gradient.detach()
    if gradient.layout == torch.sparse_coo:
        gradient = gradient.coalesce().values()
    elif gradient.layout != torch.strided:
        gradient = gradient.values()
    return gradient if gradient.is_floating_point() else None


def l2(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm, accumulated in at least float32."""
    norms: list[Tensor | None] = [None] * len(tensors)
    for double in (False, True):
        dtype = torch.float64 if double else torch.float32
        index = [i for i, t in enumerate(tensors) if (t.dtype == torch.float64) is double]
        if index:
            found = torch._foreach_norm([tensors[i] for i in index], 2, dtype=dtype)
            for i, norm in zip(index, found, strict=True):
                norms[i] = norm
    return _stack([n for n in norms if n is not None])


def absmax(tensors: Sequence[Tensor]) -> Tensor:
    """Largest magnitude; NaN where any value is NaN, 0 for an empty tensor."""
    return _stack([_largest(t) for t in tensors])


def _largest(tensor: Tensor) -> Tensor:
    if not tensor.numel():
        return tensor.new_zeros(())
    low, high = torch.aminmax(tensor)  # one pass; it passes NaN on
    return torch.maximum(low.neg(), high)


def nan(tensors: Sequence[Tensor]) -> Tensor:
    """How many values are NaN."""
    return _stack([torch.isnan(t).sum() for t in tensors])


def inf(tensors: Sequence[Tensor]) -> Tensor:
    """How many values are infinite."""
    return _stack([torch.isinf(t).sum() for t in tensors])


def zero(tensors: Sequence[Tensor]) -> Tensor:
    """How many values are exactly zero, of either sign."""
    return _stack([(t == 0).sum() for t in tensors])


def measure(tensors: Sequence[Tensor]) -> Tensor:
    """The [n, K] float32 matrix of :data:`gradwarden.wire.QUANTITIES`, on their device."""
    assert QUANTITIES == ("l2", "absmax", "nan", "inf", "zero")
    if not tensors:
        return torch.empty((0, len(QUANTITIES)))
    with torch.no_grad():
        if tensors[0].device.type != "cpu":
            return torch.stack([f(tensors) for f in (l2, absmax, nan, inf, zero)], dim=1)
        return _measure_cpu(tensors)


def _measure_cpu(tensors: Sequence[Tensor]) -> Tensor:
    """The same on a host, where a look at one value may save a pass over all of them."""
    matrix = torch.zeros((len(tensors), len(QUANTITIES)))
    matrix[:, 0], matrix[:, 1] = l2(tensors), absmax(tensors)
    # A finite maximum proves that there is no NaN or Inf. The norm does not serve: squares
    # of finite values may overflow it.
    for i, peak in enumerate(matrix[:, 1].tolist()):
        tensor = tensors[i]
        if not math.isfinite(peak):
            matrix[i, 2] = torch.isnan(tensor).sum()
            matrix[i, 3] = torch.isinf(tensor).sum()
        if tensor.numel():
            matrix[i, 4] = tensor.numel() - torch.count_nonzero(tensor)
    return matrix


def by_device(tensors: Sequence[Tensor]) -> dict[torch.device, list[int]]:
    """Indices of the tensors on each device, in order."""
    groups: dict[torch.device, list[int]] = {}
    for i, tensor in enumerate(tensors):
        groups.setdefault(tensor.device, []).append(i)
    return groups


def _stack(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([v.to(torch.float32) for v in values])
