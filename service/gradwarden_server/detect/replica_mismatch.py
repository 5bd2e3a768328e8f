"""14 ReplicaMismatch: replicas that were equal to the bit are not any more.

Each captured step brings subtotals of checksums (see ``replicas``): of all gradients after
their reduction, and of one sixteenth of the weights. Corrupt weights stay corrupt, so the next
full checksums or the next round of slices confirms them. The first sign asks the ranks for full
checksums, which name the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from gradwarden_server.detect.base import Coverage, Detector, Incident, Request
from gradwarden_server.detect.context import LayoutView, RunContext
from gradwarden_server.detect.pace import Pace
from gradwarden_server.detect.replica_memory import Memory, Sign
from gradwarden_server.detect.replicas import Cell, Compared, cells, compare
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import PROOF, Condition, Severity

_ASKED = 16
"""So many ranks of a cell send full checksums; of more, the odd ones and some of the others."""
_NAMED = 8


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/replica.yaml."""

    armed_steps: int
    weight_checks: int
    weight_window_steps: int
    gradient_steps: int
    gradient_window_steps: int
    clean_steps: int
    checksum_steps: int
    spread_seconds: float
    ask_again_steps: int


class ReplicaMismatch(Detector):
    """See the module."""

    name: ClassVar[str] = "replica_mismatch"
    severities: ClassVar[tuple[Severity, ...]] = ("page", "ticket")
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._onset: dict[str, str] = {}
        self._named = False
        self._odd: tuple[int, ...] = ()
        self._cells: dict[Cell, Memory] = {}
        self._views: dict[int, LayoutView] = {}
        self._most_ranks = 0
        self._pace = Pace()
        self._requests: list[Request] = []

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        self._requests = []
        if ctx.new_attempt:
            self._cells, self._views, self._most_ranks = {}, {}, 0
        self._pace.observe(step, longest_good=0.0)
        if step.eventful:
            return ()
        self._views |= {group: view.layout for group, view in ctx.groups.items()}
        if ctx.groups:
            self._most_ranks = max(self._most_ranks, *map(len, cells(step).values()))
        signs = calm = False
        for one in compare(step, self._uneven(step)):
            found = self._look(one, step, ctx)
            signs, calm = signs or found, True
        if calm and not signs:
            self._incident.healthy_step(self.params.clean_steps)
            if self._incident.severity is None:
                self._onset, self._named, self._odd = {}, False, ()
        return self._incident.conditions(self) if calm else ()

    def requests(self) -> Sequence[Request]:
        return self._requests

    def _uneven(self, step: Step) -> set[Cell]:
        """Cells of which, for long, some rank reports steps and captures none of them."""
        for cell, ranks in cells(step).items():
            captured = [bool(said.roots) for said in ranks.values()]
            held = self._cells.get(cell)
            if held is not None and any(captured):
                held.missed = 0 if all(captured) else held.missed + 1
        return {c for c, held in self._cells.items() if held.missed > self.params.armed_steps}

    def _look(self, one: Compared, step: Step, ctx: RunContext) -> bool:
        p = self.params
        group = one.cell[0]
        held = self._cells.setdefault(one.cell, Memory())
        if group in ctx.groups and ctx.groups[group].step.layout != held.layout:
            held = self._cells[one.cell] = Memory(ctx.groups[group].step.layout)
        rows = len(self._views[group]) if group in self._views else 0
        sign = held.look(one, step.step, rows, p.armed_steps)
        weights, gradients = held.recent(p.weight_window_steps, p.gradient_window_steps)
        if sign is None:
            return False
        if sign.odd is not None:
            self._odd = sign.odd
        elif self._odd and set(self._odd) <= set(one.ranks):
            # The first full checksums may be of two ranks, which have no majority between them.
            sign = replace(sign, odd=self._odd)
        lasting = weights >= p.weight_checks or gradients >= p.gradient_steps
        words = self._words(sign, one, step, rows)
        if weights >= p.weight_checks:
            words[PROOF] = f"weights of replicas differed at {weights} checks"
        self._incident.sign("page" if lasting else "ticket", words)
        # The words of the onset stand; what is learned later is added to them.
        self._incident.annotations = {**words, **self._incident.annotations}
        self._named = self._named or sign.exact
        due = held.asked is None or held.compared - held.asked >= p.ask_again_steps
        if due and not (self._named and lasting):
            held.asked = held.compared
            args = {"steps": self._steps_asked()}
            asked = _asked(one.ranks, sign.odd)
            self._requests += [Request(rank, "checksums", args) for rank in asked]
        return True

    def _steps_asked(self) -> int:
        """Enough that all ranks meet in some of them, though each begins when it is told."""
        seconds = max(self._pace.median, 1e-3)
        return min(
            self.params.checksum_steps + math.ceil(self.params.spread_seconds / seconds), 256
        )

    def _words(self, sign: Sign, one: Compared, step: Step, rows: int) -> dict[str, str]:
        if not self._onset:
            self._onset = {
                "step": str(step.step),
                "attempt": str(step.attempt),
                "last_equal_step": str(sign.since),
            }
        since = self._onset["last_equal_step"]
        count = len(one.ranks)
        if sign.odd is not None:
            who = _some(sign.odd)
            rank = {"rank": who}
            who = f"rank {who}" if len(sign.odd) == 1 else f"ranks {who}"
            summary = f"{sign.what} of {who} differ from those of {count - len(sign.odd)} replicas"
            action = (
                f"Cordon the node of {who} and resume the job elsewhere from the last good "
                f"checkpoint before step {since}; test the memory of that GPU and host."
            )
        else:
            rank = {"rank": f"{_some(one.ranks)}: {count} replicas have no majority"}
            summary = f"{sign.what} of {count} replicas differ; no majority tells which is right"
            action = (
                f"Resume from the last good checkpoint before step {since}, on other nodes where "
                "you can; test the memory of all of them."
            )
        words = {
            **self._onset,
            **rank,
            "summary": f"{summary}; it began between steps {since} and {self._onset['step']}",
            "cause": f"{sign.what} of replicas are equal to the bit after every step; a flipped "
            "bit, a damaged transfer, or a parameter that is not reduced any more",
            "first_action": action,
        }
        if sign.rows and rows:
            layout = self._views[one.cell[0]]
            names = _some([layout.name(row) for row in sign.rows])
            if sign.exact:
                words |= {"layer": layout.layer(sign.rows[0]), "parameter": names}
            else:
                words["suspects"] = f"one of {names}"
        if one.cell[1]:
            words["shard"] = str(one.cell[1])
        return words

    def coverage(self, ctx: RunContext) -> Coverage:
        wanted = self.params.armed_steps
        if ctx.world_size == 1:
            return Coverage(self.alert, "blind", "one rank: there is no replica to compare with")
        if ctx.steps and self._most_ranks == 1:
            why = "each rank holds another part of the parameters: there is no replica to compare"
            return Coverage(self.alert, "blind", why)
        if not self._cells:
            if ctx.steps < wanted:
                return Coverage(self.alert, "waiting", f"0 of {wanted} equal steps")
            return Coverage(self.alert, "blind", "the ranks send no checksums: update gradwarden")
        held = list(self._cells.values())
        slowest = min(held, key=lambda m: (bool(m.weights.armed.any()), m.compared))
        # The last slice is looked at so often only after some more steps.
        wanted = 2 * wanted
        if slowest.compared < wanted:
            done = f"{slowest.compared} of {wanted} compared steps"
            return Coverage(self.alert, "waiting", done)
        if not slowest.weights.seen.any():
            found = bool(slowest.gradients.armed.any())
            why = "no weights are read: watch(preset='standard')"
            return Coverage(self.alert, "armed" if found else "blind", why)
        if not slowest.weights.armed.any():
            return Coverage(self.alert, "blind", "the weights of the ranks were never equal")
        if not all(m.gradients.armed.any() for m in held):
            why = "weights alone: the gradients differ at capture and are reduced after it"
            return Coverage(self.alert, "armed", why)
        seen = sum(int(m.weights.seen.sum()) for m in held)
        apart = sum(int((m.weights.seen & ~m.weights.armed).sum()) for m in held)
        left_out = f"{apart} of {seen} groups of weights were never equal and are left out"
        return Coverage(self.alert, "armed", left_out if apart else "")

    def state(self) -> dict[str, Any]:
        return {
            "incident": self._incident.state(),
            "onset": self._onset,
            "named": self._named,
            "odd": self._odd,
            "most_ranks": self._most_ranks,
            "pace": self._pace.state(),
            "cells": [[*cell, held.state()] for cell, held in self._cells.items()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._onset, self._named = dict(state["onset"]), state["named"]
        self._odd = tuple(state.get("odd", ()))
        self._most_ranks = state["most_ranks"]
        self._pace.restore(state["pace"])
        cells_of = state["cells"]
        self._cells = {(group, shard): Memory.restored(h) for group, shard, h in cells_of}


def _asked(ranks: Sequence[int], odd: Sequence[int] | None) -> list[int]:
    """The odd ranks first, then the others, as many as are asked."""
    first = list(odd or ())[: _ASKED // 2]
    return sorted([*first, *(r for r in ranks if r not in first)][:_ASKED])


def _some(items: Sequence[object]) -> str:
    text = ", ".join(map(str, items[:_NAMED]))
    return text if len(items) <= _NAMED else f"{text} and {len(items) - _NAMED} more"
