"""What the instruments of the SDK tell in events, rank by rank, and whether they are at work."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gradwarden import wire
from gradwarden_server.detect.base import Coverage
from gradwarden_server.detect.steps import Step


class Told:
    """The newest event of one kind by rank and by whatever it is about, of this attempt."""

    def __init__(self, kind: str, instrument: str) -> None:
        self._kind, self._instrument = kind, instrument
        self.status: str | None = None
        """``on``, why not, or None before the attempt's start is heard."""
        self._held: dict[tuple[int, str], tuple[int, wire.Event]] = {}

    def begin(self) -> None:
        """A new attempt: nothing of it is told yet."""
        self.status, self._held = None, {}

    def hear(self, step: Step) -> bool:
        """Take a step's events; whether any was of this kind."""
        fresh = False
        for rank, event in step.events:
            kind = event.get("kind")
            if kind == "start":
                instruments = event.get("instruments")
                known = instruments if isinstance(instruments, Mapping) else {}
                self.status = str(known.get(self._instrument, "off: not in this version"))
            elif kind == self._kind:
                self._held[rank, str(event.get("number", ""))] = step.step, event
                fresh = True
        return fresh

    def __iter__(self) -> Iterator[tuple[int, int, wire.Event]]:
        """Rank, step and event."""
        return ((rank, at, event) for (rank, _), (at, event) in self._held.items())

    @property
    def any(self) -> bool:
        """Whether anything was told."""
        return bool(self._held)

    def coverage(self, alert: str) -> Coverage:
        """Armed where the instrument is on."""
        if self.status is None:
            return Coverage(alert, "waiting", "the run's start was not heard")
        if self.status.startswith("on"):
            return Coverage(alert, "armed")
        why = self.status.removeprefix("off: ")
        return Coverage(alert, "blind", f"{why}: pip install --upgrade gradwarden, or torch")

    def state(self) -> dict[str, Any]:
        held = [[*key, at, dict(event)] for key, (at, event) in self._held.items()]
        return {"status": self.status, "held": held}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.status = state["status"]
        self._held = {(h[0], h[1]): (h[2], h[3]) for h in state["held"]}


def names(events: Sequence[wire.Event], field: str) -> list[str]:
    """All names that events give in a list, each once."""
    listed = (event.get(field) for event in events)
    return list(dict.fromkeys(str(n) for held in listed if isinstance(held, list) for n in held))


def number(event: wire.Event, field: str) -> int:
    """A count that an event gives; 0 where it gives none."""
    value = event.get(field)
    return int(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0


def few(listed: Sequence[str], most: int = 3) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
