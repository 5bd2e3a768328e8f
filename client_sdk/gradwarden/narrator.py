"""What the training loop says by itself: numbers, marks, phases, its own count of steps."""

from __future__ import annotations

import math
import time
from typing import Any

from torch import Tensor

from gradwarden.collect import Collector
from gradwarden.errors import Faults
from gradwarden.frames import FrameBook
from gradwarden.instruments.anatomy import Anatomy

_MOST_NAMES = 200


class Narrator:
    """Writes what the loop says into the book. A wrong value is counted and said, not raised."""

    def __init__(self, book: FrameBook, faults: Faults) -> None:
        self._book, self._faults = book, faults
        self.collector = Collector(256)
        self.anatomy: Anatomy | None = None
        """Is told of phases, once there is one."""
        self._names: set[str] = set()
        self.phase: str | None = None
        """The phase that the loop is in by its own word."""

    def log(self, scalars: dict[str, Any]) -> None:
        for name, value in scalars.items():
            if name not in self._names:
                if len(self._names) >= _MOST_NAMES or not 0 < len(name) <= 128 or "\0" in name:
                    self._faults.record(f"log({name[:40]})", ValueError("too many names"), False)
                    continue
                self._names.add(name)
            if isinstance(value, Tensor):
                self._log_tensor(name, value)
                continue
            try:
                number = float(value)
            except (TypeError, ValueError, OverflowError) as error:
                self._faults.record(f"log({name})", error, False)
                continue
            self._book.scalar(name, number)

    def _log_tensor(self, name: str, value: Tensor) -> None:
        value = getattr(value.detach(), "_local_tensor", value.detach())
        if value.numel() != 1 or value.is_complex() or value.is_meta:
            self._faults.record(f"log({name})", ValueError("expected one real number"), False)
        elif value.device.type == "cpu":
            self._book.scalar(name, float(value))
        else:
            pending = self.collector.fetch(value.reshape(1).float())
            if pending is not None:
                self._book.scalar(name, pending)

    def mark(self, name: str, value: object) -> None:
        self._book.event({"kind": "mark", "name": str(name)[:256], "value": _plain(value)})

    def enter_phase(self, name: str) -> tuple[str | None, float]:
        before, self.phase = self.phase, str(name)[:256]
        if self.anatomy is not None:
            self.anatomy.enter(self.phase)
        return before, time.perf_counter()

    def leave_phase(self, name: str, before: tuple[str | None, float] | None) -> None:
        if before is None:
            return
        self.phase = before[0]
        if self.anatomy is not None:
            self.anatomy.leave(str(name)[:256])
        if name == "checkpoint":
            return  # it has an event of its own
        seconds = time.perf_counter() - before[1]
        event = {"kind": "phase", "name": str(name)[:256], "seconds": seconds}
        self._book.event(event, urgent=False)

    def step(self, number: int) -> None:
        try:
            number = int(number)
            if number < 0:
                raise ValueError(f"a step is at least 0, got {number}")
        except (TypeError, ValueError, OverflowError) as error:
            self._faults.record("step(number)", error, False)
            return
        self._book.step(number)


def _plain(value: object) -> Any:
    """What JSON can hold of a value, else its text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value[:1000] if isinstance(value, str) else value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)[:1000]
