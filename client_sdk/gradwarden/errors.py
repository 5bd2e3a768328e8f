"""What may go wrong, and the promise that none of it reaches the training loop.

GradwardenError
└── ConfigurationError   a bad argument or variable; raised by ``watch`` only, never later
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class GradwardenError(Exception):
    """Base of every error that gradwarden raises."""


class ConfigurationError(GradwardenError, ValueError):
    """An argument or environment variable that cannot be used, with the remedy."""


def say(text: str) -> None:
    """One line on stderr; a host without a usable stderr is left in peace."""
    text = "".join(c if c.isprintable() else " " for c in text)  # it may quote a stranger
    try:
        print(f"gradwarden: {text}", file=sys.stderr, flush=True)
    except Exception:  # stderr may be closed or replaced by the host at any time
        return


class Faults:
    """Keeps our own exceptions away from the host: said once, feature off, counted."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._counts: Counter[str] = Counter()
        self._off: set[str] = set()

    @property
    def counts(self) -> dict[str, int]:
        """How often each feature was missed since it failed, its first failure included."""
        with self._lock:
            return dict(self._counts)

    def is_off(self, feature: str) -> bool:
        return feature in self._off

    def quiet(
        self, feature: str, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R | None:
        """Run ``work``; on its first exception turn the feature off. None stands for a miss."""
        if feature in self._off:
            with self._lock:
                self._counts[feature] += 1
            return None
        try:
            return work(*args, **kwargs)
        except Exception as error:
            self.record(feature, error)
            return None

    def record(self, feature: str, error: BaseException, fatal: bool = True) -> None:
        """Count a failure of ``feature`` and say it the first time; ``fatal`` turns it off."""
        with self._lock:
            self._counts[feature] += 1
            first = self._counts[feature] == 1
            if fatal:
                self._off.add(feature)
        if first:
            end = "it is off for the rest of this process" if fatal else "it goes on"
            say(f"{feature} failed ({type(error).__name__}: {error}); {end}, training is untouched")
