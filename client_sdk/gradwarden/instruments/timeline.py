"""One training thread's time, cut into phases at their boundaries; exclusive where they nest."""

from __future__ import annotations

from threading import get_ident
from typing import NamedTuple

import torch

from gradwarden.collect import done, relaxed
from gradwarden.instruments.clock import Clock, Mark

PHASES = ("data", "forward", "backward", "optimizer", "checkpoint", "evaluation", "compile")
"""Phases that have a scalar of their own, ``<phase>_seconds``."""
MOST = 512
"""Boundaries of one step that are held; earlier ones are added up as they come to be known."""
_ALIASES = dict.fromkeys(("eval", "evaluate", "validate", "validation"), "evaluation")
_ANEW = "data_start"
"""Data that is waited for because a loader begins, as at the start of an epoch."""
_ALIASES[_ANEW] = "data"
_UNSURE = "unsure"
"""A forward in eval mode with gradients: training if a backward pass follows, else evaluation."""
_HOOKED = ("forward", "optimizer")
"""Phases whose end no ``finally`` guarantees: they end with the step at the latest."""


class Cut(NamedTuple):
    """From this moment on it is this phase; "" is none of them."""

    phase: str
    mark: Mark


def ready(mark: Mark) -> bool:
    """Whether the device came past it; never waits."""
    return mark.event is None or done(mark.event)


def between(earlier: Mark, later: Mark) -> float:
    """Seconds from one moment to a later one, both ready, on the device's clock if it has one."""
    if earlier.event is None or later.event is None:
        return later.at - earlier.at
    with relaxed():
        return float(earlier.event.elapsed_time(later.event)) * 1e-3


