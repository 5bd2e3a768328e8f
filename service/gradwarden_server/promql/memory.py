"""A storage in memory, for tests of rules and of queries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from gradwarden_server.matchers import Matcher, all_match
from gradwarden_server.promql.storage import Block
from gradwarden_server.promql.vector import Key, Labels, key


class Memory:
    """Every sample that was loaded; the last one of a moment counts."""

    def __init__(self) -> None:
        self._series: dict[Key, dict[int, float]] = {}

    def add(self, labels: Labels, points: Iterable[tuple[int, float]]) -> None:
        """Add points of one series, by milliseconds."""
        self._series.setdefault(key(labels), {}).update(points)

    def clear(self) -> None:
        """Forget everything."""
        self._series.clear()

    def select(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[Block]:
        """Series that match; those with the same timestamps are one block."""
        blocks: dict[bytes, tuple[np.ndarray, list[Labels], list[list[float]]]] = {}
        for identity, points in self._series.items():
            labels = dict(identity)
            if not all_match(matchers, labels):
                continue
            times = np.array(sorted(t for t in points if start_ms < t <= end_ms), np.int64)
            held = blocks.setdefault(times.tobytes(), (times, [], []))
            held[1].append(labels)
            held[2].append([points[int(t)] for t in times])
        return [
            Block(labels, times, np.array(values, np.float64).reshape(len(labels), len(times)))
            for times, labels, values in blocks.values()
            if len(times)
        ]
