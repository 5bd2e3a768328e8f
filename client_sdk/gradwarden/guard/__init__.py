"""The guard: opt-in action on what the SDK sees by itself, the same on all ranks at once.

``Guard`` is what a person chooses. ``Keeper`` carries it out; it hears the optimizers by itself,
and a session makes one and tells it what it knows:

    keeper = Keeper(guard, model, optimizers, faults, report, rewound, ledger)
    keeper.bind()                            # in watch(): raises ConfigurationError, collective
    keeper.before_step(optimizer, step, bad) # gradients are there, and our verdict on them
    keeper.after_step(optimizer)             # False: they were held back, nothing was applied
    keeper.step_ended(step)                  # the number of the step that ends
    keeper.request_halt(reason)              # any thread
"""

from __future__ import annotations

from gradwarden.guard.checkpoints import Ledger, Saved
from gradwarden.guard.keeper import Keeper
from gradwarden.guard.options import Guard, Halted
from gradwarden.guard.snapshot import Snapshot

__all__ = ["Guard", "Halted", "Keeper", "Ledger", "Saved", "Snapshot"]
