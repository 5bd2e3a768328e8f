"""``gradwarden`` as hasty as :mod:`tests.server.hasty`, and killed before its second seal."""

from __future__ import annotations

import itertools
import os
import signal
from functools import partial

from gradwarden_server import cli, house
from gradwarden_server.store.compacting.claims import Claim
from gradwarden_server.store.compacting.compaction import Compaction
from gradwarden_server.store.shelves.built import Built
from tests.server.hasty import FRAMES

SEAL = 2


class Deadly(Compaction):
    """The values are put and nobody knows of them yet."""

    _seals = itertools.count(1)

    def seal(self, claim: Claim, made: Built, weight: int) -> None:
        if next(self._seals) == SEAL:
            os.kill(os.getpid(), signal.SIGKILL)
        super().seal(claim, made, weight)


if __name__ == "__main__":
    house.Compaction = partial(Deadly, frames=FRAMES)  # type: ignore[assignment, misc]
    raise SystemExit(cli.main())
