"""What was found out lately: many people ask for the same, every few seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Lately:
    """Keeps answers for some seconds, at most so many; ``None`` is not kept."""

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds = seconds
        self._most = most
        self._held: dict[Hashable, tuple[float, Any]] = {}
        self._lock = threading.Lock()

    def of(self, key: Hashable, find: Callable[[], T]) -> T:
        """The answer that is kept under ``key``, else what ``find`` says."""
        now = time.monotonic()
        with self._lock:
            held = self._held.get(key)
        if held is not None and now - held[0] < self._seconds:
            answer: T = held[1]
            return answer
        answer = find()
        if answer is not None:
            with self._lock:
                self._held.pop(key, None)
                while len(self._held) >= self._most:
                    self._held.pop(next(iter(self._held)))
                self._held[key] = now, answer
        return answer
