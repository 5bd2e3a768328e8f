"""Times that come back every week by the clock on the wall of a time zone. Pure.

A window begins when that clock says so: through the year its UTC time moves with daylight saving.
It lasts for elapsed seconds. A beginning that the clock jumps over is taken as if it had not
jumped yet; of one that comes twice the first counts (PEP 495, ``fold=0``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

SECOND_NS = 1_000_000_000
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
LONGEST_SECONDS = 7 * 86_400
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Span = tuple[int, int]
"""From its first nanosecond to the one behind its last."""


@dataclass(frozen=True, slots=True)
class Weekly:
    """``days`` of the week (0 is Monday) at a time of day in a zone, for some seconds."""

    days: frozenset[int]
    at: time
    seconds: int
    zone: str

    def covering(self, moment_ns: int) -> Span | None:
        """The window that a moment lies in, the latest to begin; None where it lies in none."""
        spans = self._around(moment_ns, self.seconds)
        return max((s for s in spans if s[0] <= moment_ns < s[1]), default=None)

    def following(self, moment_ns: int) -> Span:
        """The first window that begins after a moment."""
        return min(s for s in self._around(moment_ns, 0) if s[0] > moment_ns)

    def _around(self, moment_ns: int, back_seconds: int) -> Iterator[Span]:
        """Windows that begin from ``back_seconds`` before a moment to a week and more after it."""
        zone = ZoneInfo(self.zone)
        local = (_EPOCH + timedelta(microseconds=moment_ns // 1000)).astimezone(zone)
        first = local.date() - timedelta(days=2 + back_seconds // 86_400)
        # A day can be skipped whole (Samoa, 2011), so more than one week is looked at.
        for ahead in range(back_seconds // 86_400 + 18):
            day = first + timedelta(days=ahead)
            if day.weekday() in self.days:
                begin = datetime.combine(day, self.at, tzinfo=zone)
                start_ns = (begin.astimezone(UTC) - _EPOCH) // timedelta(seconds=1) * SECOND_NS
                yield start_ns, start_ns + self.seconds * SECOND_NS

    def __str__(self) -> str:
        days = ",".join(DAYS[day] for day in sorted(self.days))
        return f"{days} {self.at:%H:%M} {self.zone}"
