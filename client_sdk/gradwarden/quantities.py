"""What is measured of a gradient: one small unit each, in plain torch operations.

A unit takes dense real tensors of one device and answers one float32 value per tensor, on
that device. Nothing here synchronises an accelerator: on a CPU a unit may look at values to
save work, on a device it may not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwarden.wire import QUANTITIES

_PIECE = 1 << 20
"""Elements of one piece of a large tensor: little memory, and few enough calls."""


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
    # One pass over each tensor, and it passes NaN on.
    pairs = [torch.aminmax(t) if t.numel() else (t.new_zeros(()),) * 2 for t in tensors]
    return torch.maximum(
        _stack([low for low, _ in pairs]).neg(), _stack([high for _, high in pairs])
    )


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


def finite(tensors: Sequence[Tensor]) -> Tensor | None:
    """A stand-in for :func:`measure` at the cost of the norm, where all values are finite.

    Only its first column is true. None where a value is not finite, or on a device, which
    would have to be waited for.
    """
    if not tensors or tensors[0].device.type != "cpu":
        return None
    norms = l2(tensors)
    if not bool(torch.isfinite(norms).all()):
        return None
    matrix = torch.zeros((len(tensors), len(QUANTITIES)))
    matrix[:, 0] = matrix[:, 1] = norms
    return matrix


def _measure_cpu(tensors: Sequence[Tensor]) -> Tensor:
    """The same on a host, where a look at one value may save a pass over all of them."""
    matrix = torch.zeros((len(tensors), len(QUANTITIES)))
    matrix[:, 0] = l2(tensors)
    small = [i for i, t in enumerate(tensors) if t.numel() <= _PIECE]
    if small:
        few = [tensors[i] for i in small]
        sizes = torch.tensor([t.numel() for t in few])
        matrix[small, 1] = absmax(few)
        matrix[small, 4] = (sizes - torch.stack([torch.count_nonzero(t) for t in few])).float()
    for i, tensor in enumerate(tensors):
        if tensor.numel() > _PIECE:
            matrix[i, 1], matrix[i, 4] = _scan(tensor)
    # A finite maximum proves that there is no NaN or Inf. The norm does not serve: squares
    # of finite values may overflow it.
    for i in torch.isfinite(matrix[:, 1]).logical_not().nonzero().flatten().tolist():
        matrix[i, 2] = torch.isnan(tensors[i]).sum()
        matrix[i, 3] = torch.isinf(tensors[i]).sum()
    return matrix


def _scan(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Largest magnitude and number of zeros of a large host tensor, piece by piece.

    Counting costs ten times a pass for the extremes, so only those pieces are counted whose
    smallest magnitude does not rule zeros out.
    """
    flat, peaks, zeros = tensor.reshape(-1), [], torch.zeros((), dtype=torch.long)
    for start in range(0, flat.numel(), _PIECE):
        piece = flat[start : start + _PIECE]
        low, high = torch.aminmax(piece.abs())
        peaks.append(high)
        if not low > 0:  # also when it is NaN
            zeros += (piece == 0).sum()
    return torch.stack(peaks).max(), zeros


def by_device(tensors: Sequence[Tensor]) -> dict[torch.device, list[int]]:
    """Indices of the tensors on each device, in order."""
    groups: dict[torch.device, list[int]] = {}
    for i, tensor in enumerate(tensors):
        groups.setdefault(tensor.device, []).append(i)
    return groups


def _stack(values: Sequence[Tensor]) -> Tensor:
    if len({v.dtype for v in values}) == 1:
        return torch.stack(list(values)).to(torch.float32)
    return torch.stack([v.to(torch.float32) for v in values])
