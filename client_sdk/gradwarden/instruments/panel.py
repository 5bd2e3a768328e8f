"""All instruments of one watched model, as one: each can fail without the others noticing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from gradwarden.collect import Pending
from gradwarden.errors import Faults
from gradwarden.frames import FrameBook
from gradwarden.instruments import Instrument
from gradwarden.instruments.activations import Activations
from gradwarden.instruments.anatomy import Anatomy
from gradwarden.instruments.communication import Communication
from gradwarden.instruments.gpu import Gpu
from gradwarden.instruments.manner import Manner
from gradwarden.instruments.modes import EvalMode
from gradwarden.instruments.spans import Spans
from gradwarden.instruments.zeroing import Zeroing
from gradwarden.kept import Kept
from gradwarden.schedule import Schedule
from gradwarden.settings import Settings


class Panel:
    """Builds, starts, asks and stops the instruments."""

    def __init__(
        self,
        model: nn.Module,
        settings: Settings,
        book: FrameBook,
        faults: Faults,
        schedule: Schedule,
        describe: Callable[[], Mapping[str, Any]],
        kept: Callable[[], Iterable[Kept]],
    ) -> None:
        """``describe`` tells run, rank and attempt, for traces; ``kept`` each optimizer's own.

        Raises:
            ConfigurationError: ``settings.activations`` names no module, or too many.
        """
        self._faults, self._over = faults, False
        self.anatomy = Anatomy(model, book, faults)
        spans = Spans(settings.spans, lambda: book.step_now, describe, faults)
        self.anatomy.on_step = spans.hear
        communication = self._communication = Communication(model, settings.comm, book, faults)
        self._all: list[Instrument] = [self.anatomy, spans, communication, Gpu(model)]
        self._all += [EvalMode(model, book), Manner(self.anatomy, book), Zeroing(kept, faults)]
        if settings.activations:

            def captures() -> bool:
                return schedule.plan(book.step_now + 1).capture

            self._all.append(Activations(model, settings.activations, faults, captures, book))

    def start(self) -> None:
        """Start each; one that cannot is off, and said to be."""
        for instrument in self._all:
            self._faults.quiet(instrument.name, instrument.start)

    def step_ended(self) -> dict[str, float | Pending]:
        """The scalars of the step that just ended."""
        scalars: dict[str, float | Pending] = {}
        for instrument in self._all:
            scalars.update(self._faults.quiet(instrument.name, instrument.step_ended) or {})
        return scalars

    def collective(self) -> str:
        """The collective that did not end yet, as far as one is heard; else nothing."""
        return self._faults.quiet("collective", self._communication.pending) or ""

    def stop(self) -> None:
        """Undo what they installed."""
        self._over = True
        for instrument in self._all:
            self._faults.quiet(f"{instrument.name} stop", instrument.stop)  # also after a failure

    def status(self) -> dict[str, str]:
        """``on`` or why not, by instrument."""
        if self._over:
            return {i.name: "off: the watch is over" for i in self._all}
        return {
            i.name: "off: it failed" if self._faults.is_off(i.name) else i.status()
            for i in self._all
        }
