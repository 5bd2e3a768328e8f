"""A segment as it is made: what will be stored of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradwarden_server.store.shelves.spine import Spine

Chunk = tuple[str, int, bytes]
Rollup = tuple[int, str, str, bytes]


@dataclass(frozen=True, slots=True)
class Built:
    """What a segment's rows will hold; ``samples`` counts measured values.

    Chunks are (quantity, block, body), roll-ups (width, quantity, aggregate, body).
    """

    spine: Spine
    body: bytes
    samples: int
    chunks: Sequence[Chunk]
    rollups: Sequence[Rollup]

    @property
    def bytes(self) -> int:
        """What all bodies weigh together."""
        bodies = [c[-1] for c in self.chunks] + [r[-1] for r in self.rollups]
        return len(self.body) + sum(map(len, bodies))
