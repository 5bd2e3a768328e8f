"""How much of a run is watched, of what could be watched in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, Protocol

from gradwarden_server.diagnosis.words import Coverage, Excluded

ENOUGH = 0.8
"""Share of detectors that must be armed for a run to read as healthy without a word."""
HEALTHY = "healthy"
PARTLY = "healthy (partly watched)"

_CALL = re.compile(r"\w\(")
_IDLE = ("nothing to watch", "no clipping was seen", "for asynchronous training")
"""What detectors say that have a line of code to offer and nothing to look for without it."""


class Watch(Protocol):
    """Whether one alert watches a run."""

    @property
    def alert(self) -> str: ...
    @property
    def state(self) -> Literal["armed", "waiting", "blind"]: ...
    @property
    def detail(self) -> str: ...


def concerns(watch: Watch) -> bool:
    """Whether this kind of sickness could be watched for in this run.

    A detector that is blind names the line of code that would arm it; one that names none has
    nothing to look for here, as replicas where there is one rank, and so has one whose line
    is for another kind of training.
    """
    if watch.state != "blind":
        return True
    idle = any(words in watch.detail for words in _IDLE)
    return not idle and _CALL.search(watch.detail) is not None


def counted(watches: Sequence[Watch]) -> tuple[int, int]:
    """How many are armed, and of how many that concern the run."""
    of = [watch for watch in watches if concerns(watch)]
    return sum(watch.state == "armed" for watch in of), len(of)


def partly(armed: int, of: int) -> bool:
    """Whether so few are armed that silence proves little."""
    return of > 0 and armed < ENOUGH * of


def summary(watches: Sequence[Watch]) -> Coverage:
    """The counts, and what would arm the rest."""
    armed, of = counted(watches)
    gaps = [Excluded(w.alert, w.detail) for w in watches if concerns(w) and w.state != "armed"]
    return Coverage(armed, of, partly(armed, of), tuple(gaps))
