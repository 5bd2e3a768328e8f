"""How much a trainer may ask at once, so that one of them cannot starve the others."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gradwarden_server.api.access import Principal
from gradwarden_server.api.problems import Problem

_MOST_BUCKETS = 10_000


class Throttle:
    """A token bucket per caller, and a bound on requests in the house."""

    def __init__(self, rate_per_second: float, most_in_flight: int) -> None:
        self._rate = rate_per_second
        self._burst = max(1.0, rate_per_second)
        self._most = most_in_flight
        self._in_flight = 0
        self._buckets: dict[str, tuple[float, float]] = {}

    @contextmanager
    def slot(self, who: Principal) -> Iterator[None]:
        """Hold a place for the time of one request.

        Raises:
            Problem: rate-limited or unavailable, each with Retry-After.
        """
        caller = f"{who.actor} of project {who.project}"
        wait = self._take(caller, time.monotonic())
        if wait > 0:
            raise Problem(
                "rate-limited",
                f"{caller} makes more than {self._rate:g} requests a second; send larger batches",
                {"Retry-After": str(math.ceil(wait))},
            )
        if self._in_flight >= self._most:
            raise Problem(
                "unavailable",
                f"{self._most} requests are being served already; come back in a second",
                {"Retry-After": "1"},
            )
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def _take(self, caller: str, now: float) -> float:
        """Take one from the caller's bucket; else the seconds until there is one."""
        level, at = self._buckets.get(caller, (self._burst, now))
        level = min(self._burst, level + (now - at) * self._rate)
        if len(self._buckets) >= _MOST_BUCKETS and caller not in self._buckets:
            self._buckets.clear()
        if level < 1.0:
            self._buckets[caller] = (level, now)
            return (1.0 - level) / self._rate
        self._buckets[caller] = (level - 1.0, now)
        return 0.0
