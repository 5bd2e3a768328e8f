"""The engine: hears each step, says this rank's word, and acts with all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradwarden.errors import Faults
from gradwarden.guard.checkpoints import Ledger
from gradwarden.guard.options import Guard


class Keeper:
    """Carries out one Guard for one watched run. Only ``raise_if_halted`` raises, if chosen."""

    def __init__(
        self,
        guard: Guard,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        faults: Faults,
        report: Callable[[dict[str, Any]], None],
        rewound: Callable[[int], None],
        ledger: Ledger,
    ) -> None:
        """``report`` takes events; ``rewound(step)`` opens a new attempt after ``step``."""

    def bind(self) -> None:
        """Check the guard against model, optimizers and ranks; make the guard's process group.

        Every rank of the default process group must call it, as ``watch(guard=)`` does.

        Raises:
            ConfigurationError: the guard cannot do here what it is asked to, with the remedy.
        """
        raise NotImplementedError

    def before_step(
        self, optimizer: Optimizer, step: int, nonfinite: bool | Tensor | None = None
    ) -> bool:
        """Judge the gradients that ``optimizer`` is about to apply in ``step``.

        ``nonfinite``: the verdict on the host, or one float32 on the device (1.0: bad); None
        lets the guard look by itself. False means that the gradients are held back (hidden
        until :meth:`after_step`), so the optimizer does nothing: the step was skipped.
        A step with a closure is not announced here: its gradients do not exist yet, and the
        guard's own hook on the optimizer judges them when they do.
        """
        raise NotImplementedError

    def after_step(self, optimizer: Optimizer) -> bool:
        """Put held back gradients back; False if they were, so nothing was applied."""
        raise NotImplementedError

    def step_ended(self, step: int) -> None:
        """The boundary: all ranks act here on the word of two steps ago.

        Called once per step, right after the leading optimizer's step or its skip by a
        scaler. Checkpoints are saved and restored at this very place of the loop, so what the
        loop does between here and the next step (schedulers) follows a restore as it
        followed the save.
        """
        raise NotImplementedError

    def request_halt(self, reason: str) -> None:
        """Halt all ranks at a coming boundary; from any thread, at any moment."""
        raise NotImplementedError

    @property
    def should_stop(self) -> bool:
        """Whether the guard halted; the same answer on all ranks after the same step."""
        raise NotImplementedError

    def raise_if_halted(self) -> None:
        """Raise ``Halted`` once, if the guard halted and was told to raise."""

    def status(self) -> str:
        """``on``, or why not, for the start event."""
        raise NotImplementedError

    def forget(self) -> None:
        """In a forked child: never act again."""
