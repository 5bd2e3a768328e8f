"""Carries what gradwarden says to somebody else's tracker, on a thread that may wait for it."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from gradwarden import wire
from gradwarden.attach import Monitor
from gradwarden.errors import Faults
from gradwarden.tripwires import Matrix

_HELD = 256
"""Steps that wait for a slow tracker; more of them are left out."""


class Tracker(Protocol):
    """What a bridge does with W&B, MLflow and the like; all on the bridge's thread."""

    name: str

    def linked(self, run: str, url: str | None) -> None:
        """The run has a name, and an address once a service has answered."""

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        """A captured step: ``grad_norm`` before clipping, ``nonfinite_layers``."""

    def ended(self, numbers: Mapping[str, float], text: str) -> None:
        """The run is over: its numbers, and the findings in words."""


class Bridge:
    """Hears a run and tells a tracker. What the tracker raises is said once and stays with us."""

    def __init__(self, monitor: Monitor, tracker: Tracker) -> None:
        self._monitor, self._tracker = monitor, tracker
        self._faults = Faults()
        self._known: tuple[str, str | None] | None = None
        self._peak = math.nan
        self._work: queue.Queue[Callable[[], None]] = queue.Queue(_HELD)
        self._done = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"gradwarden-{tracker.name}", daemon=True
        )
        self._thread.start()

    def hear(self, frame: wire.Frame, layout: wire.Layout | None) -> None:
        """Take one frame with all columns; never waits."""
        self._look_up()
        if frame.values:
            told = _numbers(frame)
            if told["grad_norm"] == told["grad_norm"]:
                self._peak = max(told["grad_norm"], self._peak if self._peak >= 0 else 0.0)
            self._put(lambda: self._tracker.step(frame.step, told))

    def ended(self, status: str, numbers: Mapping[str, float], text: str, deadline: float) -> None:
        """Tell the end and wait for the tracker until the monotonic ``deadline``."""
        self._look_up()
        run, url = self._known or ("", None)
        said = {**numbers, "grad_norm_max": self._peak}
        told = {name: value for name, value in said.items() if math.isfinite(value)}
        lines = [f"run {run}: {status}", *([url] if url else []), "", text or "nothing was found"]
        self._put(lambda: self._tracker.ended(told, "\n".join(lines) + "\n"))
        self._put(self._done.set)
        self._done.wait(max(0.0, deadline - time.monotonic()))

    def _look_up(self) -> None:
        """Ask for the page's address until it is known."""
        if self._known is not None and self._known[1] is not None:
            return
        health = self._monitor.health()
        run, url = health.get("run"), health.get("url")
        if run is not None and (run, url) != self._known:
            self._known = (run, url)
            self._put(lambda: self._tracker.linked(run, url))

    def _put(self, work: Callable[[], None]) -> None:
        try:
            self._work.put_nowait(work)
        except queue.Full:
            self._faults.record(f"{self._tracker.name} is slow", queue.Full(), fatal=False)

    def _run(self) -> None:
        while not self._done.is_set():
            self._faults.quiet(self._tracker.name, self._work.get())


def connect(monitor: Monitor, tracker: Tracker) -> None:
    """Let a tracker hear a run from now on."""
    session = monitor._session
    if not session.off:
        session.companions.append(Bridge(monitor, tracker))


def mention(monitor: Monitor, name: str, address: str) -> None:
    """Show an address in the run's configuration, which is sent with the first step."""
    session = monitor._session
    config = {**(session.settings.config or {}), name: address}
    session.settings = replace(session.settings, config=config)


def _numbers(frame: wire.Frame) -> dict[str, float]:
    matrix = Matrix(frame.values)
    seen = [value for value in matrix.column("l2") if value == value]
    bad = zip(matrix.column("nan"), matrix.column("inf"), strict=True)
    count = sum(nan > 0 or inf > 0 for nan, inf in bad)
    norm = math.nan if count else math.sqrt(sum(value * value for value in seen))
    return {"grad_norm": norm, "nonfinite_layers": float(count)}
