"""What the service may ask of a trainer; each order is idempotent and never raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradwarden.capture import Watcher
from gradwarden.errors import say
from gradwarden.pump import Pump


class Orders:
    """Carries out commands that came with an answer of the service."""

    def __init__(
        self, watcher: Watcher, pump: Pump, event: Callable[[dict[str, Any]], None]
    ) -> None:
        self._watcher, self._pump, self._event = watcher, pump, event

    def obey(self, kind: str, args: dict[str, Any]) -> None:
        """Do what is asked; a kind that this version does not know is left alone."""
        schedule = self._watcher.schedule
        if kind in ("pause", "resume"):
            schedule.paused = kind == "pause"
        elif kind == "speak":
            self._pump.speaking = bool(args.get("on", True))
        elif kind in ("capture", "checksums"):
            steps = args.get("steps")
            schedule.demand(steps if isinstance(steps, int) else 1, kind == "checksums")
        elif kind == "schedule":
            schedule.change(args.get("preset"), args.get("every"), args.get("early"))
        elif kind == "halt":
            self._halt(str(args.get("reason") or "the service asked for it")[:256])

    def _halt(self, reason: str) -> None:
        """Halts only where the run's guard allows it; else it is noted that nobody did."""
        keeper = self._watcher.keeper
        if keeper is not None:
            keeper.request_halt(reason)
            return
        self._event({"kind": "halt_refused", "reason": reason, "why": "the run has no guard"})
        say(f"a halt was asked for ({reason}), but this run has no gradwarden.Guard")
