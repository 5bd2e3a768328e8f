"""When a burn must be told, by arithmetic alone: nothing here reads the product.

Rates are those of "The Site Reliability Workbook", chapter 5, table 5-8, over what Prometheus's
``increase`` makes of counters as they arrive; see "increase()" and "rate()" in Prometheus's manual.
All rules are evaluated once a minute, right after the counters of that minute came.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

HOUR, DAY = 3600, 86_400
MONTH = 30 * DAY
WORKBOOK = (
    ("page", HOUR, 300, 14.4),
    ("page", 6 * HOUR, 1800, 6.0),
    ("ticket", DAY, 2 * HOUR, 3.0),
    ("ticket", 3 * DAY, 6 * HOUR, 1.0),
)
"""Who is told, long and short window in seconds, and over how many times the allowed share."""
_PERIOD_MINUTES = 4
"""How often the events of the whole period are summed up."""

Points = list[tuple[float, float]]
"""Seconds and values."""


def increase(points: Sequence[tuple[float, float]], at_s: float, window_s: float) -> float | None:
    """How much a counter grew in a window that leaves out its left edge; None with one point."""
    inside = [(t, v) for t, v in points if at_s - window_s < t <= at_s]
    if len(inside) < 2:
        return None
    (first_s, first), (last_s, last) = inside[0], inside[-1]
    grown, seen_s = last - first, last_s - first_s
    pause_s = seen_s / (len(inside) - 1)
    before_s, behind_s = first_s - (at_s - window_s), at_s - last_s
    # A series begins and ends half a pause around its points where more than one is missing, and
    # no counter was ever below zero.
    before_s = before_s if before_s < 1.1 * pause_s else pause_s / 2
    behind_s = behind_s if behind_s < 1.1 * pause_s else pause_s / 2
    if grown > 0:
        before_s = min(before_s, seen_s * first / grown)
    return grown * (seen_s + before_s + behind_s) / seen_s


class Forecast:
    """What must be told of one objective, minute by minute.

    Args:
        allowed: The share that may be bad.
        min_events: Events in the long window below which nothing is told.
        least: Events in the month below which nothing is told.
    """

    def __init__(self, allowed: float, min_events: float, least: float = 0) -> None:
        self._allowed = allowed
        self._min_events = min_events
        self._least = least
        self._counters: dict[str, dict[str, Points]] = defaultdict(lambda: defaultdict(list))
        self._tiles: list[tuple[float, float, float]] = []
        self._month = 0.0
        self._minutes = 0

    def recorded(self, at_s: float, bad: float, total: float) -> None:
        """What the five minutes up to a moment held, as it was recorded before."""
        self._tiles.append((at_s, bad, total))

    def point(self, kind: str, name: str, at_s: float, value: float) -> None:
        """A counter of ``bad``, ``good`` or ``total`` events stands so."""
        self._counters[kind][name].append((at_s, value))

    def count(self, kind: str, name: str, at_s: float, value: float) -> None:
        """As :meth:`point`; a new counter of the service tells of a second of zeros before."""
        if not self._counters[kind][name]:
            for n in range(20, 0, -1):
                self.point(kind, name, at_s - n / 20, 0.0)
        self.point(kind, name, at_s, value)

    def minute(self, at_s: float) -> set[str]:
        """Who is told now."""
        bad, total = self._counted(at_s, 300)
        if total is not None:
            self.recorded(at_s, bad, total)
        told = {
            urgency
            for urgency, long_s, short_s, factor in WORKBOOK
            if self._month >= self._least
            and self._over(at_s, long_s, factor, self._min_events)
            and self._over(at_s, short_s, factor, 0)
        }
        if self._minutes % _PERIOD_MINUTES == 0:
            self._month = self._within(at_s, MONTH)[1] or 0.0
        self._minutes += 1
        return told

    def month(self, at_s: float) -> float:
        """The share of the last thirty days' events that was bad, by what was recorded."""
        bad, total = self._within(at_s, MONTH)
        return bad / (total or 1.0)

    def _over(self, at_s: float, window_s: float, factor: float, least: float) -> bool:
        held = self._counted if window_s < 6 * HOUR else self._within
        bad, total = held(at_s, window_s)
        return bool(total) and bad / total > factor * self._allowed and total >= least

    def _counted(self, at_s: float, window_s: float) -> tuple[float, float | None]:
        """Bad and all events by the counters themselves."""
        total = self._sum("total", at_s, window_s)
        if "good" in self._counters:
            return (total or 0.0) - (self._sum("good", at_s, window_s) or 0.0), total
        return self._sum("bad", at_s, window_s) or 0.0, total

    def _sum(self, kind: str, at_s: float, window_s: float) -> float | None:
        grown = [increase(points, at_s, window_s) for points in self._counters[kind].values()]
        held = [one for one in grown if one is not None]
        return sum(held) if held else None

    def _within(self, at_s: float, window_s: float) -> tuple[float, float | None]:
        """Bad and all events by what was recorded each minute of the last five."""
        held = [(bad, total) for t, bad, total in self._tiles if at_s - window_s < t <= at_s]
        if not held:
            return 0.0, None
        return sum(bad for bad, _ in held) / 5, sum(total for _, total in held) / 5
