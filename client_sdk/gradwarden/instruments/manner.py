"""How the loop trains, as far as it decides what numbers mean: in which type, and taking turns."""

from __future__ import annotations

from collections.abc import Mapping

from gradwarden.collect import Pending
from gradwarden.frames import FrameBook
from gradwarden.instruments.anatomy import Anatomy

EVERY = 50
"""Steps from one look to the next; the first two are looked at as well."""
TURNS = 3
"""Steps in which optimizers took turns before it is said that they do."""


class Manner:
    """Says under which type of autocast training forwards compute, and whether optimizers take
    turns with backward passes between them, as those of two networks that play a game do.

    The event is ``{"kind": "manner", "autocast": "float16", "alternating": False}``, told when it
    changes; a loop without either is never told of.
    """

    name = "manner"

    def __init__(self, anatomy: Anatomy, book: FrameBook) -> None:
        self._anatomy, self._book = anatomy, book
        self._steps = 0
        self._said = ("", False)

    def start(self) -> None:
        """Nothing to install: the anatomy of steps hears it."""

    def step_ended(self) -> Mapping[str, float | Pending]:
        """No scalars; an event when something changed, within 50 steps."""
        self._steps += 1
        if self._steps <= 2 or self._steps % EVERY == 0:
            found = (self._anatomy.autocast, self._anatomy.alternations >= TURNS)
            if found != self._said:
                self._said = found
                event = {"kind": "manner", "autocast": found[0], "alternating": found[1]}
                self._book.event(event, urgent=False)
        return {}

    def stop(self) -> None:
        """Nothing to undo."""

    def status(self) -> str:
        """Always ``on``."""
        return "on"
