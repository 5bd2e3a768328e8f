"""The guard: opt-in action on what the SDK sees by itself, the same on all ranks at once.

``Guard`` is what a person chooses. ``Keeper`` carries it out; a session makes one, tells it
of each optimizer's step, and asks nothing of it that could wait:

    keeper = Keeper(guard, model, optimizers, faults, report, rewound, ledger)
    keeper.bind()                            # in watch(): raises ConfigurationError, collective
    keeper.before_step(optimizer, step, bad) # gradients are there; False: they are held back
    keeper.after_step(optimizer)             # the optimizer is done; they are put back
    keeper.step_ended(step)                  # the boundary at which all ranks act
    keeper.raise_if_halted()                 # outside everything that swallows exceptions
    keeper.request_halt(reason)              # any thread
"""

from __future__ import annotations

from gradwarden.guard.checkpoints import Ledger, Saved
from gradwarden.guard.keeper import Keeper
from gradwarden.guard.options import Guard, Halted
from gradwarden.guard.snapshot import Snapshot

__all__ = ["Guard", "Halted", "Keeper", "Ledger", "Saved", "Snapshot"]
