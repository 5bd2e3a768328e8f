"""Windows over which a budget's burn is watched, and the factors at which somebody is told.

A burn rate is a share of bad events over the share that the target allows: at 1 the budget of a
period is gone exactly at its end. Long and short window must both be over: the long one says that
it matters, the short one that it goes on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Urgency = Literal["page", "ticket"]

MINUTE, HOUR, DAY = 60, 3600, 86_400
_UNITS = {"s": 1, "m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}
_DURATION = re.compile(r"([1-9]\d{0,6})([smhdw])\Z")
_OVERRIDE = re.compile(r"(page|ticket) (\S+)/(\S+) x(\d+(?:\.\d+)?)\Z")


@dataclass(frozen=True, slots=True)
class Pair:
    """A long and a short window in seconds, and the burn rate over which both must be."""

    urgency: Urgency
    long_s: int
    short_s: int
    factor: float


# Share of the period's budget that is gone when the alert fires, as the workbook has it:
# "The Site Reliability Workbook", chapter 5, table 5-8 (2 % in 1 h, 5 % in 6 h, 10 % in 3 d).
# The pair of 1 d and 2 h stands in its predecessor list (table 5-6) and in Sloth's windows.
_WORKBOOK: tuple[tuple[Urgency, int, int, float], ...] = (
    ("page", HOUR, 5 * MINUTE, 0.02),
    ("page", 6 * HOUR, 30 * MINUTE, 0.05),
    ("ticket", DAY, 2 * HOUR, 0.10),
    ("ticket", 3 * DAY, 6 * HOUR, 0.10),
)
_TRAINING = (
    Pair("page", HOUR, 5 * MINUTE, 4.0),
    Pair("ticket", DAY, 2 * HOUR, 2.0),
)


def workbook(days: float) -> tuple[Pair, ...]:
    """The pairs of the SRE workbook for a period of so many days."""
    return tuple(
        Pair(urgency, long_s, short_s, round(share * days * DAY / long_s, 6))
        for urgency, long_s, short_s, share in _WORKBOOK
    )


def preset(name: str, days: float) -> tuple[Pair, ...] | None:
    """The pairs of that name; None where there is no such preset.

    ``workbook`` is the default. ``training`` is what teams that train for days use: 4 times the
    allowed rate over the short window of an hour pages, 2 times over the long one of a day is a
    ticket.
    """
    if name == "workbook":
        return workbook(days)
    return _TRAINING if name == "training" else None


def override(text: str) -> tuple[Pair, ...]:
    """Pairs as an annotation gives them: ``page 1h/5m x14.4, ticket 3d/6h x1``.

    Raises:
        ValueError: the text says what is wrong with it.
    """
    pairs = []
    for part in map(str.strip, text.split(",")):
        found = _OVERRIDE.match(part)
        if found is None:
            raise ValueError(f"{part!r}; write for example: page 1h/5m x14.4, ticket 3d/6h x1")
        urgency: Urgency = "page" if found[1] == "page" else "ticket"
        pair = Pair(urgency, seconds(found[2]), seconds(found[3]), float(found[4]))
        if pair.short_s >= pair.long_s or pair.factor <= 0:
            raise ValueError(f"{part!r}; the long window stands first, and the factor is above 0")
        pairs.append(pair)
    return tuple(pairs)


def seconds(text: str) -> int:
    """A duration such as 5m, 6h, 30d or 4w in seconds.

    Raises:
        ValueError: it is none.
    """
    found = _DURATION.match(text)
    if found is None:
        raise ValueError(f"{text!r} is no duration; write for example 5m, 6h or 30d")
    return int(found[1]) * _UNITS[found[2]]


def words(duration_s: int) -> str:
    """Seconds as Prometheus writes a duration, in the largest unit that is whole."""
    for unit in ("d", "h", "m"):
        if duration_s % _UNITS[unit] == 0:
            return f"{duration_s // _UNITS[unit]}{unit}"
    return f"{duration_s}s"


def all_windows(pairs: Sequence[Pair]) -> tuple[int, ...]:
    """Every window of the pairs in seconds, shortest first."""
    return tuple(sorted({w for pair in pairs for w in (pair.short_s, pair.long_s)}))
