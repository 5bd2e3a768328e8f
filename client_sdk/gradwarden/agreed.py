"""A number that rank 0 chooses for all ranks, through the process group's store.

No collective and nobody waits: the other ranks look for it from their own thread.
"""

from __future__ import annotations

import time

from gradwarden.identity import place, store

EVERY = 5.0
"""Seconds from one look to the next."""


class Agreed:
    """How rarely steps are captured, as an exponent; ranks may differ for a few seconds."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._said: int | None = None
        self._looked = 0.0

    def exchange(self, own: int, now: float | None = None) -> int | None:
        """Tell ``own`` on rank 0; elsewhere answer what rank 0 told, None if nothing new."""
        now = time.monotonic() if now is None else now
        if now - self._looked < EVERY:
            return None
        self._looked = now
        here = place()
        common = store() if here.world > 1 and here.distributed else None
        if common is None:
            return None
        if here.rank == 0:
            if own != self._said and (own or self._said is not None):
                common.set(self._key, str(own))
                self._said = own
            return None
        if not common.check([self._key]):
            return None
        heard = int(common.get(self._key))
        changed, self._said = heard != self._said, heard
        return heard if changed else None
