"""Whose turn it is in a round: runs that are held, and what is to be done of each."""

from __future__ import annotations

from dataclasses import dataclass

from gradwarden_server.alerting.watch import RunWatch
from gradwarden_server.store.judging.watched import Due

SECOND_NS = 1_000_000_000
TICK_NS = 1 * SECOND_NS
_LATE_NS = SECOND_NS // 4
"""How much later than its pace what is sent each second may come."""


@dataclass(slots=True)
class Held:
    """A run under evaluation here: when its lease is renewed, and when it was looked at last."""

    watch: RunWatch
    renew_ns: int
    tick_ns: int = 0
    fed_ns: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """A run in this round, how many batches it is behind, and whether to ask what time tells."""

    due: Due
    held: Held
    behind: int
    tick: bool


def turn_of(due: Due, held: Held, now_ns: int) -> Turn | None:
    """What is to be done of a run, if anything; it counts as done."""
    behind = due.position - held.watch.position
    waiting = held.watch.deadline_ns
    overdue = waiting is not None and waiting <= now_ns
    # What sends each second is asked together with what it sent, not in between as well.
    flowing = now_ns - held.fed_ns < TICK_NS + _LATE_NS
    since_ns = now_ns - held.tick_ns
    tick = since_ns >= TICK_NS - _LATE_NS if behind > 0 else not flowing and since_ns >= TICK_NS
    if not (tick or overdue or behind > 0):
        return None
    if tick:
        held.tick_ns = now_ns
    if behind > 0:
        held.fed_ns = now_ns
    return Turn(due, held, behind, tick)
