"""Steps whose ranks say where their time went, for the tables of the tests about slowness."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gradwarden_server.detect.engine import RunDetectors
from gradwarden_server.detect.steps import RankStep, Step
from gradwarden_server.model import Condition
from tests.server.detection import SECOND, engine

Scalars = Mapping[str, float]


def timed(
    number: int,
    ranks: Scalars | Mapping[int, Scalars],
    *,
    at: float | None = None,
    attempt: int = 1,
    events: Iterable[Mapping[str, Any]] = (),
    missing: tuple[int, ...] = (),
    group: Mapping[int, int] | None = None,
) -> Step:
    """One step; ``ranks`` are scalars by rank, or those of rank 0 alone.

    ``at`` is its recorded time in seconds, else its number.
    """
    by_rank = ranks if all(isinstance(key, int) for key in ranks) else {0: ranks}
    time_ns = round((number if at is None else at) * SECOND)
    said = {
        rank: RankStep((group or {}).get(rank, 0), time_ns, dict(scalars))  # type: ignore[call-overload]
        for rank, scalars in by_rank.items()
    }
    told = tuple((0, event) for event in events)
    return Step(attempt, number, time_ns, time_ns, ranks=said, events=told, missing=missing)


def spent(wall: float, **phases: float) -> dict[str, float]:
    """Scalars of a step of ``wall`` seconds; ``data=0.1`` is ``data_seconds``."""
    return {"step_seconds": wall, **{f"{name}_seconds": took for name, took in phases.items()}}


class Told:
    """A run under one detector: what it says in the end, and when it first spoke."""

    def __init__(self, alert: str, world_size: int = 1) -> None:
        self.alert, self.world_size = alert, world_size
        self.detectors = engine([alert], world_size=world_size)
        self.first: int | None = None
        self.steps = 0
        self._now: dict[str, Condition] = {}

    def run(self, steps: Iterable[Step]) -> Condition | None:
        """Go on, put aside and taken up again in between; what stands after it."""
        for step in steps:
            self.steps += 1
            if self.steps % 97 == 0:
                self.detectors = resumed(self.detectors, [self.alert], self.world_size)
            for condition in self.detectors.advance([step])[0].conditions:
                self._now[condition.severity] = condition
            if self.first is None and self.stands is not None:
                self.first = step.step
        return self.stands

    def silent(self, steps: Iterable[Step]) -> bool:
        """Go on; whether it never said anything."""
        return self.run(steps) is None and self.first is None

    @property
    def stands(self) -> Condition | None:
        """The most urgent condition that is active."""
        active = [c for c in self._now.values() if c.active]
        return min(active, key=lambda c: ("page", "ticket", "note").index(c.severity), default=None)

    @property
    def state(self) -> str:
        """armed, waiting or blind."""
        return self.detectors.coverage()[0].state

    @property
    def detail(self) -> str:
        return self.detectors.coverage()[0].detail


def resumed(detectors: RunDetectors, alerts: Iterable[str], world_size: int) -> RunDetectors:
    """The same, out of its snapshot."""
    after = engine(alerts, world_size=world_size)
    after.restore(detectors.state())
    return after


def same_after_a_restart(alert: str, steps: list[Step], at: int, world_size: int = 1) -> bool:
    """Whether it says the same of the rest after it was put aside at step ``at``."""
    before = engine([alert], world_size=world_size)
    before.advance(steps[:at])
    after = resumed(before, [alert], world_size)
    rest = [(v.step, v.conditions) for s in steps[at:] for v in before.advance([s])]
    again = [(v.step, v.conditions) for s in steps[at:] for v in after.advance([s])]
    return rest == again and before.coverage() == after.coverage()


def jitter(count: int, seed: int = 0, sigma: float = 0.1) -> list[float]:
    """Factors around one, with heavy tails, as step times have them."""
    rng = np.random.default_rng(seed)
    return [float(f) for f in np.exp(np.abs(rng.standard_t(3, count)) * sigma)]
