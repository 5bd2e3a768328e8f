"""Which ranks drifted from their replicas, read back from the words of alerts."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gradwarden_server.model import Alert

DRIFTS = ("ReplicaMismatch", "NeverSynchronized")
_SPAN = re.compile(r"(\d+) to (\d+)\Z")
_LIST = re.compile(r"\d+(, \d+)*")


def ranks_named(said: str) -> Iterable[int]:
    """The ranks in an alert's ``rank``: ``2``, ``0, 1``, ``0 to 7``.

    Words behind them are left out: ``0, 1: 2 replicas have no majority``, ``0, 1 and 3 more``.
    """
    if span := _SPAN.match(said):
        return range(int(span[1]), int(span[2]) + 1)
    some = _LIST.match(said)
    return [int(rank) for rank in some[0].split(", ")] if some else ()


def drifted(alerts: Iterable[Alert], newest: int) -> dict[int, int]:
    """The ranks whose replica differs, and from which step.

    An alert that is over counts only where it was raised in the ``newest`` attempt: an older
    life's replicas are gone.
    """
    found: dict[int, int] = {}
    for alert in alerts:
        words = alert.annotations
        if alert.state == "resolved" and words.get("attempt") != str(newest):
            continue
        if (step := words.get("step", "")).isdecimal():
            for rank in ranks_named(words.get("rank", "")):
                found[rank] = min(int(step), found.get(rank, int(step)))
    return found
