"""How often alerts came, and what became of them: counts, ratios and times. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from gradwarden_server.api.alert_schemas import AlertStats, AlertStatsList, Spread
from gradwarden_server.model import Alert
from gradwarden_server.store.alerts.casebook import Outcome

FLAPS_NS = 3600 * 1_000_000_000
"""What fires again so soon after it was over flaps."""
_TOLD = ("page", "ticket")
_TIMED = 500


def tallied(
    days: float, outcomes: Sequence[Outcome], stepped_ns: Callable[[Alert], int | None]
) -> AlertStatsList:
    """The numbers of each alert, the noisiest first.

    Args:
        days: Over which they were gathered.
        outcomes: Incidents, oldest first.
        stepped_ns: When the first bad step of an alert was taken; asked of the newest only.
    """
    timed = {id(one) for one in outcomes[-_TIMED:]}
    by_name = sorted(outcomes, key=lambda one: one.alert.alertname)
    items = [
        _of(name, list(held), timed, stepped_ns)
        for name, held in groupby(by_name, key=lambda one: one.alert.alertname)
    ]
    items.sort(key=lambda s: (s.acted_on - s.told, -s.count, s.alertname))
    told, acted = sum(s.told for s in items), sum(s.acted_on for s in items)
    return AlertStatsList(
        days=days,
        count=len(outcomes),
        told=told,
        acted_on=acted,
        acted_ratio=acted / told if told else None,
        items=items,
    )


def _of(
    name: str,
    held: Sequence[Outcome],
    timed: set[int],
    stepped_ns: Callable[[Alert], int | None],
) -> AlertStats:
    told = [one for one in held if one.told and one.alert.severity in _TOLD]
    acted = sum(one.noted or one.alert.acked_ns is not None for one in told)
    detect, acknowledge, resolve = [], [], []
    for one in held:
        fired_ns = one.alert.fired_ns or 0
        began_ns = stepped_ns(one.alert) if id(one) in timed else None
        if began_ns is not None:
            detect.append(fired_ns - began_ns)
        if one.alert.acked_ns is not None:
            acknowledge.append(one.alert.acked_ns - fired_ns)
        if one.alert.resolved_ns is not None:
            resolve.append(one.alert.resolved_ns - fired_ns)
    return AlertStats(
        alertname=name,
        count=len(held),
        paged=sum(one.alert.severity == "page" for one in told),
        told=len(told),
        acted_on=acted,
        acted_ratio=acted / len(told) if told else None,
        flapping=_flaps(held),
        to_detect=_spread(detect),
        to_acknowledge=_spread(acknowledge),
        to_resolve=_spread(resolve),
    )


def _flaps(held: Iterable[Outcome]) -> int:
    """How often one identity fired again soon after its end; oldest first."""
    over: dict[str, int] = {}
    flaps = 0
    for one in held:
        key, fired_ns = one.alert.fingerprint, one.alert.fired_ns or 0
        ended_ns = over.get(key)
        flaps += ended_ns is not None and 0 <= fired_ns - ended_ns < FLAPS_NS
        if one.alert.resolved_ns is not None:
            over[key] = one.alert.resolved_ns
    return flaps


def _spread(times_ns: list[int]) -> Spread:
    """Nearest-rank percentiles; a clock that runs behind makes no time negative."""
    held = sorted(max(0, ns) / 1e9 for ns in times_ns)
    if not held:
        return Spread(of=0, median=None, p90=None)
    return Spread(of=len(held), median=_rank(held, 50), p90=_rank(held, 90))


def _rank(held: Sequence[float], percent: int) -> float:
    return held[max(0, -(-len(held) * percent // 100) - 1)]
