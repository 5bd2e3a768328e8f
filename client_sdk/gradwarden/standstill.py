"""Where the training thread is while no step ends: said by a thread beside it.

After a while without a step, and again whenever that time has doubled, an event tells the
training thread's stack and the collective that it is in. Two stacks that are equal are a hang.
Nothing of the training is touched: the interpreter keeps every thread's frames at hand.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

FIRST = 120.0
"""Seconds without a step before the first look."""
MOST_LOOKS = 6
"""Of one standstill: the last comes after about an hour."""
_DEPTH = 32
_COLLECTIVES = "distributed_c10d.py"


class Standstill:
    """``look`` is cheap enough to be asked all the time."""

    def __init__(
        self,
        step: Callable[[], int],
        thread: Callable[[], int],
        phase: Callable[[], str | None],
        collective: Callable[[], str],
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        """``thread`` is the training's; ``collective`` says what it waits for, if that is known."""
        self._step, self._thread, self._phase = step, thread, phase
        self._collective, self._report = collective, report
        self._at: int | None = None
        self._since = self._due = 0.0
        self._looks = 0

    def look(self, now: float) -> None:
        """Report if it is time; ``now`` is of the monotonic clock, in seconds."""
        step = self._step()
        if step != self._at:
            self._at, self._since, self._due, self._looks = step, now, now + FIRST, 0
            return
        if now < self._due or self._looks >= MOST_LOOKS:
            return
        self._looks += 1
        standing = now - self._since
        self._due = now + standing
        stack, called = _stack(sys._current_frames().get(self._thread()))
        self._report(
            {
                "kind": "stack",
                "seconds": round(standing, 1),
                "phase": self._phase() or "",
                "collective": self._collective() or called,
                "stack": stack,
            }
        )

    def chore(self) -> None:
        """:meth:`look` by the clock."""
        self.look(time.monotonic())


def _stack(frame: FrameType | None) -> tuple[list[str], str]:
    """``file:line function`` of each frame, the innermost last, and the collective among them."""
    found: list[str] = []
    collective = ""
    while frame is not None:
        code = frame.f_code
        if code.co_filename.endswith(_COLLECTIVES):
            collective = code.co_name  # the outermost of them is what was called
        if len(found) < _DEPTH:
            found.append(f"{code.co_filename}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return found[::-1], collective
