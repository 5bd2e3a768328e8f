"""How a run ended, for the objective on training success. Pure.

Good is an end that the trainer declared. What somebody cancelled, and what trained for less than
ten minutes, says nothing of training. A preemption is an end only where nobody resumed the run.
"""

from __future__ import annotations

from dataclasses import dataclass

SECOND_NS = 1_000_000_000
SHORT_NS = 600 * SECOND_NS
GRACE_NS = 600 * SECOND_NS
"""A failed run may begin anew within this time, as RunFailed has it."""
LOST_NS = 3600 * SECOND_NS
"""A run that never said its end is lost after so long without a sign of life."""
RESUME_NS = 24 * 3600 * SECOND_NS
"""How long a preempted run may wait for its place."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A run as far as its outcome depends on it."""

    status: str
    started_ns: int
    ended_ns: int | None
    last_seen_ns: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended; ``good`` None leaves it out of the count."""

    good: bool | None
    reason: str
    ended_ns: int


def judge(run: Ended, now_ns: int) -> Outcome | None:
    """The outcome of a run; None while it may still go on."""
    if run.status == "running":
        if now_ns - run.last_seen_ns < LOST_NS:
            return None
        return _long_enough(run, run.last_seen_ns, False, "no sign of life for an hour")
    ended_ns = run.last_seen_ns if run.ended_ns is None else run.ended_ns
    waited_ns = now_ns - ended_ns
    if run.status == "finished":
        return _long_enough(run, ended_ns, True, "finished")
    if run.status == "cancelled":
        return Outcome(None, "cancelled", ended_ns)
    if run.status == "preempted":
        if waited_ns < RESUME_NS:
            return None
        return _long_enough(run, ended_ns, False, "preempted, and not resumed within a day")
    if waited_ns < GRACE_NS:
        return None
    return _long_enough(run, ended_ns, False, "failed")


def _long_enough(run: Ended, ended_ns: int, good: bool, reason: str) -> Outcome:
    if ended_ns - run.started_ns < SHORT_NS:
        return Outcome(None, "shorter than ten minutes", ended_ns)
    return Outcome(good, reason, ended_ns)
