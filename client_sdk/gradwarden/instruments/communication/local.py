"""Whether this rank's own gradients were bad before they were summed with the others'.

On a host the flag of a bucket is read where it is made; on a device it is copied and read when
it has come, so that names of parameters arrive a few steps late there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradwarden import stats
from gradwarden.collect import Collector, Pending
from gradwarden.instruments.communication.passages import NOTHING

MOST_NAMES = 50
"""Parameters that one event names."""
TOLD_STEPS = 3
"""Bad steps in a row that are told by an event; the scalar goes on counting."""
_LATE_STEPS = 64
"""Steps whose flags may still be on their way from a device."""
Names = Callable[[], list[str]]


class Count(Pending):
    """How many of several flags are raised, once all have come."""

    __slots__ = ("_flags",)

    def __init__(self, flags: Sequence[Pending]) -> None:
        super().__init__(NOTHING)
        self._flags = flags

    @property
    def ready(self) -> bool:
        return all(flag.ready for flag in self._flags)

    @property
    def at_hand(self) -> bool:
        return False

    @property
    def count(self) -> float:
        """Only when ``ready``."""
        return float(sum(_raised(flag) for flag in self._flags))

    def peek(self) -> Tensor:
        """[1] float64; only when ``ready``."""
        return torch.tensor([self.count], dtype=torch.float64)

    def take(self) -> Tensor:
        """The same as :meth:`peek`; the slots are given back when nobody holds the flags."""
        return self.peek()


class LocalFlags:
    """One flag per bucket of the step in progress, and what is to be told of them."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._flags: list[tuple[int, Pending, Names]] = []
        self._late: deque[tuple[int, list[tuple[int, Pending, Names]]]] = deque(maxlen=_LATE_STEPS)
        self._row = 0
        self._missed = False

    def look(self, bucket: int, gradient: Tensor, names: Names) -> None:
        """Flag a bucket. ``names`` is asked only where it is bad, on a host at once.

        ``gradient`` is of any layout; what cannot be measured makes the step's count unknown.
        """
        values = stats.local(gradient)
        if values is None or (values.is_cuda and torch.cuda.is_current_stream_capturing()):
            self._missed = True
            return
        flag = self._collector.fetch(stats.nonfinite([values]))
        if flag is None:
            self._missed = True
            return
        if flag.at_hand and _raised(flag) and self._row < TOLD_STEPS:
            found = names()
            names = lambda: found  # noqa: E731 - the bucket is about to be overwritten
        self._flags.append((bucket, flag, names))

    def step_ended(self, step: int) -> tuple[float | Pending | None, list[dict[str, Any]]]:
        """How many buckets were bad, None where nobody knows, and events worth telling."""
        flags, self._flags = self._flags, []
        missed, self._missed = self._missed, False
        if flags:
            self._late.append((step, flags))
        events = []
        while self._late and all(flag.ready for _, flag, _ in self._late[0][1]):
            at, known = self._late.popleft()
            events += self._judge(at, known)
        if missed or not flags:
            return None, events
        count = Count([flag for _, flag, _ in flags])
        return count.count if count.ready else count, events

    def _judge(self, step: int, flags: list[tuple[int, Pending, Names]]) -> list[dict[str, Any]]:
        bad = [(bucket, names) for bucket, flag, names in flags if _raised(flag)]
        self._row = self._row + 1 if bad else 0
        if not 0 < self._row <= TOLD_STEPS:
            return []
        named = list(dict.fromkeys(name for _, names in bad for name in names()))
        return [
            {
                "kind": "local_nonfinite",
                "step": step,
                "buckets": [bucket for bucket, _ in bad][:MOST_NAMES],
                "parameters": named[:MOST_NAMES],
            }
        ]


def _raised(flag: Pending) -> bool:
    return flag.peek().item() > 0
