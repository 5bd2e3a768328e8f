"""When a gradient is taken and what became of it: one monitor's view of its optimizers.

The default moment is the entry of clipping, since a clipped gradient hides what happened.
What was taken and not stepped before it was cleared is a skipped step. A gradient is told
from an older one by identity and version, never by its values.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwarden import quantities, wire
from gradwarden.collect import Collector, Pending
from gradwarden.errors import Faults, say
from gradwarden.frames import FrameBook, Part
from gradwarden.layout import BackwardOrder, Rows
from gradwarden.owner import Owner, inner, size_of

EARLY = 20
"""Captures for which weight norms are taken as well, for the from-birth check."""


def _guarded(feature: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Nothing that a hook does may raise into training; its time is counted as our cost."""

    def wrap(method: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(method)
        def guarded(self: Watcher, *args: Any) -> None:
            if self.paused or self.faults.is_off(feature) or _capturing_graph():
                if self.faults.is_off(feature):
                    self.faults.quiet(feature, _nothing)
                return
            started = time.perf_counter()
            with torch.no_grad():
                self.faults.quiet(feature, method, self, *args)
            self.book.overhead += time.perf_counter() - started

        return guarded

    return wrap


def _nothing() -> None:
    return None


class Watcher:
    """Hears the hooks of one process on behalf of one model and decides what to take."""

    def __init__(
        self, model: nn.Module, optimizers: Sequence[Optimizer], book: FrameBook, faults: Faults
    ) -> None:
        self.model, self.book, self.faults = model, book, faults
        self.collector, self.scalars = Collector(64), Collector(256)
        self.paused = False
        self.quiet: Callable[[], bool] = lambda: False
        """Whether only non-finite gradients are of interest: another rank sends our matrix."""
        self.rows = Rows(model)
        self.order: BackwardOrder | None = BackwardOrder(self.rows)
        self.layout: wire.Layout | None = None
        self.owners = [Owner(k, o, self.rows) for k, o in enumerate(map(inner, optimizers))]
        self._anyone = None if self.owners else Owner(0, None, self.rows)
        self._foreign: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._steps = 0
        self._noted: set[str] = set()
        for owner in self._all():
            owner.remember()  # gradients that exist already are not ours to report

    # -- the listener's face, see hooks.Listener ------------------------------------------

    @_guarded("capture at clipping")
    def clip_enters(self, gradients: list[Tensor], exact: bool) -> None:
        holders = self._holders(gradients)
        if not holders and self.layout is None and self._replaced():
            self._renew()  # sharding after ``watch`` put other Parameter objects in place
            holders = self._holders(gradients)
        for owner in holders:  # all verdicts on the last step first: it may end right after
            if self._abandoned(owner):
                self._settle(owner, False)
        for owner in holders:
            self._at_clip(owner)
            owner.exact = exact

    @_guarded("clip norm")
    def clip_leaves(self, gradients: list[Tensor], total: Tensor | None, most: float) -> None:
        given = {id(g) for g in gradients}
        for owner in self._all():
            if owner.pending is None or not owner.count(given):
                continue
            owner.remember()
            owner.exact = True
            whole = sum(len(o.pending.rows) for o in self._all() if o.pending is not None)
            if total is not None and len(gradients) == whole and type(total) is Tensor:
                self.number("clip_norm", total)
                self.number("clip_max_norm", float(most))
                return

    @_guarded("capture at the step")
    def step_enters(
        self, optimizer: Optimizer, closure: bool, within: Sequence[Optimizer] = ()
    ) -> None:
        owner = self._owner(optimizer, within)
        self._steps += 1
        if owner is None or owner.scaling:
            return
        owner.closure = closure
        if owner.pending is None and not closure and not (owner.dropped and not owner.fresh()):
            self._take(owner, "unclipped")

    @_guarded("capture at the step")
    def step_leaves(self, optimizer: Optimizer) -> None:
        owner = self._named(optimizer)
        if owner is None or owner.scaling:
            return
        if owner.closure and owner.pending is None:
            self._take(owner, "unclipped")
        owner.closure = False
        self._settle(owner, True)
        for other in self.owners:
            if other.pending is not None and other.numbers & owner.numbers:
                other.pending.stepped = True  # its gradients, or some of them, were applied

    @_guarded("loss scaler")
    def scaler_enters(self, scaler: Any, optimizer: Optimizer) -> None:
        owner = self._owner(inner(optimizer))
        if owner is None or not scaler.is_enabled():
            return
        owner.scaling = True
        scale = getattr(scaler, "_scale", None)
        if owner.pending is None:
            self._take(owner, "unclipped")
        states = scaler._per_optimizer_states[id(optimizer)]
        if scale is not None and owner.pending is not None:
            if states["stage"].name == "READY":  # still multiplied: divided on the host
                owner.pending.scale = self.scalars.fetch(scale.reshape(1).clone())
            self.number("loss_scale", scale)

    @_guarded("loss scaler")
    def scaler_leaves(self, scaler: Any, optimizer: Optimizer) -> None:
        owner = self._owner(inner(optimizer))
        if owner is None or not owner.scaling:
            return
        owner.scaling = False
        found = list(scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values())
        part = owner.pending
        if part is not None and found:
            total = torch.stack([f.to(found[0].device, non_blocking=True) for f in found]).sum()
            part.found_inf = self.scalars.fetch(total.reshape(1))
        self._settle(owner, None if found else True)

    @_guarded("skipped steps")
    def zero_enters(self, who: Optimizer | nn.Module) -> None:
        for owner in self._cleared(who):
            if owner.closure or owner.scaling:
                continue
            if owner.pending is not None:
                self._settle(owner, False)
                owner.dropped = True
            elif owner.fresh() and self._dropped_by_hand(owner):
                self._take(owner, "unclipped")
                self._settle(owner, False)
                owner.dropped = True

    @_guarded("skipped steps")
    def zero_leaves(self, who: Optimizer | nn.Module) -> None:
        for owner in self._cleared(who):
            if not (owner.closure or owner.scaling):
                owner.remember()
                owner.others = self._steps

    # -- decisions ------------------------------------------------------------------------

    def _holders(self, gradients: list[Tensor]) -> list[Owner]:
        """Whose gradients are clipped; of optimizers that share some, who holds them all."""
        given = {id(g) for g in gradients}
        counts = [(o, o.count(given)) for o in self._all()]
        whole = [o for o, n in counts if n == len(gradients)]
        some = whole or [o for o, n in counts if n]
        return [o for o in some if not o.gone] or some

    def _abandoned(self, owner: Owner) -> bool:
        """Whether what was taken before is known to be dropped, now that there is more."""
        part = owner.pending
        if part is None or owner.closure:
            return False
        return owner.replaced() or (owner.written() and part.examine() is False)

    def _at_clip(self, owner: Owner) -> None:
        part = owner.pending
        if part is None or owner.replaced() or owner.written():
            self._take(owner, "pre_clip", instead_of=part)

    def _dropped_by_hand(self, owner: Owner) -> bool:
        """Whether gradients that nobody consumed are a skipped step, or residue.

        A GAN's generator loss leaves gradients in the discriminator: residue is what another
        optimizer's step used since the last clearing. An epoch's end may drop a partial
        accumulation: on a host the values tell, a device is never asked.
        """
        if self._steps != owner.others:
            return False
        tensors = [t for t in (quantities.local(g) for _, g in owner.gradients()) if t is not None]
        if any(t.device.type != "cpu" for t in tensors):
            return True
        return bool(tensors) and not bool(torch.isfinite(quantities.absmax(tensors)).all())

    def _take(self, owner: Owner, kind: wire.Capture, instead_of: Part | None = None) -> None:
        self._refresh(owner)
        layout = self.layout
        assert layout is not None
        rows, tensors, sparse = self._measurable(owner)
        if not rows:
            return
        devices = list(quantities.by_device(tensors).values())
        groups = [[tensors[i] for i in index] for index in devices]
        matrices = [quantities.finite(g) for g in groups] if self.quiet() else []
        quiet = bool(matrices) and all(m is not None for m in matrices)
        hosts: list[tuple[tuple[int, ...], Pending | None]] = []
        for n, index in enumerate(devices):
            matrix = matrices[n] if quiet else None
            matrix = quantities.measure(groups[n]) if matrix is None else matrix
            for at, i in enumerate(index):
                if sparse.get(i):
                    matrix[at, 4] += sparse[i]
            hosts.append((tuple(index), self.collector.fetch(matrix)))
        part = Part(rows, layout, hosts, quiet=quiet)
        if self.book.captures < EARLY and not quiet:
            part.weights = self._weights(rows)
        if instead_of is not None:
            self.book.replace(owner.key, instead_of, part)
        else:
            self.book.capture(owner.key, self._leads(owner), part, kind)
            self._learning_rate(owner)
        owner.pending, owner.dropped = part, False
        owner.remember()

    def _measurable(self, owner: Owner) -> tuple[tuple[int, ...], list[Tensor], dict[int, int]]:
        """Rows and dense values, and how many zeros a sparse gradient does not store."""
        rows: list[int] = []
        tensors: list[Tensor] = []
        sparse: dict[int, int] = {}
        for row, gradient in owner.gradients():
            coo = gradient.layout != torch.strided
            if coo and gradient.device.type != "cpu":
                self._note("sparse gradients on a device are not observed: reading them would wait")
                continue
            values = quantities.local(gradient)
            if values is None:
                self._note("complex gradients are not observed")
                continue
            if coo:
                sparse[len(rows)] = gradient.numel() - values.numel()
            rows.append(row)
            tensors.append(values)
        return tuple(rows), tensors, sparse

    def _weights(self, rows: tuple[int, ...]) -> Pending | None:
        weights = [quantities.local(self.rows.parameters[i]) for i in rows]
        held = [w for w in weights if w is not None]
        if len(held) != len(rows) or len(quantities.by_device(held)) != 1:
            return None
        return self.collector.fetch(quantities.l2(held))

    def _settle(self, owner: Owner, stepped: bool | None) -> None:
        part, owner.pending = owner.pending, None
        if part is not None and not (stepped is False and part.stepped):
            part.stepped = stepped
        owner.remember()
        owner.others = self._steps

    def _refresh(self, owner: Owner) -> None:
        """A new layout when parameters were frozen, unfrozen, replaced or added."""
        optimizer = owner.optimizer() if owner.optimizer is not None else None
        if self.rows.changed() or owner.size != size_of(optimizer):
            self._renew()
            self.layout = self.rows.layout()
        elif self.order is not None and self.order.seen:
            self.layout = self.rows.layout(self.order.finish())
            self.order = None
        elif self.layout is None:
            self.layout = self.rows.layout()

    def _renew(self) -> None:
        """Walk the model again; the order of its backward pass is learnt anew."""
        if self.order is not None:
            self.order.finish()
        self.rows = Rows(self.model)
        self.order = BackwardOrder(self.rows)
        for known in self._all():
            known.assign(self.rows)

    def _replaced(self) -> bool:
        """Whether the model's trainable parameters are other objects than our rows."""
        now = [id(p) for p in self.model.parameters() if p.requires_grad]
        return now != [id(p) for p in self.rows.parameters]

    def _learning_rate(self, owner: Owner) -> None:
        optimizer = owner.optimizer() if owner.optimizer is not None else None
        if self._leads(owner) and optimizer is not None and optimizer.param_groups:
            rate = optimizer.param_groups[0].get("lr")
            if isinstance(rate, (int, float)):
                self.book.scalar("lr", float(rate), logged=False)

    def number(self, name: str, value: Tensor | float) -> None:
        """Attach a scalar of the step in progress; a device tensor is copied, not read."""
        if isinstance(value, Tensor):
            value = value.detach()
            if value.device.type == "cpu":
                value = float(value)
            else:
                pending = self.scalars.fetch(value.reshape(1).to(torch.float32))
                if pending is not None:
                    self.book.scalar(name, pending, logged=False)
                return
        self.book.scalar(name, float(value), logged=False)

    # -- who is who -----------------------------------------------------------------------

    def _all(self) -> list[Owner]:
        return [*self.owners, *([self._anyone] if self._anyone is not None else [])]

    def _leads(self, owner: Owner) -> bool:
        """Whether this optimizer counts the steps: the first one that still lives."""
        alive = (o for o in self.owners if not o.gone)
        return owner is self._anyone or owner is next(alive, self.owners[0])

    def _named(self, optimizer: Optimizer) -> Owner | None:
        for owner in self.owners:
            if owner.optimizer is not None and owner.optimizer() is optimizer:
                return owner
        return None

    def _owner(self, optimizer: Optimizer, within: Sequence[Optimizer] = ()) -> Owner | None:
        known = self._named(optimizer)
        if known is not None or optimizer in self._foreign:
            return known
        owner = Owner(len(self.owners), optimizer, self.rows)
        if not owner.rows and self._replaced():
            self._renew()
            owner.assign(self.rows)
        if not owner.rows:
            self._foreign.add(optimizer)
            return None
        outer = (self._named(o) for o in within)
        if any(o is not None and o.numbers & owner.numbers for o in outer):
            return None  # a step inside another's, over the same parameters
        heir = self._heir(owner)
        if heir is not None:
            heir.succeed(optimizer, self.rows)
            return heir
        if self._anyone is not None:  # it is the first one seen: a clip came before its step
            owner.pending, owner.token = self._anyone.pending, self._anyone.token
            self._anyone = None
        self.owners.append(owner)
        return owner

    def _heir(self, new: Owner) -> Owner | None:
        """Whose place a new optimizer takes: that of one it covers, or of one that is gone.

        Loops make their optimizer anew to change its kind or to thaw parameters.
        """
        covered = (o for o in self.owners if o.rows and o.numbers <= new.numbers)
        shared = (o for o in self.owners if o.gone and o.numbers & new.numbers)
        gone = (o for o in self.owners if o.gone)
        return next((o for held in (covered, shared, gone) for o in held), None)

    def _cleared(self, who: Optimizer | nn.Module) -> list[Owner]:
        if isinstance(who, Optimizer):
            named = [o for o in self.owners if o.optimizer is not None and o.optimizer() is who]
            return named or ([self._anyone] if self._anyone is not None else [])
        theirs = {id(p) for p in who.parameters()}
        return [o for o in self._all() if o.rows and id(o.rows[0][1]) in theirs]

    def _note(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            say(text)
            self.book.event({"kind": "note", "text": text}, urgent=False)


def _capturing_graph() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
