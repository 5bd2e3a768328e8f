"""Whether tensors hold a NaN or Inf: on a host a bool, on a device a flag that nobody awaits."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradwarden import stats


def of_gradients(optimizer: Optimizer) -> Tensor | bool:
    """The verdict on all gradients that the optimizer would apply."""
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return of_tensors(p.grad for p in parameters if p.grad is not None)


def of_tensors(tensors: Iterable[Tensor]) -> Tensor | bool:
    """True or False if all tensors are on the host, else [1] float32: 1.0 if any is bad."""
    held = [t for t in map(stats.local, tensors) if t is not None]
    flags = []
    for index in stats.by_device(held).values():
        flag = stats.nonfinite([held[i] for i in index])
        if flag.device.type != "cpu":
            flags.append(flag)
        elif bool(flag):
            return True
    if not flags:
        return False
    first = flags[0]
    return torch.stack([f.to(first.device, non_blocking=True) for f in flags]).amax(0)
