"""Hears when a backward pass begins, to see whether consumed gradients were cleared before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from gradwarden.collect import Collector, Pending
from gradwarden.errors import Faults
from gradwarden.instruments import taps
from gradwarden.kept import Kept


class Zeroing:
    """Asks each optimizer's :class:`gradwarden.kept.Kept` at every backward pass.

    The event ``{"kind": "gradients_kept", "optimizer": "SGD", "number": 0, "steps": 3}`` comes
    of the step that is taken next, and one with no steps when they are cleared again.
    """

    name = "zeroing"

    def __init__(self, kept: Callable[[], Iterable[Kept]], faults: Faults) -> None:
        self._kept, self.faults = kept, faults
        self._collector = Collector(64)
        self._deaf = False

    def start(self) -> None:
        """Listen for backward passes."""
        taps.add(self)

    def step_ended(self) -> Mapping[str, float | Pending]:
        """No scalars."""
        return {}

    def stop(self) -> None:
        """Listen no more."""
        taps.remove(self)

    def status(self) -> str:
        """``on``, or that this torch does not tell of backward passes."""
        return "on" if "backward" in taps.found else "off: this torch tells of no backward pass"

    # -- the tap ---------------------------------------------------------------------------

    def enter(self, phase: str) -> None:
        """A backward pass begins, or what is no news here."""
        if phase == "backward" and not (self._deaf or self.faults.is_off(self.name)):
            self.faults.quiet(self.name, self._begins)

    def leave(self, phase: str) -> None:
        """No news."""

    def call_enters(self, module: Any) -> bool:
        """No news."""
        return False

    def call_leaves(self) -> None:
        """No news."""

    def forget(self) -> None:
        """In a forked child nothing is looked at."""
        self._deaf = True

    def _begins(self) -> None:
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():  # type: ignore[no-untyped-call]
            return
        with torch.no_grad():
            for kept in self._kept():
                kept.backward_begins(self._collector.fetch)


taps.spare(Zeroing, Kept)
