"""Runs that sent something not finite: they are judged before all others, each of them seldom."""

from __future__ import annotations

import threading
from collections.abc import Callable

SELDOM_NS = 10 * 1_000_000_000
"""A run that has just been let past the others waits its turn like them for so long."""
_MOST = 256
"""Where more hurry at once, to be first means nothing, and they all take their turn."""

Key = tuple[str, str]
"""A run by its project and identifier."""


class Hurry:
    """Who is to be let past; every method may be called from any thread."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: set[Key] = set()
        self._passed_ns: dict[Key, int] = {}
        self._news = threading.Event()

    def tell(self, project: str, run: str) -> bool:
        """A run sent something not finite; whether it is let past the others."""
        now_ns, key = self._clock(), (project, run)
        with self._lock:
            held = self._passed_ns.items()
            self._passed_ns = {k: at_ns for k, at_ns in held if now_ns - at_ns < SELDOM_NS}
            if key in self._passed_ns or len(self._passed_ns) >= _MOST:
                return False
            self._passed_ns[key] = now_ns
            self._waiting.add(key)
            self._news.set()
            return True

    @property
    def waiting(self) -> bool:
        """Whether anybody is to be let past."""
        return self._news.is_set()

    def take(self) -> dict[str, set[str]]:
        """Those that wait, by project; they no longer do."""
        with self._lock:
            taken, self._waiting = self._waiting, set()
            self._news.clear()
        found: dict[str, set[str]] = {}
        for project, run in taken:
            found.setdefault(project, set()).add(run)
        return found

    def wait(self, seconds: float) -> None:
        """Until somebody is to be let past, or so many seconds are over."""
        self._news.wait(seconds)
