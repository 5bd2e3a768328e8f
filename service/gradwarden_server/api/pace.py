"""Where frames come in crowds, trainers are asked for fuller batches.

A request costs the service more than the frames in it. A trainer that is alone sends four
times a second, so that its page is live; a thousand of them would keep the service busy with
requests. What is urgent never waits for its batch to be full.
"""

from __future__ import annotations

import time
from collections.abc import Callable

CROWD_PER_SECOND = 300.0
"""Requests a second, were no batch held back, from which on they are."""
FULL_SECONDS = 1.5
"""Detectors wait two seconds for the last rank of a step; nobody may come later for our sake."""
_ALONE_SECONDS = 0.25
_WINDOW_SECONDS = 2.0


class Pace:
    """Counts what comes, over the last whole window of two seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._count = 0.0
        self._rate = 0.0

    def batch_seconds(self, frames: int) -> float | None:
        """For how long the trainer that sent these frames should hold its next ones back.

        None where it may send as it likes.
        """
        # As many requests as it would have been from a trainer that is not asked to wait.
        self._count += min(frames, FULL_SECONDS / _ALONE_SECONDS)
        now = self._clock()
        if now - self._since >= _WINDOW_SECONDS:
            self._rate = self._count / (now - self._since)
            self._since, self._count = now, 0.0
        return FULL_SECONDS if self._rate > CROWD_PER_SECOND else None
