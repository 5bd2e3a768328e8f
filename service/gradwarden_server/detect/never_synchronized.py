"""14 NeverSynchronized: ranks that should train one model each train their own.

Ranks with the same parameters count as replicas. Where nearly all of their weights never
agree, nothing keeps them equal: the model was not wrapped, or the first weights were never
broadcast. A part that differs is no such sign: it may be meant, and ReplicaMismatch leaves it
out. Nor are gradients alone: they may be reduced after capture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from gradwarden_server.detect.base import Coverage, Detector
from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.replicas import Cell, cells, compare
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/replica.yaml."""

    steps: int
    share: float


@dataclass(slots=True)
class _Count:
    """Comparisons of one cell since the attempt began, and how many of them differed."""

    steps: int = 0
    weights: int = 0
    weights_differ: int = 0
    gradients: int = 0
    gradients_differ: int = 0


class NeverSynchronized(Detector):
    """See the module."""

    name: ClassVar[str] = "never_synchronized"
    severities: ClassVar[tuple[Severity, ...]] = ("ticket",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._cells: dict[Cell, _Count] = {}
        self._words: dict[str, str] = {}
        self._most_ranks = 0

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if ctx.new_attempt:
            self._cells, self._most_ranks = {}, 0
        if ctx.groups:
            self._most_ranks = max(self._most_ranks, *map(len, cells(step).values()))
        compared = compare(step)
        for one in compared:
            held = self._cells.setdefault(one.cell, _Count())
            held.steps += 1
            held.gradients += int(one.gradients.present.sum())
            held.gradients_differ += int(one.gradients.unequal.sum())
            if one.slice is not None:
                held.weights += int(one.weights.present.sum())
                held.weights_differ += int(one.weights.unequal.sum())
        if not compared or any(c.steps < self.params.steps for c in self._cells.values()):
            return ()
        for one in compared:
            held = self._cells[one.cell]
            if held.weights_differ > self.params.share * held.weights:
                self._words = self._words or self._say(step, one.ranks, held)
                return self.say("ticket", self._words)
        self._words = {}
        return self.calm()

    def _say(self, step: Step, ranks: Sequence[int], held: _Count) -> dict[str, str]:
        words = {
            "summary": f"the {len(ranks)} ranks train {len(ranks)} models: "
            f"{held.weights_differ} of {held.weights} comparisons of their weights differ",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "rank": f"{ranks[0]} to {ranks[-1]}",
        }
        if held.gradients_differ > self.params.share * held.gradients:
            words["cause"] = "nothing reduces the gradients: the model is not wrapped in "
            words["cause"] += "DistributedDataParallel, or training goes through the bare module"
        else:
            words["cause"] = "the gradients agree, the weights never did: the first weights were "
            words["cause"] += "not broadcast, or each rank was seeded for itself"
        words["first_action"] = (
            "Stop the run if one model is wanted: what it trained cannot be joined. Wrap the "
            "model, or broadcast its weights from rank 0, and start again. If the ranks hold "
            "different parts on purpose, name their replica groups with watch(group=...)."
        )
        return words

    def coverage(self, ctx: RunContext) -> Coverage:
        wanted = self.params.steps
        known = min((c.steps for c in self._cells.values()), default=0)
        if known >= wanted and not all(c.weights for c in self._cells.values()):
            return Coverage(self.alert, "blind", "no weights are read: watch(preset='standard')")
        if known >= wanted:
            return Coverage(self.alert, "armed")
        if ctx.world_size == 1 or (ctx.steps and self._most_ranks == 1):
            return Coverage(self.alert, "blind", "no two ranks hold the same parameters")
        if ctx.steps > 2 * wanted and not known:
            return Coverage(self.alert, "blind", "the ranks send no checksums: update gradwarden")
        return Coverage(self.alert, "waiting", f"{known} of {wanted} compared steps")

    def state(self) -> dict[str, Any]:
        return {
            "words": self._words,
            "most_ranks": self._most_ranks,
            "cells": [[*cell, asdict(held)] for cell, held in self._cells.items()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._words, self._most_ranks = dict(state["words"]), state["most_ranks"]
        self._cells = {(group, shard): _Count(**held) for group, shard, held in state["cells"]}
