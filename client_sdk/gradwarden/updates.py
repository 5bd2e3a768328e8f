"""How far an optimizer's step moved the weights, from samples: no copy of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradwarden.collect import send

SAMPLE = 1024
"""Elements of each weight that are compared: a norm's ratio is then within a few percent, and
exact for weights that are not larger."""


@dataclass(frozen=True, slots=True)
class Move:
    """Samples of some weights before and after a step, laid end to end, on one device."""

    before: Tensor
    after: Tensor
    sizes: tuple[int, ...]

    def ratios(self) -> Tensor:
        """[n] float32: ||after - before|| / ||before|| of each weight; NaN where it was zero."""
        ends = send(torch.tensor(self.sizes, device="cpu"), self.before.device)
        owner = torch.repeat_interleave(ends, output_size=len(self.before))
        zeros = torch.zeros((2, len(self.sizes)), dtype=torch.float32, device=self.before.device)
        squares = torch.stack([(self.after - self.before).square_(), self.before.square()])
        moved, held = zeros.index_add_(1, owner, squares).sqrt_()
        return torch.where(held > 0, moved / held, torch.nan)


def sample(weights: Sequence[Tensor]) -> tuple[Tensor, tuple[int, ...]]:
    """Up to :data:`SAMPLE` evenly strided elements of each, as float32, and how many of each.

    ``weights`` are dense and on one device; memory order decides what is "even".
    """
    views = []
    for weight in weights:
        number = weight.numel()
        stride = max(1, -(-number // SAMPLE))
        if weight.is_contiguous():
            size = -(-number // stride)
            views.append(weight.as_strided((size,), (stride,), weight.storage_offset()))
        else:
            views.append(weight.flatten()[::stride])
    return torch.cat(views).to(torch.float32), tuple(v.numel() for v in views)
