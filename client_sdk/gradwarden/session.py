"""One watched run in this process: the parts, wired, and what the monitor's verbs do."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwarden import courier, facts, hooks, lifecycle, stats, verification
from gradwarden.agreed import Agreed
from gradwarden.cadence import Cadence
from gradwarden.capture import Watcher
from gradwarden.checkpoint import Checkpoints
from gradwarden.collect import Collector
from gradwarden.errors import Faults
from gradwarden.frames import FrameBook
from gradwarden.guard import Guard, Keeper, Ledger, Saved
from gradwarden.guard.flags import of_tensors
from gradwarden.identity import Identity, Resolver, place, ulid
from gradwarden.instruments.panel import Panel
from gradwarden.narrator import Narrator
from gradwarden.orders import Orders
from gradwarden.outbox import Losses, Outbox
from gradwarden.pump import Outlet, Pump
from gradwarden.schedule import Schedule
from gradwarden.sender import Sender
from gradwarden.settings import Settings
from gradwarden.spool import Spool, spool_name
from gradwarden.standstill import Standstill
from gradwarden.throttle import Throttle
from gradwarden.transport import HttpTransport
from gradwarden.voice import Voice

P = ParamSpec("P")
R = TypeVar("R")
PATIENCE = 30.0
"""Seconds before a run that has not stepped yet announces itself."""
HEALTHY_AFTER = 200
"""Clean steps after which a checkpoint counts as healthy where no guard says otherwise."""
SEALING = 1.0
"""Seconds that sealing may take whatever the deadline: unsealed frames cannot be spooled."""
_STATUSES = ("finished", "failed", "cancelled", "preempted")


class Session:
    """Owns the hooks, the book, the two threads and the end of one run."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        settings: Settings,
        number: int,
        guard: Guard | None = None,
    ) -> None:
        self.settings = settings
        self.off = settings.disabled
        self._faults, self._losses = Faults(), Losses()
        self._book = FrameBook(settings.start_step)
        self.checkpoints = Checkpoints(
            self._saved,
            self._faults,
            self._poisoned,
            lambda: not (self.off or self._over.is_set()),
        )
        self._ledger = Ledger(guard.healthy_after_steps if guard is not None else HEALTHY_AFTER)
        self.identity: Identity | None = None
        self._over = threading.Event()
        self._expected: tuple[str, dict[str, Any]] | None = None
        self.keeper: Keeper | None = None
        self.narrator = Narrator(self._book, self._faults)
        if self.off:
            return
        self._model = type(getattr(model, "module", model)).__name__
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._begun, self._begun_ns = time.monotonic(), time.time_ns()
        schedule = Schedule(settings.preset, settings.every, settings.early, settings.start_step)
        schedule.replicas = place().world > 1  # until it is known better
        self._watcher = Watcher(model, optimizers, self._book, self._faults, schedule)
        kept = self._watcher.kept
        self._panel = Panel(model, settings, self._book, self._faults, schedule, self._who, kept)
        self.narrator.anatomy = self._panel.anatomy
        self._cadence = Cadence(
            self._watcher, self._book, self._panel, self._faults, self._ledger, self._event
        )
        self._resolver = Resolver(settings.run, settings.group, number)
        self._voice = Voice(settings, self._faults, lambda: self.identity, self._reached)
        self.companions = self._voice.companions
        self._spool = Spool(
            settings.spool_root, f"{os.getpid()}.{ulid()}", self._losses, settings.spool_bytes
        )
        outbox = Outbox(self._losses, self._spool.append)
        url = settings.url
        self._sender = Sender(
            outbox,
            self._spool,
            HttpTransport(url, settings.token, settings.project) if url else None,
            self._losses,
            self._faults,
            lambda kind, args: self._orders.obey(kind, args),
            self._beat,
            self._orphans,
            lambda seconds: self._pump.gather(seconds),
        )
        self._pump = Pump(
            self._book,
            Outlet(outbox, self._spool),
            self._losses,
            self._faults,
            self._identify,
            self._start_record,
            self._voice.hear,
        )
        self._orders = Orders(self._watcher, self._pump, self._event)
        if guard is not None:
            self._engage(guard, model, optimizers)
        hooks.add(self._watcher)
        self._panel.start()
        self._voice.hooks = hooks.found
        where = self._faults.quiet("place", facts.where) or {}
        self._event({"kind": "start", "place": where, **self._found()})
        self._agreed = Agreed(f"gradwarden/stride/{number}")
        self._standstill = Standstill(
            lambda: self._book.step_now,
            lambda: self._panel.anatomy.thread,
            lambda: self.narrator.phase or self._panel.anatomy.current,
            self._panel.collective,
            self._event,
        )
        self._pump.chores = self._chores
        self._pump.start()
        self._sender.start()
        courier.LIVE.add(self._resolver.nonce)
        lifecycle.enlist(self)

    def quietly(
        self, feature: str, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R | None:
        """Run one verb of the monitor so that it can neither raise nor act when off."""
        over = self._over.is_set() and feature != "finish"
        if (self.off or over) and feature != "health":
            return None
        return self._faults.quiet(feature, work, *args, **kwargs)

    def _engage(self, guard: Guard, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Put the guard on duty; the one part of ``watch`` that talks to the other ranks."""
        keeper = Keeper(
            guard, model, optimizers, self._faults, self._event, self._book.rewind, self._ledger
        )
        keeper.bind()
        self.keeper = self._watcher.keeper = self._cadence.keeper = keeper

    # -- verbs ----------------------------------------------------------------------------

    def capture(self, steps: int) -> None:
        self._watcher.schedule.demand(max(1, int(steps)))

    def health(self) -> dict[str, Any]:
        if self.off:
            return {"off": True, "captured": 0, "dropped": {}}
        post = self._sender.courier
        return {
            "off": False,
            "run": self.identity.run if self.identity else None,
            "captured": self._book.captures,
            "frames": self._pump.frames,
            "acked": post.acked if post else 0,
            "spooled": self._spool.held,
            "spool": str(self._spool.directory),
            "dropped": self._losses.counts(),
            "device_ring_full": sum(ring.dropped for ring in self._rings()),
            "pinned_bytes": sum(ring.pinned_bytes for ring in self._rings()),
            "overhead_us_p50": 1e6 * self._voice.cost(),
            "background_cpu_ratio": self._background(),
            "capture_stride": self._watcher.schedule.stride(self._book.step_now),
            "disabled": self._faults.counts,
            "trouble": post.trouble if post else "no server configured",
            "url": post.url if post else None,
            **self._found(),
        }

    def _rings(self) -> list[Collector]:
        return [self._watcher.collector, self._watcher.scalars, self.narrator.collector]

    def _found(self) -> dict[str, Any]:
        """What there is to listen to and to measure with here."""
        return {
            "hooks": list(hooks.found),
            "statistics": stats.describe(self._device),
            "instruments": self._panel.status(),
            **({"guard": self.keeper.status()} if self.keeper is not None else {}),
        }

    def _background(self) -> float:
        """CPU seconds of our threads per second: the most that they can keep the interpreter."""
        seconds = self._pump.cpu_seconds + self._sender.cpu_seconds
        return seconds / max(1e-9, time.monotonic() - self._begun)

    def unwatch(self) -> None:
        hooks.remove(self._watcher)
        self._watcher.paused = True
        self._panel.stop()
        if self.keeper is not None:
            self.keeper.stop()
        if self._watcher.owners.order is not None:
            self._watcher.owners.order.finish()

    # -- the end --------------------------------------------------------------------------

    def expect(self, status: str, details: dict[str, Any]) -> None:
        """The process is about to end like this; ``finish`` will say so."""
        if self._expected is None:
            self._expected = (status, details)

    def leave(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None or (issubclass(kind, SystemExit) and error.code in (None, 0)):
            self.finish()
        elif issubclass(kind, KeyboardInterrupt):
            self.finish("cancelled")
        else:
            self.expect("failed", lifecycle.failure(kind, error, trace))
            self.finish()

    def finish(self, status: str = "finished", seconds: float | None = None) -> None:
        """Seal and deliver what is left within the deadline; the rest is spooled, and said."""
        if self.off or self._over.is_set():
            return
        self._over.set()
        details: dict[str, Any] = {}
        if self._expected is not None and status == "finished":
            status, details = self._expected
        if status not in _STATUSES:
            details, status = {"error": f"status {status!r}"}, "finished"
        self._faults.quiet("unwatch", self.unwatch)
        left = self.settings.exit_seconds if seconds is None else seconds
        deadline = time.monotonic() + left
        self.checkpoints.wait(time.monotonic() + left / 2)
        if self._losses.total:
            self._losses_event()
        self._event({"kind": "finish", "status": status, **details})
        self._book.close()
        self._pump.stop(max(deadline - left / 4, time.monotonic() + SEALING))
        self._voice.part(status, self._losses, deadline - left / 4)
        self._sender.stop(deadline)
        self._voice.wait(deadline)
        self._voice.report(self._losses, self._spool)
        self._voice.diagnose(self._spool, deadline)
        courier.LIVE.discard(self._resolver.nonce)
        lifecycle.release(self)

    def forget(self) -> None:
        """In a forked child: off for good, without touching what belongs to the parent."""
        self.off = True
        self._watcher.paused = True
        self._over.set()
        self._spool.forget()
        self._panel.anatomy.forget()
        if self.keeper is not None:
            self.keeper.forget()

    def _losses_event(self) -> None:
        for reason, count in self._losses.counts().items():
            self._event({"kind": "dropped", "frames": count, "reason": reason})

    # -- what the threads ask -------------------------------------------------------------

    def _identify(self) -> Identity | None:
        layout = self._watcher.layout
        if self._cadence.throttle is None and self.settings.throttle and place().rank == 0:
            self._cadence.throttle = Throttle()
        alone = place().world == 1 and time.monotonic() - self._begun > PATIENCE
        if layout is None and not (alone or self._over.is_set()):
            return None
        self.identity = self._resolver.look(layout, self._watcher.owners.rows.cell)
        if self.identity is not None:
            self._watcher.schedule.replicas = self.identity.has_replicas
            name = f"{self.identity.run}.r{self.identity.rank}.{self.identity.nonce}"
            self._spool.rename(name)
        return self.identity

    def last_healthy_checkpoint(self) -> Saved | None:
        return self._ledger.last_healthy()

    def _saved(self, event: dict[str, Any]) -> None:
        """A checkpoint was saved, or was not: an event, and an entry of the ledger."""
        if event["ok"]:
            step, path = event.get("saved_step", self._book.step_now), Path(event["path"])
            self._ledger.saved(step, path, event["finite"])
            self._ledger.described(path, event["sha256"], event["bytes"], event["modified_ns"])
        self._event(event)

    def verify_checkpoint(self, path: str | os.PathLike[str]) -> bool | None:
        event = verification.look(Path(path), self._ledger.at(Path(path)))
        self._event(event)
        verified: bool | None = event["verified"]
        return verified if event["ok"] else False

    def _poisoned(self) -> Tensor | bool:
        return of_tensors(self._watcher.owners.model.parameters())

    def _chores(self) -> None:
        self._agree()
        self._standstill.chore()

    def _agree(self) -> None:
        """Ranks capture the same steps: rank 0 decides how many."""
        heard = self._agreed.exchange(self._watcher.schedule.exponent)
        if heard is not None:
            self._cadence.apply(heard)

    def _start_record(self, identity: Identity, rollback: int, first_step: int) -> dict[str, Any]:
        return facts.start_record(
            self.settings, identity, rollback, first_step, self._model, self._device, self._begun_ns
        )

    def _beat(self) -> dict[str, Any] | None:
        identity = self.identity
        if identity is None:
            return None
        return {
            "run": identity.run,
            "attempt": identity.attempt_after(self._book.attempt),
            "rank": identity.rank,
            "nonce": identity.nonce,
            "step": max(0, self._book.step_now),
            "phase": self.narrator.phase or self._found_phase(),
            "sent_ns": time.time_ns(),
        }

    def _found_phase(self) -> str | None:
        """A phase that was found without the user and explains why steps wait."""
        phase = self._panel.anatomy.current
        return phase if phase in ("evaluation", "checkpoint", "compile") else None

    def _who(self) -> dict[str, Any]:
        identity = self.identity
        if identity is None:
            return {}
        attempt = identity.attempt_after(self._book.attempt)
        return {"run": identity.run, "rank": identity.rank, "attempt": attempt}

    def page(self) -> str | None:
        """The address of this run's page, once the service told it."""
        post = self._sender.courier
        return None if post is None else post.url

    def _reached(self) -> bool:
        """Whether nothing speaks against it that the service hears us."""
        post = self._sender.courier
        return post is not None and post.trouble is None

    def _orphans(self) -> list[Path]:
        """Spools that a killed process of this run and rank left under the same root."""
        identity = self.identity
        root = self.settings.spool_root
        if identity is None or not root.is_dir():
            return []
        mine = self._spool.directory
        stem = spool_name(f"{identity.run}.r{identity.rank}.")
        return sorted(d for d in root.iterdir() if d.name.startswith(stem) and d != mine)

    def _event(self, event: dict[str, Any]) -> None:
        self._book.event(event)
