"""Trainable parameters that no gradient ever reached, counted in their own optimizer's steps.

A GAN's critic may step a hundred times before the generator does, and what no optimizer holds
is nobody's loss: so each optimizer counts for itself. Experts may idle and are left out. Once
all have had a gradient, which is nearly always after the first step, there is nothing to look at.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from gradwarden.tripwires import DECLARED_STEPS, UNSEEN_STEPS

MOMENTS = (UNSEEN_STEPS, DECLARED_STEPS)
"""Steps of an optimizer after which it is told what had no gradient."""
_EVERY = 10
"""Steps from one look to the next after the first moment."""
MOST_NAMES = 100
"""Names of one event."""

Named = tuple[str, Tensor]


class Unseen:
    """The parameters of one optimizer that had no gradient so far."""

    def __init__(self) -> None:
        self.steps = 0
        self._waiting: list[Named] = []
        self._known: set[int] = set()
        self._told: int | None = None

    def assign(self, parameters: Iterable[Named]) -> None:
        """What the optimizer holds now; if there is any that it did not hold, it counts anew."""
        held = list(parameters)
        waiting = {id(p) for _, p in self._waiting}
        new = {id(p) for _, p in held} - self._known
        self._known = {id(p) for _, p in held}
        self._waiting = [(n, p) for n, p in held if id(p) in new or id(p) in waiting]
        if new:
            self.steps, self._told = 0, None

    def took(self) -> list[str] | None:
        """Count a step whose gradients are there; the names, if there is something new to tell.

        That is at each of the :data:`MOMENTS`, and when one had its first gradient after it was
        told of. No names say that every parameter had one.
        """
        self.steps += 1
        early = self.steps <= MOMENTS[0]
        if self._waiting and (early or self.steps % _EVERY == 0):
            self._waiting = [(n, p) for n, p in self._waiting if p.grad is None]
        count = len(self._waiting)
        due = self.steps == MOMENTS[0] or (self.steps in MOMENTS and count > 0)
        if not due and (self._told is None or self._told == count):
            return None
        self._told = count
        return [name for name, _ in self._waiting]


def declared(model: nn.Module) -> bool:
    """Whether a DistributedDataParallel in or around the model expects unused parameters.

    Around it there is no way but to look at every object: asked only where some are unused.
    """
    wrapper: Any = getattr(
        sys.modules.get("torch.nn.parallel.distributed"), "DistributedDataParallel", None
    )
    if wrapper is None:
        return False
    inside = [m for m in model.modules() if isinstance(m, wrapper)]
    wrappers = inside or [
        found for found in gc.get_objects() if type(found) is wrapper and found.module is model
    ]
    return any(found.find_unused_parameters for found in wrappers)
