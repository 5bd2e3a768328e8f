"""A storage of loaded series, for scripts and tests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from gradwarden_server.matchers import Matcher, all_match
from gradwarden_server.promql.storage import Block
from gradwarden_server.promql.vector import Key, Labels, key
from tests.promql.script import Load


class Memory:
    """Every sample that was loaded; the last one of a moment counts."""

    def __init__(self) -> None:
        self._series: dict[Key, dict[int, float]] = {}

    def load(self, load: Load) -> None:
        """Add series."""
        for series in load.series:
            self.add(
                series.labels,
                [(i * load.step_ms, v) for i, v in enumerate(series.points) if v is not None],
            )

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


def close(a: float, b: float, tolerance: float = 1e-6) -> bool:
    """Equal but for rounding; NaN equals NaN."""
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    if a == b:
        return True
    if math.isinf(a) or math.isinf(b):
        return False
    return abs(a - b) <= tolerance * max(abs(a), abs(b), 1e-300)
