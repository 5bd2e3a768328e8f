"""17 Straggler: one rank takes longer for its own work, and the others wait for it.

A collective ends for all at once, so the rank that waits least where the others wait is the
cause: see :mod:`gradwarden_server.detect.communication`. Ranks are compared within a step and
within their role, without their clocks; waiting is no work. Where no collective is timed, the
phases in which nobody waits for others (data, forward) are compared. Steps with an evaluation,
a checkpoint or a compilation on any rank are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwarden_server.detect import communication, timing
from gradwarden_server.detect.base import Coverage, Detector
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.places import Places
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity

Table = NDArray[np.float64]

_PHASES = (*timing.PHASES, timing.OTHER)
_MEASURES = (
    ("allreduce_exposed_seconds",),
    ("reduce_scatter_seconds", "all_gather_seconds"),
    ("allreduce_seconds",),
)
"""What waiting is read from, best first; several scalars are added."""


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/straggler.yaml."""

    ratio: float
    lost_share: float
    window_steps: int
    block_steps: int


class Straggler(Detector):
    """See the module. Medians over the window are medians of those of its blocks of steps."""

    name: ClassVar[str] = "straggler"
    severities: ClassVar[tuple[Severity, ...]] = ("ticket",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._places = Places()
        self._calm = self.calm()
        self._begin(())

    def _begin(self, ranks: tuple[int, ...]) -> None:
        self._ranks = ranks
        self._measure = -1
        self._rows: list[Table] = []
        self._blocks: list[Table] = []
        self._missing: tuple[int, ...] = ()
        self._words: dict[str, str] = {}

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if step.events:
            self._places.observe(step)
        if ctx.new_attempt:
            self._begin(())
        if len(step.ranks) < 2:
            return ()
        self._missing = step.missing
        if step.missing:
            return ()  # the rank that is missing may be the slow one
        ranks = tuple(step.ranks)
        if ranks != self._ranks:
            self._begin(ranks)
        row = self._row(step)
        if row is not None:
            self._rows.append(row)
            if len(self._rows) >= self.params.block_steps:
                self._close(step)
        if len(self._blocks) * self.params.block_steps < self.params.window_steps:
            return ()
        return self.say("ticket", self._words) if self._words else self._calm

    def _row(self, step: Step) -> Table | None:
        """[9, R]: wall, in the collective, tokens, what watching took, the phases; or None."""
        times = timing.of(step)
        if times is None or times.pause > 0:
            return None
        held = [said.scalars for said in step.ranks.values()]
        measure = self._measured(held)
        if measure != self._measure:
            self._measure, self._rows, self._blocks = measure, [], []
        names = _MEASURES[measure] if measure >= 0 else ()
        rows = []
        for said in held:
            told = said.get
            took = sum([told(name, 0.0) for name in names])
            rows.append(
                (
                    told("step_seconds", 0.0),
                    took,
                    told("tokens", 0.0),
                    told("overhead_seconds", 0.0),
                    told("data_seconds", 0.0),
                    told("forward_seconds", 0.0),
                    told("backward_seconds", 0.0),
                    told("optimizer_seconds", 0.0),
                )
            )
        known = np.array(rows, np.float64).T
        table = np.concatenate([known, known[:1] - known[4:].sum(axis=0, keepdims=True)])
        return table if (known[0] > 0).all() and np.isfinite(known).all() else None

    @staticmethod
    def _measured(held: Sequence[Mapping[str, float]]) -> int:
        for at, names in enumerate(_MEASURES):
            if all(name in said for said in held for name in names):
                return at
        return -1

    def _close(self, step: Step) -> None:
        """A block of steps is complete: what it says of each rank, [8, R]."""
        steps = np.stack(self._rows)  # [n, 9, R]
        self._rows = []
        verdicts = np.full((3 + len(_PHASES), len(self._ranks)), np.nan)
        for columns in self._roles(step):
            if len(columns) > 1:
                verdicts[:, columns] = self._compare(steps[:, :, columns])
        kept = -(-self.params.window_steps // self.params.block_steps)
        self._blocks = [*self._blocks, verdicts][-kept:]
        if len(self._blocks) == kept:
            self._judge(step)

    def _roles(self, step: Step) -> list[list[int]]:
        """Columns of ranks that do the same work."""
        roles: dict[object, list[int]] = {}
        for column, (rank, said) in enumerate(step.ranks.items()):
            roles.setdefault(self._places.role(rank) or said.group, []).append(column)
        return list(roles.values())

    def _compare(self, steps: Table) -> Table:
        """Medians over steps: own time, the same over the others', lost over wall, phases.

        Watching is not the rank's own work: the rank that speaks for the others does more of it.
        """
        wall, took, tokens, ours = (steps[:, row] for row in range(4))
        phases = steps[:, 4:].copy()
        if self._measure >= 0:
            waited = communication.waits(took)
            own = np.maximum(wall - waited - ours, 0.0)
            lost = communication.median_of_others(took) - took
            lost -= ours - communication.median_of_others(ours)
            at = _PHASES.index("backward")
            phases[:, at] = np.maximum(phases[:, at] - waited, 0.0)
        else:
            own = phases[:, 0] + phases[:, 1]
            lost = own - communication.median_of_others(own)
        work = own / tokens if (tokens > 0).all() else own
        others = communication.median_of_others(work)
        ratio = np.divide(work, others, out=np.ones_like(work), where=others > 0)
        table = np.concatenate([np.stack([own, ratio, lost / wall], axis=1), phases], axis=1)
        found: Table = np.median(table, axis=0)
        return found

    def _judge(self, step: Step) -> None:
        own, ratio, lost, *phases = np.median(np.stack(self._blocks), axis=0)
        slow = (ratio > self.params.ratio) & (lost >= self.params.lost_share)
        if not slow.any():
            self._words = {}
            return
        if self._words:
            return
        columns = sorted(np.flatnonzero(slow).tolist(), key=lambda c: -lost[c])
        first = columns[0]
        alike = next(role for role in self._roles(step) if first in role)
        spent = np.stack(phases)[:, alike]
        excess = (spent - communication.median_of_others(spent))[:, alike.index(first)]
        phase = _PHASES[int(np.argmax(excess))]
        place = self._places.words(self._ranks[c] for c in columns)
        at = f" on {place['node']}" if "node" in place else ""
        self._words = {
            "summary": f"rank {place['rank']}{at} takes {ratio[first]:.2f} times the others' own "
            f"time, in {_SAID[phase]}; {lost[first]:.0%} of each step is lost waiting for it",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "phase": phase,
            "cause": f"its own work takes {1e3 * own[first]:.0f} ms a step; the others wait",
            "first_action": _ACTIONS.get(phase, _ACTIONS["forward"]),
            **place,
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        if ctx.world_size < 2 and len(self._ranks) < 2:
            return Coverage(self.alert, "armed", "one rank waits for nobody")
        if self._missing:
            what = f"not heard: rank {', '.join(map(str, self._missing[:8]))}"
            return Coverage(self.alert, "blind", f"{what}; call gradwarden.watch on every rank")
        done = len(self._blocks) * self.params.block_steps + len(self._rows)
        wanted = self.params.window_steps
        partly = 'only data and forward are compared: watch(comm="hook") times the waiting'
        if len(self._blocks) * self.params.block_steps >= wanted:
            return Coverage(self.alert, "armed", partly if self._measure < 0 else "")
        if done or ctx.steps < wanted:
            return Coverage(self.alert, "waiting", f"{done} of {wanted} steps")
        why = 'no step_seconds: print(monitor.health()["instruments"]["anatomy"]) says why'
        return Coverage(self.alert, "blind", why)

    def state(self) -> dict[str, Any]:
        return {
            "places": self._places.state(),
            "ranks": list(self._ranks),
            "measure": self._measure,
            "rows": self._rows,
            "blocks": self._blocks,
            "missing": list(self._missing),
            "words": self._words,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._begin(tuple(state["ranks"]))
        self._places.restore(state["places"])
        self._measure = state["measure"]
        self._rows, self._blocks = list(state["rows"]), list(state["blocks"])
        self._missing, self._words = tuple(state["missing"]), dict(state["words"])


_SAID = {
    "data": "waiting for data",
    "forward": "forward",
    "backward": "backward",
    "optimizer": "the optimizer",
    timing.OTHER: "what it does outside of data, forward, backward and optimizer",
}
_ACTIONS = {
    "data": "Look at that rank's share of the data and at its node's storage and CPU load.",
    "forward": "Compare that GPU's clocks, temperature and other processes with its neighbours'; "
    "if its node is slow twice, drain it at the next checkpoint.",
    timing.OTHER: "Look at what only this rank does between the phases: logging, metrics, saving.",
}
