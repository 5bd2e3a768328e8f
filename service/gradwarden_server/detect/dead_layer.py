"""5 DeadLayer: the gradient of a layer is exactly zero, and was not, or its siblings' is not.

A layer is dead in a step where all of its rows are zero but for a hundredth: a first layer over
sparse inputs has a sparse weight gradient, but a dense one of its bias. Embeddings, and lone
matrices that were sparse from birth, are exempt below all zeros; experts idle by design, see
:mod:`~gradwarden_server.detect.expert_starved`. A layer that lives only now and then (one task's
head) is none, nor is a network whose loss is exactly zero and thus wants nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwarden_server.detect.base import Coverage, Detector, Incident
from gradwarden_server.detect.baseline import Flags
from gradwarden_server.detect.context import GroupView, LayoutView, RunContext
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, Severity

_SILENT = {"expert", "other"}
_RARE = {"embedding", "adapter"}
"""Kinds whose first gradients may be zero by design."""
_MOST_NAMES = 8


@dataclass(frozen=True, slots=True)
class Params:
    """Values and sources: alert_rules/dead.yaml."""

    zero_share: float
    steps: int
    lived_share: float
    clean_steps: int


class _Anatomy:
    """The layers of a layout, as tables over its rows."""

    def __init__(self, layout: LayoutView, share: float) -> None:
        rows = list(enumerate(layout.layout.parameters))
        kept = [(i, p) for i, p in rows if p.kind not in _SILENT]
        self.names = list(dict.fromkeys(p.layer for _, p in kept))
        number = {name: at for at, name in enumerate(self.names)}
        owner = np.array([number[p.layer] for _, p in kept], np.int64)
        sorting = np.argsort(owner, kind="stable")
        self.rows = np.array([i for i, _ in kept], np.int64)[sorting]
        self.starts = np.searchsorted(owner[sorting], np.arange(len(self.names)))
        sizes = layout.sizes.astype(np.float32)
        self.whole = sizes
        self.limit = np.float32(share) * sizes
        self.limit[[i for i, p in rows if p.kind == "embedding"]] = np.inf
        self.limit[[i for i, p in rows if p.kind in _SILENT]] = np.inf
        self.embeddings = np.array([p.kind == "embedding" for _, p in rows], np.bool_)
        self.embedded = bool(self.embeddings.any())
        dense, rare = np.zeros(len(rows), np.bool_), np.zeros(len(rows), np.bool_)
        dense[[i for i, p in kept if len(p.shape) < 2]] = True
        rare[[i for i, p in kept if p.kind in _RARE]] = True
        self.dense, self.rare = dense[:0], rare[:0]
        if kept:
            self.dense, self.rare = self.any_of(dense), self.all_of(rare)

    def all_of(self, flags: Flags) -> Flags:
        """Layers all of whose rows have the flag."""
        return np.asarray(np.logical_and.reduceat(flags[self.rows], self.starts), np.bool_)

    def any_of(self, flags: Flags) -> Flags:
        """Layers any of whose rows has the flag."""
        return np.asarray(np.logical_or.reduceat(flags[self.rows], self.starts), np.bool_)


@dataclass(slots=True)
class _Memory:
    """One group's layers: steps seen, lived and dead in a row, and whether all of it was zero."""

    layout: str
    seen: NDArray[np.int64]
    lived: NDArray[np.int64]
    row: NDArray[np.int64]
    full: Flags
    observed: Flags
    plain: int = 0
    """Steps with these rows in which nothing was dead, not yet added to the others."""

    def settle(self, anatomy: _Anatomy) -> None:
        """Add the steps in which nothing was dead."""
        if self.plain:
            there = self.plain * anatomy.any_of(self.observed)
            self.seen += there
            self.lived += there
            self.plain = 0


