"""A trace of every n-th step: its phases as OpenTelemetry spans, made beside the training.

Off unless ``spans=n`` asks for it: a process may have a tracer provider for other reasons, and
a trace of every step would be news to whoever pays for it. Spans go to the provider that the
process has set; none is set here.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gradwarden.collect import Pending
from gradwarden.errors import Faults
from gradwarden.instruments.timeline import Step

NAME = "spans"
WAITING = 64
"""Steps that may wait for the device or the exporter; more of them are dropped and counted."""
PATIENCE = 30.0
"""Seconds after which a device that has not come past a step is waited for no more."""
_POLL = 0.01
_DEADLINE = 2.0
"""Seconds that the end of the run may wait for the last spans."""

Value = str | int
Describe = Callable[[], Mapping[str, Value]]


class _Sample(NamedTuple):
    step: Step
    number: int
    attributes: Mapping[str, Value]
    unix_ns: int
    """What to add to ``perf_counter`` nanoseconds for nanoseconds since the epoch."""


class Spans:
    """Hands every n-th finished step to a thread that makes one trace of it.

    The root span is called ``step``; its attributes are run, rank, step and attempt. Its
    children are the phases, each as often as it occurred; where the device has a clock of its
    own the times are the device's.
    """

    name = NAME

    def __init__(
        self, every: int, number: Callable[[], int], describe: Describe, faults: Faults
    ) -> None:
        """``number`` tells the step that just ended, ``describe`` run, rank and attempt."""
        self._every, self._number, self._describe = every, number, describe
        self._faults = faults
        self._queue: queue.Queue[_Sample | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._over = False
        self.dropped = 0
        """Sampled steps that found the queue full, or whose device never came past them."""

    def start(self) -> None:
        """Start the thread, unless there is nothing to do or nothing to do it with."""
        if self._every and _api() is not None:
            self._thread = threading.Thread(target=self._run, name="gradwarden-spans", daemon=True)
            self._thread.start()

    def hear(self, step: Step) -> None:
        """A step ended; called on the training thread, never raises."""
        if self._thread is not None:
            self._faults.quiet(NAME, self._sample, step)

    def step_ended(self) -> Mapping[str, float | Pending]:
        """No scalars: what is sampled comes through :meth:`hear`."""
        return {}

    def stop(self) -> None:
        """Let the thread finish what waits, within two seconds."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with contextlib.suppress(queue.Full):  # then it is stuck in an exporter
            self._queue.put_nowait(None)
            thread.join(_DEADLINE)
        self._over = True

    def status(self) -> str:
        """``on``, or what is missing; asked again later it may have come."""
        if not self._every:
            return "off: spans=0"
        api = _api()
        if api is None:
            return "off: OpenTelemetry is not installed; pip install 'gradwarden[otel]'"
        if isinstance(api.get_tracer_provider(), api.ProxyTracerProvider):
            return "waiting: the process has set no tracer provider"
        return f"on, every {self._every} steps"

    def _sample(self, step: Step) -> None:
        number = self._number()
        if number % self._every:
            return
        unix_ns = time.time_ns() - time.perf_counter_ns()
        try:
            self._queue.put_nowait(_Sample(step, number, self._describe(), unix_ns))
        except queue.Full:
            self.dropped += 1

    def _run(self) -> None:
        while (sample := self._queue.get()) is not None and not self._over:
            self._faults.quiet(NAME, self._finish, sample)

    def _finish(self, sample: _Sample) -> None:
        deadline = time.monotonic() + PATIENCE
        while not sample.step.ready:
            if time.monotonic() > deadline:
                self.dropped += 1
                return
            time.sleep(_POLL)
        export(sample.step, sample.unix_ns, {**sample.attributes, "step": sample.number})


@functools.cache
def _api() -> Any:
    """``opentelemetry.trace``, imported when first wanted; None without the ``[otel]`` extra."""
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    return trace


def export(step: Step, unix_ns: int, attributes: Mapping[str, Any]) -> None:
    """One trace of a step that is ready; ``unix_ns`` turns ``perf_counter_ns`` into the epoch's."""
    from opentelemetry.context import Context

    api = _api()
    origin = round(step.origin() * 1e9) + unix_ns
    moments = [(phase, origin + round(seconds * 1e9)) for phase, seconds in step.moments()]
    tracer = api.get_tracer("gradwarden")
    extra = {"merged_boundaries": step.merged} if step.merged else {}
    root = tracer.start_span(
        "step", Context(), start_time=origin, attributes={**attributes, **extra}
    )
    within = api.set_span_in_context(root, Context())
    for (phase, begin), (_, end) in itertools.pairwise(moments):
        if phase:
            tracer.start_span(phase, within, start_time=begin).end(end)
    root.end(moments[-1][1])
