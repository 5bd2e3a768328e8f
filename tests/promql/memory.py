"""What scripts load, and how close two numbers must be."""

from __future__ import annotations

import math

from gradwarden_server.promql import memory
from tests.promql.script import Load


class Memory(memory.Memory):
    """Takes what a script loads."""

    def load(self, load: Load) -> None:
        """Add series."""
        for series in load.series:
            self.add(
                series.labels,
                [(i * load.step_ms, v) for i, v in enumerate(series.points) if v is not None],
            )


def close(a: float, b: float, tolerance: float = 1e-6) -> bool:
    """Equal but for rounding; NaN equals NaN."""
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    if a == b:
        return True
    if math.isinf(a) or math.isinf(b):
        return False
    return abs(a - b) <= tolerance * max(abs(a), abs(b), 1e-300)
