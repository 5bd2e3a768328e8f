"""GPU-hours that came to nothing: GPUs x (stop or detection - first bad step) + steps redone. Pure.

Where two incidents of a run overlap, an hour is counted once: for the page before the ticket, and
for what began first. A page stands until the attempt stops, where it ends without success; whatever
else somebody was told of counts until it was found, since nobody knows what harm it did after.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

REDONE = "steps redone"
"""The cause of time that a later attempt spent on the same steps again, where nothing was told."""

_HOUR_NS = 3600 * 1_000_000_000
_STOPPED = ("failed", "cancelled", "preempted")


@dataclass(frozen=True, slots=True)
class Incident:
    """What was found in a run: since its first bad step, when, and until when it stood."""

    cause: str
    severity: Literal["page", "ticket"]
    begin_ns: int
    detected_ns: int
    resolved_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt; ``redone`` of its ``steps`` were taken again by a later one."""

    status: str
    started_ns: int
    ended_ns: int
    steps: int = 0
    redone: int = 0


@dataclass(frozen=True, slots=True)
class Training:
    """One run: who owns it, what it holds, and what happened to it."""

    run: str
    owner: str
    gpus: int
    attempts: Sequence[Attempt]
    incidents: Sequence[Incident]


@dataclass(frozen=True, slots=True)
class Waste:
    """What one cause cost in one run."""

    run: str
    owner: str
    cause: str
    gpu_hours: float


@dataclass(frozen=True, slots=True)
class _Stretch:
    rank: int
    begin_ns: int
    end_ns: int
    cause: str


def wasted(trainings: Iterable[Training], since_ns: int, until_ns: int) -> list[Waste]:
    """What was wasted within a time, by run and cause."""
    found = []
    for training in trainings:
        hours: dict[str, float] = {}
        for cause, length_ns in _pieces(list(_stretches(training)), since_ns, until_ns):
            spent = training.gpus * length_ns / _HOUR_NS
            hours[cause] = hours.get(cause, 0.0) + spent
        found += [Waste(training.run, training.owner, c, h) for c, h in hours.items()]
    return found


def held(training: Training, since_ns: int, until_ns: int) -> float:
    """GPU-hours that a run held within a time, well spent or not."""
    lengths = (
        max(0, min(a.ended_ns, until_ns) - max(a.started_ns, since_ns)) for a in training.attempts
    )
    return training.gpus * sum(lengths) / _HOUR_NS


def _stretches(training: Training) -> Iterator[_Stretch]:
    for incident in training.incidents:
        end_ns = incident.detected_ns
        inside = [a for a in training.attempts if a.started_ns <= incident.begin_ns <= a.ended_ns]
        if inside and incident.severity == "page":
            attempt = inside[-1]
            stood = incident.resolved_ns is None or incident.resolved_ns >= attempt.ended_ns
            if stood and attempt.status in _STOPPED:
                end_ns = attempt.ended_ns
        rank = 0 if incident.severity == "page" else 1
        yield _Stretch(rank, incident.begin_ns, end_ns, incident.cause)
    for attempt in training.attempts:
        if attempt.redone > 0 and attempt.steps > 0:
            share = min(1.0, attempt.redone / attempt.steps)
            length_ns = round((attempt.ended_ns - attempt.started_ns) * share)
            yield _Stretch(2, attempt.ended_ns - length_ns, attempt.ended_ns, REDONE)


def _pieces(
    stretches: Sequence[_Stretch], since_ns: int, until_ns: int
) -> Iterator[tuple[str, int]]:
    """Cause and length of pieces of time that do not overlap."""
    edges = sorted({since_ns, until_ns, *(e for s in stretches for e in (s.begin_ns, s.end_ns))})
    inside = [e for e in edges if since_ns <= e <= until_ns]
    for begin_ns, end_ns in pairwise(inside):
        over = [s for s in stretches if s.begin_ns <= begin_ns and s.end_ns >= end_ns]
        if over:
            yield min(over, key=lambda s: (s.rank, s.begin_ns)).cause, end_ns - begin_ns
