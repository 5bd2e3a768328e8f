"""Waiting apart from own work in a collective, without comparing clocks. Pure.

A collective ends for all ranks at about the same moment, so the rank that came last was in it
for the shortest time and waited for nobody: what any other rank took longer is what it waited
for that one. Each duration is of one host's clock, and only durations are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]

LEAST_STEPS = 10
"""Steps that all ranks measured, before one of them is called the cause."""
LOST_SHARE = 0.05
"""Share of the step time that others must wait for a rank."""


@dataclass(frozen=True, slots=True)
class Part:
    """One rank's time in a collective: ``duration`` is ``wait`` plus ``own``, in seconds.

    ``own`` is the transfer: what the collective takes once everybody is there.
    """

    duration: float
    wait: float
    own: float


@dataclass(frozen=True, slots=True)
class Cause:
    """Whom the others wait for: the median over the window of what they lose per step."""

    rank: int
    lost_seconds: float
    lost_share: float


def separate(durations: Mapping[int, float]) -> dict[int, Part]:
    """Each rank's part of one collective in one step.

    Args:
        durations: Seconds by rank, from a rank's arrival to the end.
    """
    own = min(durations.values(), default=0.0)
    return {rank: Part(took, took - own, own) for rank, took in durations.items()}


def waits(durations: Table) -> Table:
    """What each rank waited in each step: :func:`separate` for a [steps, ranks] array."""
    waited: Table = durations - durations.min(axis=1, keepdims=True)
    return waited


def causes(ranks: Sequence[int], durations: Table, step_seconds: float) -> tuple[Cause, ...]:
    """The ranks that the others wait for, worst first; empty where nobody stands out.

    What is lost to a rank in a step is the median of the others' durations less its own: where
    ranks come last by turns that is below zero as often as above, and its median about zero.

    Args:
        ranks: The ranks of the columns.
        durations: [steps, ranks] seconds, of steps that all ranks measured.
        step_seconds: What a step takes.
    """
    if len(durations) < LEAST_STEPS or len(ranks) < 2 or step_seconds <= 0:
        return ()
    lost = np.median(median_of_others(durations) - durations, axis=0)
    found = [
        Cause(rank, float(seconds), float(seconds) / step_seconds)
        for rank, seconds in zip(ranks, lost, strict=True)
        if seconds >= LOST_SHARE * step_seconds
    ]
    return tuple(sorted(found, key=lambda cause: -cause.lost_seconds))


def median_of_others(durations: Table) -> Table:
    """For each rank and step the median over all other ranks, [steps, ranks]."""
    others = durations.shape[1] - 1
    order = np.argsort(durations, axis=1)
    place = np.argsort(order, axis=1)
    ordered = np.take_along_axis(durations, order, axis=1)

    def nth(k: int) -> Table:
        """The k-th of the others: those above a rank's own place move down by one."""
        found: Table = np.where(k < place, ordered[:, [k]], ordered[:, [k + 1]])
        return found

    return (nth((others - 1) // 2) + nth(others // 2)) / 2
