"""When a gradient is taken and what became of it: one monitor's view of its optimizers.

The default moment is the entry of clipping, since a clipped gradient hides what happened.
What was taken and not stepped before it was cleared is a skipped step. A gradient is told
from an older one by identity and version, never by its values.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwarden import stats, wire
from gradwarden.collect import Collector, Pending
from gradwarden.errors import Faults, say
from gradwarden.frames import FrameBook
from gradwarden.gauge import Gauge
from gradwarden.guard import Keeper
from gradwarden.kept import Kept
from gradwarden.layout import Rows
from gradwarden.owner import Owner, inner
from gradwarden.owners import Owners
from gradwarden.part import Part
from gradwarden.schedule import Schedule
from gradwarden.stats.tensors import local
from gradwarden.unseen import MOST_NAMES, declared

DEMAND = 3
"""Steps captured whatever the schedule says after a non-finite one that was not."""


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
            spent = time.perf_counter() - started
            self.book.overhead += spent
            self.spent += spent

        return guarded

    return wrap


def _nothing() -> None:
    return None


class Watcher:
    """Hears the hooks of one process on behalf of one model and decides what to take."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        book: FrameBook,
        faults: Faults,
        schedule: Schedule,
    ) -> None:
        self.book, self.faults, self.schedule = book, faults, schedule
        self.collector, self.scalars = Collector(64), Collector(256)
        self.owners = Owners(model, optimizers)
        self.layout: wire.Layout | None = None
        self._rows: Rows | None = None
        self.paused = False
        self.spent = 0.0
        """Seconds of the training thread that our hooks took so far."""
        self.ended: Callable[[Part], Mapping[str, float | Pending]] = lambda part: {}
        """Told when the leading optimizer stepped or skipped; answers scalars of that step."""
        self.keeper: Keeper | None = None
        self._gauge = Gauge(self.collector, self._note)
        self._steps = 0
        self._noted: set[str] = set()
        book.on_sick = functools.partial(schedule.demand, DEMAND)
        for owner in self.owners.all():
            owner.remember()  # gradients that exist already are not ours to report

    # -- the listener's face, see hooks.Listener ------------------------------------------

    @_guarded("capture at clipping")
    def clip_enters(self, gradients: list[Tensor], exact: bool) -> None:
        holders = self.owners.holding(gradients)
        if not holders and self.layout is None and self.owners.replaced():
            self.owners.renew()  # sharding after ``watch`` put other Parameter objects in place
            holders = self.owners.holding(gradients)
        for owner in holders:  # all verdicts on the last step first: it may end right after
            if self._abandoned(owner):
                self._settle(owner, False)
        for owner in holders:
            self._at_clip(owner)
            owner.exact = exact

    @_guarded("clip norm")
    def clip_leaves(self, gradients: list[Tensor], total: Tensor | None, most: float) -> None:
        given = {id(g) for g in gradients}
        for owner in self.owners.all():
            if owner.pending is None or not owner.count(given):
                continue
            owner.remember()
            owner.exact = True
            whole = sum(o.pending.size for o in self.owners.all() if o.pending is not None)
            if total is not None and len(gradients) == whole and type(total) is Tensor:
                self.number("clip_norm", total)
                self.number("clip_max_norm", most)  # of a device it is copied, never waited for
                self.number("clip_coefficient", (most / (total.detach() + 1e-6)).clamp_(max=1.0))
                return

    @_guarded("capture at the step")
    def step_enters(
        self, optimizer: Optimizer, closure: bool, within: Sequence[Optimizer] = ()
    ) -> None:
        owner = self.owners.find(optimizer, within)
        self._steps += 1
        if owner is None:
            return
        if not owner.scaling:
            owner.closure = closure
            if owner.pending is None and not closure and not (owner.dropped and not owner.fresh()):
                self._take(owner, "unclipped")
        part = owner.pending
        if part is not None:
            self._gauge.before_step(owner, part)
        if self.keeper is not None and not closure:
            bad = None if part is None or part.examine() is None else not part.finite
            # A scaler calls a plain optimizer with finite gradients only.
            fused = getattr(optimizer, "_step_supports_amp_scaling", False)
            bad = False if owner.scaling and not fused else bad
            self.keeper.before_step(optimizer, self.book.step_now, bad)

    @_guarded("capture at the step")
    def step_leaves(self, optimizer: Optimizer) -> None:
        owner = self.owners.of(optimizer)
        if owner is None:
            return
        if owner.pending is not None:
            self._gauge.after_step(owner.pending)
        if owner.scaling:
            return
        applied = self.keeper is None or self.keeper.after_step(optimizer)
        if owner.closure and owner.pending is None:
            self._take(owner, "unclipped")
        owner.closure = False
        self._settle(owner, applied)
        if not applied:
            return
        for other in self.owners.all():
            if other.pending is not None and other.numbers & owner.numbers:
                other.pending.stepped = True  # its gradients, or some of them, were applied

    @_guarded("loss scaler")
    def scaler_enters(self, scaler: Any, optimizer: Optimizer) -> None:
        owner = self.owners.find(inner(optimizer))
        if owner is None or not scaler.is_enabled():
            return
        owner.scaling = True
        scale = getattr(scaler, "_scale", None)
        scaled = scaler._per_optimizer_states[id(optimizer)]["stage"].name == "READY"
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if owner.pending is None and (fused or not scaled):
            self._take(owner, "unclipped")  # else when the scaler has divided, see ``unscaled``
        if scale is not None and owner.pending is not None and scaled:
            owner.pending.scale = self.scalars.fetch(scale.reshape(1).clone())

    @_guarded("loss scaler")
    def unscaled(self, optimizer: Optimizer) -> None:
        owner = self.owners.of(inner(optimizer))
        if owner is not None and owner.scaling and owner.pending is None:
            self._take(owner, "unclipped")

    @_guarded("loss scaler")
    def scaler_leaves(self, scaler: Any, optimizer: Optimizer) -> None:
        owner = self.owners.of(inner(optimizer))
        if owner is None or not owner.scaling:
            return
        owner.scaling = False
        scale = getattr(scaler, "_scale", None)
        if scale is not None:
            self.number("loss_scale", scale)
        found = list(scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values())
        part = owner.pending
        if part is not None and found:
            total = torch.stack([f.to(found[0].device, non_blocking=True) for f in found]).sum()
            part.found_inf = self.scalars.fetch(total.reshape(1))
        self._settle(owner, None if found else True)

    @_guarded("skipped steps")
    def zero_enters(self, who: Optimizer | nn.Module) -> None:
        for owner in self.owners.cleared_by(who):
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
        for owner in self.owners.cleared_by(who):
            if not (owner.closure or owner.scaling):
                owner.remember()
                owner.kept.cleared()
                owner.others = self._steps

    def stop_if_halted(self) -> None:
        """The one place that may raise into the loop: ``Guard(raise_on_halt=True)`` asks for it."""
        if self.keeper is not None:
            self.keeper.raise_if_halted()

    # -- decisions ------------------------------------------------------------------------

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
        tensors = [t for t in (local(g) for _, g in owner.gradients()) if t is not None]
        if any(t.device.type != "cpu" for t in tensors):
            return True
        return bool(tensors) and bool(stats.nonfinite(tensors))

    def _take(self, owner: Owner, kind: wire.Capture, instead_of: Part | None = None) -> None:
        self._refresh(owner)
        assert self.layout is not None
        leads = self.owners.leads(owner)
        again = instead_of is not None
        if not again and self.owners.begins(owner):
            self.book.turn()
        step = self.book.step_now if again else self.book.upcoming(owner.key, leads)
        part = self._gauge.take(owner, self.layout, self.schedule.plan(step))
        if part is None:
            return
        self.owners.took(owner)
        if instead_of is not None:
            self.book.replace(owner.key, instead_of, part)
        else:
            self.book.capture(owner.key, leads, part, kind)
            if leads:
                self._learning_rate(owner)
        if not again:
            self.faults.quiet("no gradient", self._tell_unseen, owner)
            self.faults.quiet("zeroing", self._tell_kept, owner)
        owner.pending, owner.dropped = part, False
        owner.remember()

    def _settle(self, owner: Owner, stepped: bool | None) -> None:
        part, owner.pending = owner.pending, None
        owner.remember()
        if stepped is not False and not owner.closure:
            owner.kept.consumed(owner.token)
        owner.others = self._steps
        if part is None:
            return
        if not (stepped is False and part.stepped):
            part.stepped = stepped
        if self.owners.leads(owner):
            for name, value in self.ended(part).items():
                self.book.scalar(name, value, logged=False)

    def _tell_unseen(self, owner: Owner) -> None:
        """Say which of its parameters no gradient reached, once that can be said."""
        names = owner.unseen.took()
        if names is not None:
            event = {
                "kind": "no_gradient",
                "optimizer": owner.label,
                "number": owner.key,
                "steps": owner.unseen.steps,
                "count": len(names),
                "parameters": names[:MOST_NAMES],
                "declared": bool(names) and declared(self.owners.model),
            }
            self.book.event(event, urgent=False)

    def _tell_kept(self, owner: Owner) -> None:
        """Say when steps begin with gradients that were consumed before, and when they do not."""
        steps = owner.kept.taken()
        if steps is not None:
            event = {"kind": "gradients_kept", "optimizer": owner.label, "number": owner.key}
            self.book.event({**event, "steps": steps}, urgent=False)

    def _refresh(self, owner: Owner) -> None:
        """A new layout when parameters were frozen, unfrozen, replaced or added."""
        owners = self.owners
        if owners.stale(owner):
            owners.renew()
        if owners.rows is not self._rows:
            self._rows, self.layout = owners.rows, None
        if owners.order is not None and owners.order.seen:
            self.layout = owners.rows.layout(owners.order.finish())
            owners.order = None
        elif self.layout is None:
            self.layout = owners.rows.layout()

    def _learning_rate(self, owner: Owner) -> None:
        optimizer = owner.optimizer() if owner.optimizer is not None else None
        if optimizer is not None and optimizer.param_groups:
            rate = optimizer.param_groups[0].get("lr")
            if isinstance(rate, (int, float, Tensor)):
                self.number("lr", rate)

    def kept(self) -> list[Kept]:
        """What each optimizer's consumed gradients have come to."""
        return [owner.kept for owner in self.owners.all()]

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

    def _note(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            say(text)
            self.book.event({"kind": "note", "text": text}, urgent=False)


def _capturing_graph() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]
