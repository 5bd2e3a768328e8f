"""What compaction speaks of: streams that are due, claims on their batches, and the backlog."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradwarden_server.store.shelves.shelf import Filed


@dataclass(frozen=True, slots=True)
class Due:
    """A stream with something to compact, and what its log holds."""

    stream_id: int
    run_id: int
    project: str
    run: str
    attempt: str
    rank: int
    frames: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A segment in the making, and the batches that it will stand for."""

    filed: Filed
    due: Due
    positions: Sequence[int]
    frames: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits beyond one segment's worth of each stream."""

    frames: int
    bytes: int
