"""Whether much of what trains fell silent at once: then it is telemetry that is lost, not runs.

Pure. A run that nobody hears may have died. When many fall silent within a minute, the network or
a cluster is the cause, and one alert says so in place of one for each run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gradwarden_server.rules.spec import LossRule

SECOND_NS = 1_000_000_000
ALIVE_NS = 600 * SECOND_NS
"""A run that was heard so long before this service began to listen is waited for."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A run under way: when it was last heard, and whether it may page."""

    run: str
    last_ns: int
    pages: bool


@dataclass(frozen=True, slots=True)
class Loss:
    """Runs that nobody hears since about ``since_ns``, of ``known`` that were heard then."""

    since_ns: int
    runs: tuple[Heard, ...]
    known: int


def loss(
    rule: LossRule,
    heard: Iterable[Heard],
    since_ns: int | None,
    listening_ns: int,
    now_ns: int,
) -> Loss | None:
    """What is lost now; None where nothing is.

    Args:
        rule: How much, and how long.
        heard: The runs under way.
        since_ns: Since when telemetry is lost already, if it is.
        listening_ns: When this service began to listen: its own downtime is no evidence.
        now_ns: The moment.
    """
    quiet_ns = now_ns - round(rule.silent_seconds * SECOND_NS)
    first_ns = quiet_ns - round(rule.within_seconds * SECOND_NS)
    known, silent = [], []
    for run in heard:
        if run.last_ns < listening_ns - ALIVE_NS and (since_ns is None or run.last_ns < since_ns):
            continue
        last_ns = max(run.last_ns, listening_ns)
        if last_ns < first_ns and (since_ns is None or run.last_ns < since_ns):
            continue  # silent for long: that is a matter of its own
        known.append(run)
        if last_ns < quiet_ns:
            silent.append(run)
    if since_ns is not None and listening_ns >= quiet_ns:
        silent = known  # nobody had the time to call yet
    if len(silent) < rule.least_runs or len(silent) <= rule.share * len(known):
        return None
    began_ns = min(run.last_ns for run in silent) if since_ns is None else since_ns
    return Loss(began_ns, tuple(sorted(silent, key=lambda run: run.run)), len(known))


def named(runs: Sequence[Heard], most: int) -> str:
    """The runs by name, those behind the first few as a number."""
    names = ", ".join(run.run for run in runs[:most])
    return names if len(runs) <= most else f"{names} and {len(runs) - most} more"
