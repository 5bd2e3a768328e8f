"""What a person chooses: ``Guard(...)``, refused at once where it could not work."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gradwarden.errors import ConfigurationError, GradwardenError

Path = str | os.PathLike[str]
Policy = Literal["skip_step", "halt", "rollback"]
POLICIES = ("skip_step", "halt", "rollback")
RETRIES = {"skip_step": 10, "rollback": 3}
"""How often each remedy is tried before the guard halts, unless told otherwise."""


class Halted(GradwardenError):
    """Raised at the end of a step by a guard with ``raise_on_halt=True``, and only then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Opt-in action on non-finite gradients, and leave for the server to request a halt.

    Decisions use what this process and its fellow ranks see, never the network. Every action
    is one line on stderr and one event of the run.

    Raises:
        ConfigurationError: a field is unusable; it names the field, its value and the remedy.
    """

    on_nonfinite: Policy | None = None
    """``skip_step`` holds the bad gradient back, ``halt`` sets ``monitor.should_stop``,
    ``rollback`` restores the last healthy checkpoint; None leaves only requested halts."""
    save: Callable[[int], Path] | None = None
    """Writes a checkpoint of the given step and answers its path, one of its own per rank."""
    restore: Callable[[Path], object] | None = None
    """Puts model, optimizer, scheduler, scaler and random state back from such a path."""
    checkpoint_every: int = 500
    """Steps from one ``save`` to the next, for ``rollback``."""
    healthy_after_steps: int = 200
    """Clean steps in a row that a checkpoint must have behind it before it counts as healthy."""
    keep: int = 3
    """Newest checkpoints to keep. Older ones of ``save`` are deleted, but never the last healthy
    one nor the next that may become so: at most two more."""
    retries: int | None = None
    """Skipped steps in a row (10), or rollbacks (3), after which the guard halts."""
    cooldown_steps: int = 1000
    """Clean steps after a rollback that let ``retries`` count from nothing again."""
    sync: bool = False
    """Declares that each step may wait for the device and for the other ranks: what lets
    ``skip_step`` work on a device without a fused optimizer, and under sharding."""
    timeout: float = 300.0
    """Seconds to wait for the slowest rank's word before the guard turns itself off."""
    raise_on_halt: bool = False
    """Raise :class:`Halted` at the end of the halting step, for loops that ask nothing."""

    def __post_init__(self) -> None:
        if self.on_nonfinite not in (None, *POLICIES):
            raise _refused(
                "on_nonfinite", self.on_nonfinite, f"choose one of {', '.join(POLICIES)} or None"
            )
        for name in ("save", "restore"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise _refused(name, value, "give a function, such as Snapshot(...)." + name)
            if value is None and self.on_nonfinite == "rollback":
                raise _refused(
                    name, value, f"rollback needs it: give {name}=Snapshot(...).{name} or your own"
                )
            if value is not None and self.on_nonfinite != "rollback":
                raise _refused(name, value, "only on_nonfinite='rollback' uses it: leave it out")
        for name, least in (
            ("checkpoint_every", 1),
            ("healthy_after_steps", 1),
            ("keep", 1),
            ("cooldown_steps", 1),
            ("retries", 0),
        ):
            value = getattr(self, name)
            if value is None and name == "retries":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise _refused(name, value, f"give a whole number of at least {least}")
        if not isinstance(self.timeout, (int, float)) or not 0 < self.timeout < float("inf"):
            raise _refused("timeout", self.timeout, "give seconds above 0")
        for name in ("sync", "raise_on_halt"):
            if not isinstance(getattr(self, name), bool):
                raise _refused(name, getattr(self, name), "give True or False")

    @property
    def most(self) -> int:
        """How often the remedy is tried before the guard halts."""
        if self.retries is not None:
            return self.retries
        return RETRIES.get(self.on_nonfinite or "", 0)


def _refused(field: str, value: object, remedy: str) -> ConfigurationError:
    return ConfigurationError(f"Guard({field}={value!r}): {remedy}")
