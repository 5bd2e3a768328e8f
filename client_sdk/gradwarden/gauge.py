"""Takes what a plan asks for of one optimizer's gradients and weights, on their device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from gradwarden import stats, wire
from gradwarden.collect import Collector, Pending
from gradwarden.owner import Owner
from gradwarden.part import Part
from gradwarden.schedule import Plan
from gradwarden.stats.tensors import FORMS, local
from gradwarden.updates import Move, sample

EARLY = 20
"""Captures for which all weight norms are taken, where any are, for the from-birth check."""
FORMED = FORMS.keys()
_ZERO, _TINY = wire.QUANTITIES.index("zero"), wire.QUANTITIES.index("tiny")

Measured = list[tuple[tuple[int, ...], list[Tensor]]]


class Gauge:
    """Measures and starts the copies to the host; nothing here waits for a device."""

    def __init__(self, collector: Collector, note: Callable[[str], None]) -> None:
        self._collector, self._note = collector, note
        self._taken = 0
        self._before: tuple[Part, list[tuple[tuple[int, ...], list[Tensor], Tensor]]] | None = None

    def take(self, owner: Owner, layout: wire.Layout, plan: Plan) -> Part | None:
        """The part of this moment; None where there is no gradient that can be measured."""
        try:
            return self._take(owner, layout, plan)
        except torch.OutOfMemoryError:  # the next step may find room again
            self._collector.dropped += 1
            return None

    def _take(self, owner: Owner, layout: wire.Layout, plan: Plan) -> Part | None:
        groups, sparse = self._gradients(owner)
        if not groups:
            return None
        part = Part(layout, size=sum(len(rows) for rows, _ in groups))
        if not (plan.capture or plan.look):
            return part
        if not plan.capture:
            flags = [stats.nonfinite(tensors) for _, tensors in groups]
            part.sentinel = self._collector.fetch(_merged(flags))
            if not (part.sentinel is not None and part.sentinel.ready and not part.examine()):
                return part
            part.sentinel = part.finite = None  # on a host a look is free: take it all now
        for rows, tensors in groups:
            words = stats.measure(tensors, plan.histogram)
            if sparse:
                _add_zeros(words, rows, sparse)
            part.hosts.append((rows, self._collector.fetch(words)))
        part.compares, part.moves, part.checksums = plan.compares, plan.moves, plan.checksums
        chosen = self._chosen(owner, plan)
        if chosen:
            part.weights = [
                (rows, self._collector.fetch(stats.measure(weights, False)))
                for rows, weights in self._weights(owner, chosen)
            ]
        self._taken += 1
        return part

    def before_step(self, owner: Owner, part: Part) -> None:
        """Sample the weights that the optimizer is about to move, where they were asked for."""
        if part.moves is None:
            return
        moving = (r for r in owner.rows if r[0] % wire.SLICES == part.moves)
        groups = self._weights(owner, moving)
        part.moving = True
        self._before = (part, [(rows, weights, *sample(weights)[:1]) for rows, weights in groups])

    def after_step(self, part: Part) -> None:
        """Compare with what the optimizer left, if it was this part's step."""
        before, self._before = self._before, None
        part.moving = False
        if before is None or before[0] is not part:
            return
        for rows, weights, old in before[1]:
            new, sizes = sample(weights)
            move = Move(old, new, sizes)
            moved: Move | Pending | None = move
            if old.device.type != "cpu":
                moved = self._collector.fetch(move.ratios())
            part.updates.append((rows, moved))

    def _gradients(self, owner: Owner) -> tuple[Measured, dict[int, int]]:
        """Rows and dense values by device, and how many zeros a sparse gradient leaves out."""
        found = [p.grad for p in owner.parameters]
        if not owner.elsewhere and set(map(type, found)) == {Tensor}:
            plain = [g for g in found if g is not None]
            if {g.layout for g in plain} == {torch.strided} and {g.dtype for g in plain} <= FORMED:
                return _by_device(owner.indices, plain), {}
        rows: list[int] = []
        tensors: list[Tensor] = []
        sparse: dict[int, int] = {}
        for (row, parameter), gradient in zip(owner.rows, found, strict=True):
            values = gradient
            if row in owner.elsewhere and (gradient is not None or not parameter.numel()):
                values = _none_of(parameter)
            elif gradient is not None:
                values = self._dense(gradient)
            if values is None:
                continue
            if gradient is not None and gradient.layout is not torch.strided:
                sparse[row] = gradient.numel() - values.numel()
            rows.append(row)
            tensors.append(values)
        return _by_device(tuple(rows), tensors), sparse

    def _dense(self, gradient: Tensor) -> Tensor | None:
        if gradient.layout is not torch.strided and gradient.device.type != "cpu":
            self._note("sparse gradients on a device are not observed: reading them would wait")
            return None
        if any(p.is_partial() for p in getattr(gradient, "placements", ())):
            self._note("gradients that ranks have yet to add up are not observed")
            return None
        values = local(gradient)
        if values is None:
            self._note(f"gradients of {gradient.dtype} are not observed")
        return values

    def _chosen(self, owner: Owner, plan: Plan) -> list[tuple[int, Tensor]]:
        """The rows whose weights are read."""
        slices = {plan.compares, plan.moves} - {None}
        if plan.checksums or (plan.weighs and self._taken < EARLY):
            return owner.rows
        return [r for r in owner.rows if r[0] % wire.SLICES in slices] if slices else []

    def _weights(self, owner: Owner, chosen: Iterable[tuple[int, Tensor]]) -> Measured:
        rows: list[int] = []
        weights: list[Tensor] = []
        for row, parameter in chosen:
            values = _none_of(parameter) if row in owner.elsewhere else local(parameter)
            if values is not None:
                rows.append(row)
                weights.append(values)
        return _by_device(tuple(rows), weights)


def _none_of(parameter: Tensor) -> Tensor | None:
    """No value at all, of the parameter's kind: what counts of it is measured elsewhere."""
    values = local(parameter)
    return None if values is None else values.new_empty(0)


def _by_device(rows: tuple[int, ...], tensors: list[Tensor]) -> Measured:
    """The rows and tensors of each device, in order; nearly always there is one."""
    devices = {t.device for t in tensors}
    if len(devices) == 1:
        return [(rows, tensors)]
    groups: Measured = []
    for device in sorted(devices, key=str):
        index = [i for i, t in enumerate(tensors) if t.device == device]
        groups.append((tuple(rows[i] for i in index), [tensors[i] for i in index]))
    return groups


def _merged(flags: Sequence[Tensor]) -> Tensor:
    """One flag out of those of several devices, on the first one's."""
    if len(flags) == 1:
        return flags[0]
    here = flags[0].device
    return torch.stack([f.to(here, non_blocking=True) for f in flags]).amax(0)


def _add_zeros(words: Tensor, rows: tuple[int, ...], sparse: dict[int, int]) -> None:
    """Count the zeros that a sparse gradient does not store; host tensors only."""
    for at, row in enumerate(rows):
        if row in sparse:
            words[at].view(torch.float64)[[_ZERO, _TINY]] += sparse[row]
