"""What is left of a budget, how fast it goes, and the sentence that says so. Pure arithmetic.

Over a period, budget left = 1 - (bad / total) / (1 - target); burn over a window = (bad / total)
/ (1 - target). Both as in "The Site Reliability Workbook", chapter 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gradwarden_server.slo.objective import Objective
from gradwarden_server.slo.windows import DAY, HOUR, MINUTE, Pair

Word = Literal["Critical", "Recovering", "Increasing", "Acceptable"]


@dataclass(frozen=True, slots=True)
class Events:
    """How many things happened in a window, and how many of them were bad."""

    bad: float
    total: float

    @property
    def ratio(self) -> float | None:
        """The share that was bad; None where nothing happened."""
        return self.bad / self.total if self.total > 0 else None


@dataclass(frozen=True, slots=True)
class Burn:
    """One pair of windows: burn rates over both (None: nothing happened), and their limit."""

    pair: Pair
    long: float | None
    short: float | None
    enough: bool

    @property
    def word(self) -> Word:
        """Both over: Critical; only the long: Recovering; only the short: Increasing."""
        over = tuple(
            rate is not None and rate > self.pair.factor for rate in (self.long, self.short)
        )
        words: Mapping[tuple[bool, ...], Word] = {
            (True, True): "Critical",
            (True, False): "Recovering",
            (False, True): "Increasing",
        }
        return words.get(over, "Acceptable") if self.enough else "Acceptable"


def told_left(left: float) -> str:
    """What is left in words; of a budget that is gone, how often it was spent."""
    if left >= 0:
        return f"{left * 100:.0f} %"
    return f"gone, spent {1 - left:.3g} times"


@dataclass(frozen=True, slots=True)
class Budget:
    """An objective as it stands; ``current`` and ``left`` are None with too little data."""

    current: float | None
    left: float | None
    events: Events
    needed: float
    burn: tuple[Burn, ...]
    sentence: str

    @property
    def enough(self) -> bool:
        """Whether there is enough data to speak of shares."""
        return self.left is not None


def burn_rate(objective: Objective, events: Events | None) -> float | None:
    """How many times as fast as allowed the budget goes."""
    ratio = None if events is None else events.ratio
    return None if ratio is None else ratio / objective.allowed


def of(
    objective: Objective, period: Events, windows: Mapping[int, Events], unit: str | None = None
) -> Budget:
    """The budget of an objective.

    Args:
        objective: What is promised.
        period: What happened in its period; with a count, among the last so many.
        windows: What happened in each of its windows, by seconds.
        unit: What an event is called; the objective's own word where not given.
    """
    burn = tuple(
        Burn(
            pair,
            burn_rate(objective, windows.get(pair.long_s)),
            burn_rate(objective, windows.get(pair.short_s)),
            _total(windows.get(pair.long_s)) >= objective.min_events
            and period.total >= objective.least,
        )
        for pair in objective.pairs
    )
    called = unit or objective.unit
    if objective.count is not None:
        return _counted(objective, period, called)
    needed = objective.min_events
    ratio = period.ratio
    if ratio is None or period.total < needed:
        sentence = f"needs {needed:,.0f} {called}, has {period.total:,.0f}"
        return Budget(None, None, period, needed, burn, sentence)
    left = 1 - ratio / objective.allowed
    return Budget(1 - ratio, left, period, needed, burn, _sentence(objective, left, burn))


def _counted(objective: Objective, last: Events, unit: str) -> Budget:
    count = objective.count
    assert count is not None
    if last.total <= 0:
        return Budget(None, None, last, 1, (), f"no {unit} yet")
    left = 1 - last.bad / count.bad if count.bad else 0.0 - last.bad
    sentence = f"{last.bad:,.0f} bad of the last {last.total:,.0f} {unit}, {count.bad} allowed"
    if last.total < count.of:
        sentence += f" of {count.of}"
    return Budget(1 - last.bad / last.total, left, last, 1, (), f"{sentence}.")


def _sentence(objective: Objective, left: float, burn: Sequence[Burn]) -> str:
    days = objective.period.days
    rates = [b.long for b in sorted(burn, key=lambda b: b.pair.long_s) if b.long is not None]
    name = f"{days:g}-day budget"
    if left <= 0:
        return f"The {name} is gone."
    if not rates or rates[0] <= 0:
        return f"Nothing of the {name} is being spent."
    gone_s = left * days * DAY / rates[0]
    if rates[0] <= 1 and gone_s >= days * DAY:
        return f"At this rate the {name} lasts."
    return f"At this rate the {name} is gone in {_span(gone_s)}."


def _span(seconds: float) -> str:
    for size, name in ((DAY, "days"), (HOUR, "hours"), (MINUTE, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return "a minute"


def _total(events: Events | None) -> float:
    return 0.0 if events is None else events.total