class DeadLayer(Detector):
    """See the module."""

    name: ClassVar[str] = "dead_layer"
    severities: ClassVar[tuple[Severity, ...]] = ("ticket",)
    parameters: ClassVar[type[Any]] = Params

    def __init__(self, alert: str, params: Params) -> None:
        super().__init__(alert, params)
        self.params: Params = params
        self._incident = Incident()
        self._groups: dict[int, _Memory] = {}
        self._anatomies: dict[str, _Anatomy] = {}

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        if ctx.new_attempt:
            self._groups = {}
        if not ctx.groups or ctx.lr == 0:  # what a closed gate keeps at zero waits for a step
            return ()
        sick = None
        for group, view in ctx.groups.items():
            dead = self._dead(group, view, ctx)
            if dead is not None and sick is None:
                sick = group, view, dead
        if sick is not None:
            if not self._incident.worse_than("ticket"):
                self._incident.sign("ticket", self._words(step, ctx, *sick))
            self._incident.clean = 0
        else:
            self._incident.healthy_step(self.params.clean_steps)
        return self._incident.conditions(self)

    def _dead(self, group: int, view: GroupView, ctx: RunContext) -> Flags | None:
        """Layers that are dead and should not be, or None; learns the step."""
        anatomy = self._anatomy(view)
        held = self._groups.get(group)
        if held is None or held.layout != view.step.layout:
            none = np.zeros(len(anatomy.names), np.int64)
            counts = none, none.copy(), none.copy(), none > 0
            held = self._groups[group] = _Memory(view.step.layout, *counts, view.observed)
        if not len(anatomy.names):
            return None
        zeros = view.step.column("zero")
        over = zeros > anatomy.limit
        whole = (zeros >= anatomy.whole) & anatomy.embeddings if anatomy.embedded else over
        if not np.array_equal(held.observed, view.observed):
            held.settle(anatomy)
            held.observed = view.observed
        if not (over.any() or whole.any() or held.row.any()):
            held.plain += 1
            return None
        held.settle(anatomy)
        absent = ~view.observed
        seen = anatomy.any_of(view.observed)
        dead = seen & anatomy.all_of(over | whole | absent)
        full = dead & anatomy.all_of((zeros >= anatomy.whole) | absent)
        alive = seen & ~dead
        held.full = np.where(dead, full & (held.full | (held.row == 0)), held.full & ~alive)
        held.seen += seen
        held.lived += alive
        held.row = np.where(dead, held.row + 1, np.where(alive, 0, held.row))
        return self._lasting(held, anatomy, dead, alive, ctx)

    def _lasting(
        self, held: _Memory, anatomy: _Anatomy, dead: Flags, alive: Flags, ctx: RunContext
    ) -> Flags | None:
        p = self.params
        lasting = dead & (held.row >= p.steps)
        if not lasting.any():
            return None
        if not alive.any():  # all of it: the loss wants nothing, unless it says otherwise
            wants = ctx.loss is not None and np.isfinite(ctx.loss) and ctx.loss != 0
            return lasting if wants else None
        before = held.seen - held.row
        born = before == 0
        lived = ~born & (held.lived >= p.lived_share * before)
        sibling = born & ~anatomy.rare & (anatomy.dense | held.full)
        found = lasting & (lived | sibling)
        return found if found.any() else None

    def _anatomy(self, view: GroupView) -> _Anatomy:
        known = self._anatomies.get(view.step.layout)
        if known is None:
            known = _Anatomy(view.layout, self.params.zero_share)
            self._anatomies[view.step.layout] = known
        return known

    def _words(
        self, step: Step, ctx: RunContext, group: int, view: GroupView, dead: Flags
    ) -> dict[str, str]:
        anatomy = self._anatomy(view)
        held = self._groups[group]
        names = _walk(view, anatomy, dead)
        layer = _named(view, anatomy, names)
        at = anatomy.names.index(layer)
        rows = [r for r in range(len(view.layout)) if view.layout.layer(r) == layer]
        zeros = view.step.column("zero").astype(np.float64)
        share = np.nansum(zeros[rows]) / max(1.0, view.layout.sizes[rows].sum())
        everywhere = len(names) == len(anatomy.names)
        since = "from the first step on" if held.row[at] == held.seen[at] else "but lived before"
        where = "all layers" if everywhere else f"layer {layer}"
        also = [n for n in names if n != layer][:_MOST_NAMES]
        return {
            "summary": f"{where} dead: {100 * share:.4g} % of its gradient is exactly zero in "
            f"{int(held.row[at])} steps, {since}",
            "step": str(step.step),
            "attempt": str(step.attempt),
            "layer": layer,
            "ratio": f"{share:.6g}",
            "layers": ", ".join([layer, *also]),
            "cause": _cause(step, everywhere, bool(also)),
            "first_action": "Nothing is lost yet. Look at that layer's activations: lower the "
            "learning rate, or use a leaky activation or normalisation, and go back to a "
            "checkpoint from before it died.",
        }

    def coverage(self, ctx: RunContext) -> Coverage:
        if ctx.steps < self.params.steps:
            return Coverage(self.alert, "waiting", f"{ctx.steps} of {self.params.steps} steps")
        return Coverage(self.alert, "armed")

    def state(self) -> dict[str, Any]:
        return {
            "incident": self._incident.state(),
            "groups": {
                g: [m.layout, m.seen, m.lived, m.row, m.full, m.observed, m.plain]
                for g, m in self._groups.items()
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._incident.restore(state["incident"])
        self._groups = {int(group): _Memory(*held) for group, held in state["groups"].items()}


def _walk(view: GroupView, anatomy: _Anatomy, dead: Flags) -> list[str]:
    """The dead layers, from the loss side on."""
    found = {name for name, is_dead in zip(anatomy.names, dead, strict=True) if is_dead}
    order = dict.fromkeys(view.layout.layer(int(r)) for r in view.layout.backward)
    return [name for name in order if name in found]


def _named(view: GroupView, anatomy: _Anatomy, names: Sequence[str]) -> str:
    """The layer that died. What it feeds has a weight without gradient too, for its input is
    zero: a lone weight next to the loss whose neighbour behind it is dead as well is that."""
    first = names[0]
    lone = not anatomy.dense[anatomy.names.index(first)]
    order = list(dict.fromkeys(view.layout.layer(int(r)) for r in view.layout.backward))
    behind = order[order.index(first) + 1 :][:1]
    return behind[0] if lone and behind and behind[0] in names else first


def _cause(step: Step, everywhere: bool, others: bool) -> str:
    if step.scalar("loss_scale") is not None:
        return "gradients that underflow in half precision, or units that are never active"
    if everywhere:
        return "the loss does not depend on the weights any more, though it is not zero"
    behind = "; the layers behind it get nothing either" if others else ""
    return f"units that are never active (a dead ReLU), or a gate that is closed{behind}"
