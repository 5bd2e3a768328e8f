"""One optimizer's gradients and whether they are new, known, replaced or written to again."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradwarden.kept import Kept
from gradwarden.layout import Rows
from gradwarden.part import Part
from gradwarden.unseen import Unseen

_SAMPLE = 16
"""Gradients of an optimizer that are looked at to tell a new backward pass from an old one."""


class Owner:
    """One optimizer that owns watched parameters, and the fate of its gradients."""

    def __init__(self, key: int, optimizer: Optimizer | None, rows: Rows) -> None:
        self.key = key
        self.optimizer = weakref.ref(optimizer) if optimizer is not None else None
        self.pending: Part | None = None
        self.exact = True
        self.closure = False
        self.scaling = False
        self.others = 0
        self.idle = 0
        """Captures of other optimizers since its own last one."""
        self.seen = False
        """Whether anything of it was captured yet."""
        self.dropped = False
        """Whether the gradients that are there now are what zeroing left of a skipped step."""
        self.unseen, self.kept = Unseen(), Kept()
        self.token: dict[int, tuple[Tensor, weakref.ref[Tensor], int]] = {}
        self.rows: list[tuple[int, Tensor]] = []
        self.assign(rows)

    def assign(self, rows: Rows) -> None:
        """Find the rows of the watched parameters that this optimizer holds now."""
        optimizer = self.optimizer() if self.optimizer is not None else None
        self.size = size_of(optimizer)
        if self.optimizer is None:
            ours = set(rows.row)
        elif optimizer is None:  # gone: what it held stays in its name until another takes it
            ours = {id(p) for _, p in self.rows}
        else:
            ours = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.rows = [(i, p) for i, p in enumerate(rows.parameters) if id(p) in ours]
        self.stride = max(1, len(self.rows) // _SAMPLE)
        self.numbers = frozenset(i for i, _ in self.rows)
        self.indices = tuple(i for i, _ in self.rows)
        self.parameters = [p for _, p in self.rows]
        self.elsewhere = rows.elsewhere
        described = ((rows.described[i], i, p) for i, p in self.rows if p.numel())
        self.unseen.assign(
            (d.name, p) for d, i, p in described if d.kind != "expert" and i not in rows.elsewhere
        )

    @property
    def label(self) -> str:
        """The optimizer's class, as it is called in events."""
        optimizer = self.optimizer() if self.optimizer is not None else None
        return type(optimizer).__name__ if optimizer is not None else "optimizer"

    @property
    def gone(self) -> bool:
        """Whether the optimizer was here once and is no more."""
        return self.optimizer is not None and self.optimizer() is None

    @property
    def bereft(self) -> bool:
        """Whether none of what it holds is watched, nor frozen: all of it was replaced."""
        optimizer = self.optimizer() if self.optimizer is not None else None
        if optimizer is None or self.rows:
            return False
        return any(p.requires_grad for g in optimizer.param_groups for p in g["params"])

    def succeed(self, optimizer: Optimizer, rows: Rows) -> None:
        """Another optimizer goes on in this one's place, with what is in progress."""
        self.optimizer = weakref.ref(optimizer)
        self.assign(rows)

    def gradients(self) -> list[tuple[int, Tensor]]:
        return [(i, p.grad) for i, p in self.rows if p.grad is not None]

    def remember(self) -> None:
        """From here on these gradients are known; anything else is new."""
        self.token = {
            i: (p, weakref.ref(p.grad), p.grad._version)
            for i, p in self.rows[:: self.stride]
            if p.grad is not None
        }

    def fresh(self) -> bool:
        """Whether some gradient was produced since :meth:`remember`."""
        for i, p in self.rows[:: self.stride]:
            if p.grad is not None:
                known = self.token.get(i)
                if known is None or known[1]() is not p.grad or known[2] != p.grad._version:
                    return True
        return False

    def replaced(self) -> bool:
        """Whether every known gradient gave way to a new tensor."""
        return all(p.grad is not ref() for p, ref, _ in self.token.values())

    def written(self) -> bool:
        """Whether every known gradient was written to since, though it is the same tensor.

        Never so while a clip whose own writes cannot be told apart has gone over them.
        """
        known = self.token.values()
        return self.exact and all(p.grad is not None and p.grad._version != v for p, _, v in known)

    def count(self, gradients: set[int]) -> int:
        """How many of the gradients with these ids belong to this optimizer's parameters."""
        return len(gradients.intersection([id(p.grad) for _, p in self.rows]))


def inner(optimizer: Any) -> Any:
    """The optimizer inside wrappers like Accelerate's, whose step the hooks see."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def size_of(optimizer: Optimizer | None) -> int:
    return sum(len(g["params"]) for g in optimizer.param_groups) if optimizer is not None else 0
