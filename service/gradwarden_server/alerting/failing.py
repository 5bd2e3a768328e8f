"""Runs whose evaluation raises: each is tried again after 1, 2, 4, ... seconds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from gradwarden_server.alerting.hurry import Key

SECOND_NS = 1_000_000_000
_MOST_DOUBLINGS = 10


@dataclass(slots=True)
class _Trouble:
    times: int = 0
    retry_ns: int = 0


class Failing:
    """Who failed, and when each is tried again."""

    def __init__(self) -> None:
        self._troubles: dict[Key, _Trouble] = {}

    def waits(self, key: Key, now_ns: int) -> bool:
        """Whether it is too early to try a run again."""
        trouble = self._troubles.get(key)
        return trouble is not None and now_ns < trouble.retry_ns

    def put_off(self, key: Key, now_ns: int, most_seconds: int) -> None:
        """It failed once more."""
        trouble = self._troubles.setdefault(key, _Trouble())
        trouble.retry_ns = now_ns + min(2**trouble.times, most_seconds) * SECOND_NS
        trouble.times = min(trouble.times + 1, _MOST_DOUBLINGS)

    def recovered(self, key: Key) -> None:
        """It was evaluated."""
        self._troubles.pop(key, None)

    def keep(self, keys: Collection[Key]) -> None:
        """Forget all others."""
        self._troubles = {key: held for key, held in self._troubles.items() if key in keys}
