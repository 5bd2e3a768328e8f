"""What one evaluation of a group reads: the project, and over it what the group just wrote."""

from __future__ import annotations

from collections.abc import Sequence

from gradwarden_server.matchers import Matcher
from gradwarden_server.promql.memory import Memory
from gradwarden_server.promql.storage import Block, Storage
from gradwarden_server.querying.storage import grouped


class Overlay:
    """A storage over which a memory lies; what several rules read is read once.

    Args:
        below: What was there before.
        above: What the rules write on their way; of one moment it is this that counts.
    """

    def __init__(self, below: Storage, above: Memory) -> None:
        self._below = below
        self._above = above
        self._read: dict[tuple[tuple[Matcher, ...], int, int], list[Block]] = {}

    def select(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[Block]:
        """Every series that all matchers match, with its samples in (start, end]."""
        asked = tuple(matchers), start_ms, end_ms
        blocks = self._read.get(asked)
        if blocks is None:
            blocks = self._read[asked] = list(self._below.select(*asked))
        fresh = self._above.select(matchers, start_ms, end_ms)
        return grouped([*blocks, *fresh]) if fresh else blocks
