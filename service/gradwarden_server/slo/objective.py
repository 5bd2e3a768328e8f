"""One objective as the rest of the house knows it, whatever file format it came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from gradwarden_server.slo.windows import DAY, Pair

Budgeting = Literal["occurrences", "timeslices", "ratio_timeslices"]
WINDOW = "{{.window}}"
"""What a query has in place of its window, as in Sloth's files."""


@dataclass(frozen=True, slots=True)
class Period:
    """What a budget is for: the last so many days, or a calendar month, quarter, week or day.

    ``days`` of a calendar period are those that its pairs and its shares are computed with.
    """

    kind: Literal["rolling", "calendar"]
    days: float
    unit: Literal["", "d", "w", "M", "Q", "Y"] = ""
    zone: str = "UTC"

    def since(self, now_s: float) -> float:
        """When the present period began, in seconds since the epoch."""
        if self.kind == "rolling":
            return now_s - self.days * DAY
        now = datetime.fromtimestamp(now_s, ZoneInfo(self.zone))
        day = now.replace(hour=0, minute=0, second=0, microsecond=0)
        match self.unit:
            case "w":
                begin = day - timedelta(days=day.weekday())
            case "M":
                begin = day.replace(day=1)
            case "Q":
                begin = day.replace(day=1, month=(day.month - 1) // 3 * 3 + 1)
            case "Y":
                begin = day.replace(day=1, month=1)
            case _:
                begin = day
        return begin.timestamp()


@dataclass(frozen=True, slots=True)
class Count:
    """A budget of things that happen a few times a day: at most ``bad`` of the last ``of``."""

    bad: int
    of: int


@dataclass(frozen=True, slots=True)
class Objective:
    """What is promised of whom.

    ``good`` or ``bad`` and ``total`` are PromQL with ``WINDOW`` in it; the other is empty. With a
    ``count`` they are vectors of one element for each thing: ``total`` holds when it was, ``bad``
    those of them that were bad.

    Attributes:
        target: Share of good events, between 0 and 1.
        slice_s: Length of a time slice in seconds; 0 where events are counted.
        slice_target: Share of good events above which a slice is good.
        min_events: Events in the long window below which nobody is told of a burn.
        min_budget: Bad events that the budget of the period must allow so far before anybody is
            told of a burn: of a budget of next to nothing, one sick run spends all.
        page_environment: Where its pages are pages; elsewhere they are tickets. Empty: everywhere.
        interval_s: How often its short windows are looked at.
        on: False for an example that somebody has yet to switch on.
    """

    id: str
    name: str
    service: str
    description: str
    target: float
    period: Period
    total: str
    good: str = ""
    bad: str = ""
    budgeting: Budgeting = "occurrences"
    slice_s: int = 0
    slice_target: float = 0.0
    pairs: tuple[Pair, ...] = ()
    min_events: float = 0.0
    min_budget: float = 0.0
    count: Count | None = None
    unit: str = "events"
    page_environment: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    interval_s: int = 60
    on: bool = True
    file: str = ""

    @property
    def allowed(self) -> float:
        """Share of bad events that the target allows."""
        return round(1 - self.target, 12)

    @property
    def least(self) -> float:
        """Events in the period below which nobody is told of a burn."""
        return round(self.min_budget / self.allowed, 6)
