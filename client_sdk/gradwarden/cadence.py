"""What happens once per step, when the leading optimizer stepped or skipped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from gradwarden.capture import Watcher
from gradwarden.collect import Pending
from gradwarden.errors import Faults
from gradwarden.frames import FrameBook
from gradwarden.guard import Keeper, Ledger
from gradwarden.instruments.panel import Panel
from gradwarden.part import Part
from gradwarden.throttle import Throttle


class Cadence:
    """Asks the instruments, weighs our cost, and lets the guard act at the step's boundary."""

    def __init__(
        self,
        watcher: Watcher,
        book: FrameBook,
        panel: Panel,
        faults: Faults,
        ledger: Ledger,
        event: Callable[[dict[str, Any]], None],
    ) -> None:
        self._watcher, self._book, self._faults, self._event = watcher, book, faults, event
        self._panel, self._ledger = panel, ledger
        self.throttle: Throttle | None = None
        """Set where this process decides how many steps are captured."""
        self.keeper: Keeper | None = None
        self._ended_at: float | None = None
        self._spent = 0.0
        watcher.ended = self._step_ended

    def apply(self, exponent: int) -> None:
        """Capture one of ``2 ** exponent`` steps of the schedule from here on."""
        self._watcher.schedule.exponent = exponent

    def _step_ended(self, part: Part) -> Mapping[str, float | Pending]:
        scalars = self._panel.step_ended()
        self._weigh(part.sees)
        if self.keeper is not None:  # it keeps the ledger by its own verdicts
            self._faults.quiet("guard", self.keeper.step_ended, self._book.step_now)
        else:
            self._ledger.step_ended(part.examine() is not False)
        return scalars

    def _weigh(self, captured: bool) -> None:
        now, spent = time.perf_counter(), self._watcher.spent
        before, self._ended_at = self._ended_at, now
        cost, self._spent = spent - self._spent, spent
        throttle = self.throttle
        if before is None or throttle is None or not throttle.step(now - before, cost, captured):
            return
        self.apply(throttle.exponent)
        self._event(
            {
                "kind": "throttle",
                "every": self._watcher.schedule.every,
                "stride": self._watcher.schedule.stride(self._book.step_now),
                "overhead_seconds": throttle.cost,
                "budget_seconds": throttle.budget,
            }
        )
