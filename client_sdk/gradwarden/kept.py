"""Whether gradients that the optimizer consumed were cleared before new ones were added to them.

A gradient may stay for many reasons: micro-batches that accumulate, a loop that clears right
before ``backward``, a GAN's residue. So only this counts: whenever a backward pass began since
the step, the very tensors that the step consumed were still there and held something, up to the
next step of the same optimizer. Nothing here waits for a device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gradwarden.collect import Pending
from gradwarden.stats.tensors import local

IN_A_ROW = 3
"""Steps in a row that began with consumed gradients before it is told."""
_FEW = 4
"""Gradients whose values are looked at: the smallest ones of the sample."""
_LARGEST = 1 << 16
"""Elements of a gradient that is not looked at."""
_MOST = 16
"""Backward passes of one step that are looked at."""

Fetch = Callable[[Tensor], Pending | None]
Token = Mapping[int, tuple[Tensor, Callable[[], Tensor | None], int]]
"""A sample of parameters, with their gradients (weakly) and these tensors' versions."""


class Kept:
    """The fate of one optimizer's gradients between two of its steps."""

    def __init__(self) -> None:
        self._consumed: Token = {}
        self._looks: list[Pending] = []
        self._open: deque[list[Pending]] = deque(maxlen=8)
        self._row = 0
        self._told = False

    def consumed(self, token: Token) -> None:
        """The optimizer has just used these gradients."""
        self._consumed, self._looks = token, []

    def cleared(self) -> None:
        """What was consumed is gone, or zero."""
        self._consumed, self._looks = {}, []

    def backward_begins(self, fetch: Fetch) -> None:
        """New gradients are about to be added: is what was consumed still there?"""
        if not self._consumed or len(self._looks) >= _MOST:
            return
        gradients = []
        for parameter, consumed, version in self._consumed.values():
            gradient = parameter.grad
            touched = not self._looks and gradient is not None and gradient._version != version
            if gradient is None or gradient is not consumed() or touched:
                self.cleared()
                return
            gradients.append(gradient)
        look = _something(gradients)
        found = fetch(look) if look is not None else None
        if found is None or (found.at_hand and not bool(found.peek())):
            self.cleared()  # zeroed by a way that leaves no trace, or not to be told
            return
        self._looks.append(found)

    def taken(self) -> int | None:
        """The next gradients are complete.

        Returns:
            Steps in a row that began with consumed gradients, when it becomes enough of them to
            be told; 0 when that is over; else None.
        """
        self._open.append(self._looks)
        self.cleared()
        while self._open and all(look.ready for look in self._open[0]):
            looks = self._open.popleft()
            kept = bool(looks) and all(bool(look.take()) for look in looks)
            self._row = self._row + 1 if kept else 0
        if self._row >= IN_A_ROW if not self._told else self._row == 0:
            self._told = not self._told
            return self._row
        return None


def _something(gradients: list[Tensor]) -> Tensor | None:
    """[1] bool on a device: whether any of the smallest gradients has a value; None without one."""
    dense = [g for g in map(local, gradients) if g is not None and 0 < g.numel() <= _LARGEST]
    few = sorted(dense, key=Tensor.numel)[:_FEW]
    if not few:
        return None
    device = few[0].device
    counts = [torch.count_nonzero(g) for g in few if g.device == device]
    return (torch.stack(counts).sum() > 0).reshape(1)
