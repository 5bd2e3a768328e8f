"""What was decoded lately, as long as it fits in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any


class Cache:
    """Least recently used first out; thread-safe. Values must not be changed."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.bytes = 0
        """About how much is held."""
        self._held: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any | None:
        """What was kept under this key, or None."""
        with self._lock:
            held = self._held.get(key)
            if held is None:
                return None
            self._held.move_to_end(key)
            return held[0]

    def keep(self, key: Hashable, value: Any, size: int) -> None:
        """Keep a value of about ``size`` bytes; what was not used for longest makes room."""
        with self._lock:
            if size > self._most_bytes:
                return
            _, before = self._held.pop(key, (None, 0))
            self._held[key] = value, size
            self.bytes += size - before
            while self.bytes > self._most_bytes:
                _, (_, freed) = self._held.popitem(last=False)
                self.bytes -= freed
