"""What is measured beside the gradients, each by an instrument that can be off by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from gradwarden.collect import Pending


class Instrument(Protocol):
    """Measures something of each step. What it raises turns it off and leaves training alone."""

    name: str

    def start(self) -> None:
        """Install what it listens to."""

    def step_ended(self) -> Mapping[str, float | Pending]:
        """Scalars of the step that the leading optimizer just ended, or skipped; never waits."""

    def stop(self) -> None:
        """Undo what ``start`` installed."""

    def status(self) -> str:
        """``on``, or why not: ``off: no process group``."""
