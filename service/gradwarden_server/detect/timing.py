"""Where the time of a step went, over all ranks: what the detectors of slowness read. Pure.

All seconds are durations of one host's monotonic clock; no clocks are compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from gradwarden_server.detect.steps import Step

PHASES = ("data", "forward", "backward", "optimizer")
PAUSES = ("evaluation", "checkpoint", "compile")
"""Phases in which no progress is expected."""
OTHER, WAITING = "other", "waiting"
"""What no phase explains, and what of backward is spent on other ranks and the network."""
PARTS = (*PHASES, WAITING, OTHER)
"""The parts of a step outside of pauses."""
MEASURED = frozenset((*PHASES, *PAUSES, "eval", "evaluate", "validate", "validation"))
"""Names that a loop may give its phases and that have a scalar of their own."""

_GAP_LIMIT = 10.0
_GAP_STEPS = 100


class Times(NamedTuple):
    """One step of all ranks that measured it; seconds.

    ``wall`` is the median over ranks: they end a step together. ``pause``, ``data`` and
    ``checkpoint`` are the longest, since the others wait for that rank, and so is ``other``,
    which no phase explains. ``parts`` are means, in the order of :data:`PARTS` without the last.
    ``tokens`` and ``samples`` are sums over ranks, zero where none were logged.
    """

    wall: float
    pause: float
    data: float
    data_rank: int
    checkpoint: float
    checkpoint_rank: int
    other: float
    parts: tuple[float, ...]
    tokens: float
    samples: float
    first_of_epoch: bool
    hot: bool

    @property
    def work(self) -> float:
        """Seconds outside evaluation, checkpoints and compilation."""
        return max(0.0, self.wall - self.pause)


@lru_cache(maxsize=1)
def of(step: Step) -> Times | None:
    """The times of a step; None where no rank measured it. Detectors in a row ask for one step."""
    walls: list[float] = []
    data_sum = forward_sum = backward_sum = optimizer_sum = waited_sum = 0.0
    pause = data = checkpoint = other = tokens = samples = 0.0
    data_rank = checkpoint_rank = 0
    first = hot = False
    for rank, said in step.ranks.items():
        told = said.scalars.get
        wall = told("step_seconds")
        if wall is None or not 0 < wall < 1e9:
            continue
        walls.append(wall)
        saved = told("checkpoint_seconds", 0.0)
        stood = saved + told("evaluation_seconds", 0.0) + told("compile_seconds", 0.0)
        loaded, forward = told("data_seconds", 0.0), told("forward_seconds", 0.0)
        backward, optimizer = told("backward_seconds", 0.0), told("optimizer_seconds", 0.0)
        waited = min(told("allreduce_exposed_seconds", 0.0), backward)
        data_sum += loaded
        forward_sum += forward
        backward_sum += backward - waited
        optimizer_sum += optimizer
        waited_sum += waited
        tokens += told("tokens", 0.0)
        samples += told("samples", 0.0)
        pause = max(pause, stood)
        other = max(other, wall - stood - loaded - forward - backward - optimizer)
        if loaded > data:
            data, data_rank = loaded, rank
        if saved > checkpoint:
            checkpoint, checkpoint_rank = saved, rank
        first = first or "data_start" in said.scalars
        hot = hot or told("gpu_thermal_slowdown", 0.0) > 0
    count = len(walls)
    if not count:
        return None
    walls.sort()
    wall = walls[0] if count == 1 else (walls[(count - 1) // 2] + walls[count // 2]) / 2
    sums = (data_sum, forward_sum, backward_sum, optimizer_sum, waited_sum)
    parts = sums if count == 1 else tuple(seconds / count for seconds in sums)
    saves = (checkpoint, checkpoint_rank)
    return Times(wall, pause, data, data_rank, *saves, other, parts, tokens, samples, first, hot)


class OwnPhases:
    """Seconds in phases that the loop named itself, by ``monitor.phase``, since last asked."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def observe(self, step: Step) -> None:
        """Note the events of a step, or of a carrier between steps."""
        for rank, event in step.events:
            seconds = event.get("seconds")
            if event.get("kind") != "phase" or event.get("name") in MEASURED:
                continue
            if isinstance(seconds, (int, float)) and 0 < seconds < 1e9:
                self._seconds[rank] = self._seconds.get(rank, 0.0) + seconds

    def take(self) -> float:
        """The longest of any rank, and forget it."""
        if not self._seconds:
            return 0.0
        longest = max(self._seconds.values(), default=0.0)
        self._seconds = {}
        return longest

    def state(self) -> list[list[float]]:
        return [[rank, seconds] for rank, seconds in self._seconds.items()]

    def restore(self, state: Iterable[Iterable[float]]) -> None:
        self._seconds = {int(rank): seconds for rank, seconds in state}


class Elapsed:
    """How much training time passed, by the recorded times of its steps.

    A clock that goes back counts nothing, and a gap counts at most ten usual ones, so that
    neither a jump of the clock nor a long pause makes minutes of a few steps.
    """

    def __init__(self) -> None:
        self._last_ns: int | None = None
        self._usual = 0.0
        self._count = 0

    def step(self, time_ns: int) -> float:
        """Seconds that passed up to this step since the one before."""
        last, self._last_ns = self._last_ns, time_ns
        if last is None or time_ns <= last:
            return 0.0
        gap = (time_ns - last) / 1e9
        if self._count >= 10:
            gap = min(gap, _GAP_LIMIT * self._usual)
        self._count = min(self._count + 1, _GAP_STEPS)
        self._usual += (gap - self._usual) / self._count
        return gap

    def state(self) -> list[float | None]:
        return [self._last_ns, self._usual, self._count]

    def restore(self, state: list[float | None]) -> None:
        last, usual, count = state
        self._last_ns = None if last is None else int(last)
        self._usual, self._count = float(usual or 0.0), int(count or 0)