class Step:
    """The boundaries of one finished step, from the end of the step before to its own end."""

    def __init__(
        self,
        begin: Mark,
        cuts: list[Cut],
        end: Mark,
        early: dict[str, float],
        merged: int,
        loads_anew: bool = False,
    ) -> None:
        self.begin, self.cuts, self.end, self.merged = begin, cuts, end, merged
        self.loads_anew = loads_anew
        """Whether a data loader began in it."""
        self._early = early
        self._seconds: dict[str, float] | None = None

    @property
    def on_host(self) -> bool:
        """Whether all of it is known at once, since no device is asked."""
        return self.end.event is None

    @property
    def ready(self) -> bool:
        """Whether the device came past the last boundary; never waits."""
        return self._seconds is not None or ready(self.end)

    @property
    def phases(self) -> set[str]:
        """Which of :data:`PHASES` occurred."""
        shown = {*self._early, *(cut.phase for cut in self.cuts)}
        return {_final(p) for p in shown}.intersection(PHASES)

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase, and of the whole as ``step``; only when ``ready``.

        Their sum without ``step`` is at most ``step``.
        """
        if self._seconds is None:
            found = dict(self._early)
            ends = [*(cut.mark for cut in self.cuts), self.end][1:]
            for cut, end in zip(self.cuts, ends, strict=True):
                found[cut.phase] = found.get(cut.phase, 0.0) + between(cut.mark, end)
            whole: dict[str, float] = {}
            for phase, seconds in found.items():
                if _final(phase) in PHASES:
                    whole[_final(phase)] = whole.get(_final(phase), 0.0) + max(0.0, seconds)
            whole["step"] = max(between(self.begin, self.end), sum(whole.values()))
            self._seconds = whole
        return self._seconds

    def moments(self) -> list[tuple[str, float]]:
        """(phase, seconds since ``begin``) at each boundary that is held, then ("", end)."""
        held = [(_final(c.phase), between(self.begin, c.mark)) for c in self.cuts]
        return [*held, ("", between(self.begin, self.end))]

    def origin(self) -> float:
        """The host's ``perf_counter`` at ``begin``, as the clock of the moments has it.

        A device comes past a boundary after the host did, and at once when it is idle: the
        boundary with the least delay ties the two clocks together.
        """
        held = [self.begin, *(cut.mark for cut in self.cuts), self.end]
        return max(mark.at - between(self.begin, mark) for mark in held)


def _final(phase: str) -> str:
    return "evaluation" if phase == _UNSURE else phase


class Timeline:
    """Where the training thread is now. Other threads are not heard.

    The training thread is the one that made the timeline, later the one that ended a step.
    """

    def __init__(self) -> None:
        self._clock, self._on_device = Clock(), False
        self._thread = get_ident()
        self._open: list[tuple[str, str]] = []
        self._cuts: list[Cut] = []
        self._begin: Mark | None = None
        self._early: dict[str, float] = {}
        self._merged = self._unsure = 0
        self._evaluating = self._anew = False

    @property
    def thread(self) -> int:
        """The training thread's identifier."""
        return self._thread

    def move(self, device: torch.device | None) -> None:
        """From the next boundary on, measure on this device's clock."""
        self._clock = Clock(device)
        self._on_device = device is not None and device.type == "cuda"

    @property
    def current(self) -> str | None:
        """The phase that a heartbeat may name: evaluation lasts until the next training."""
        top = next((shown for _, shown in self._open[-1:]), "")  # asked by another thread
        if self._evaluating and top in ("", "data", _UNSURE):
            return "evaluation"
        return _final(top) or None

    def enter(self, phase: str) -> None:
        """The thread begins this phase; what was going on before stands still."""
        if get_ident() != self._thread:
            return
        self._anew = self._anew or phase == _ANEW
        phase = _ALIASES.get(phase, phase)
        self._push(phase, phase)

    def enter_forward(self, gradients: bool, training: bool) -> None:
        """The root module's forward begins; ``leave("forward")`` ends it."""
        if get_ident() != self._thread:
            return
        shown = ("forward" if training else _UNSURE) if gradients else "evaluation"
        inside = {p for _, p in self._open}
        if "backward" in inside:
            shown = "backward"  # activation checkpointing runs it again
        else:
            self._evaluating = shown != "forward"
        self._push("forward", shown)

    def leave(self, phase: str) -> None:
        """The newest phase of this name ends, with all that began in it and did not end."""
        if get_ident() != self._thread:
            return
        phase = _ALIASES.get(phase, phase)
        for at in range(len(self._open) - 1, -1, -1):
            if self._open[at][0] == phase:
                before = self._open[-1][1]
                del self._open[at:]
                self._cut(before, self._open[-1][1] if self._open else "")
                return

    def close(self) -> Step | None:
        """End the step here and begin the next; None if nothing was seen of it yet."""
        other, self._thread = get_ident() != self._thread, get_ident()
        self._open = [] if other else [e for e in self._open if e[0] not in _HOOKED]
        end = self._mark()
        if end is None:
            return None
        step = None
        if self._begin is not None and not other:
            step = Step(self._begin, self._cuts, end, self._early, self._merged, self._anew)
        self._begin, self._early, self._anew = end, {}, False
        self._cuts = [Cut(self._open[-1][1], end)] if self._open else []
        self._merged = self._unsure = 0
        return step

    def _push(self, phase: str, shown: str) -> None:
        before = self._open[-1][1] if self._open else ""
        if before == "compile" or (before == "evaluation" and phase == "data"):
            shown = before
        self._open.append((phase, shown))
        self._cut(before, shown)
        if phase == "backward" and before != "backward":
            self._settle()

    def _cut(self, before: str, shown: str) -> None:
        if before == shown:
            return
        if len(self._cuts) >= MOST:
            self._add_up()
        here = self._mark() if len(self._cuts) < MOST else None
        if here is None:
            self._merged += 1
            return
        if self._begin is None:
            self._begin = here
        self._cuts.append(Cut(shown, here))

    def _mark(self) -> Mark | None:
        mark = self._clock.mark()
        if self._on_device and mark.event is None:
            return None  # a graph is being captured: the device's time stands still
        return mark

    def _settle(self) -> None:
        """A backward pass begins: if a forward in eval mode led to it, that was training."""
        cuts = self._cuts
        last = next((c.phase for c in reversed(cuts) if c.phase in ("forward", _UNSURE)), "")
        if last == _UNSURE:
            for at in range(min(self._unsure, len(cuts)), len(cuts)):
                if cuts[at].phase == _UNSURE:
                    cuts[at] = cuts[at]._replace(phase="forward")
            self._evaluating = False
        self._unsure = len(cuts)

    def _add_up(self) -> None:
        """Add up the oldest boundaries, as far as the device came past them."""
        known = 0
        cuts = self._cuts
        while known < len(cuts) - 1:
            later = cuts[known + 1].mark
            if not ready(later):
                break
            phase = _final(cuts[known].phase)
            seconds = between(cuts[known].mark, later)
            self._early[phase] = self._early.get(phase, 0.0) + seconds
            known += 1
        del cuts[:known]
        self._merged += known
        self._unsure = max(0, self._unsure - known)
