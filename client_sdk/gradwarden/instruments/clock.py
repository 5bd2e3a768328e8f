"""Time between two moments of training, as the host or the device saw it; nobody waits for it.

On a CPU a mark is a reading of the host's clock. On a GPU it is an event in the current stream:
the time between two of them is what the device took, and is known when the later one happened.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from gradwarden.collect import Pending, done, relaxed


class Mark:
    """One moment. ``at`` is the host's ``perf_counter`` in seconds, whatever the device."""

    __slots__ = ("at", "event")

    def __init__(self, event: Any = None) -> None:
        self.event = event
        self.at = time.perf_counter()


class Clock:
    """Makes marks for one device; on anything but CUDA they are the host's time.

    A mark costs a microsecond or two and belongs to the stream that is current in the calling
    thread. Inside a graph capture an event would become part of the graph, so that marks made
    there hold the host's time alone.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device if device is not None and device.type == "cuda" else None

    def mark(self) -> Mark:
        """Now."""
        if self._device is None:
            return Mark()
        stream = torch.cuda.current_stream(self._device)
        if torch.cuda.is_current_stream_capturing():
            return Mark()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return Mark(event)


class Elapsed(Pending):
    """Seconds between two events, as a tensor of one element once both have happened."""

    __slots__ = ("_first", "_last")

    def __init__(self, first: Any, last: Any) -> None:
        super().__init__(torch.empty(0, device="cpu"))
        self._first, self._last = first, last

    @property
    def ready(self) -> bool:
        return self._tensor.numel() > 0 or (done(self._first) and done(self._last))

    @property
    def at_hand(self) -> bool:
        return False

    def peek(self) -> Tensor:
        """The seconds, [1] float64; only when ``ready``."""
        if self._tensor.numel() == 0:
            with relaxed():
                milliseconds = self._first.elapsed_time(self._last)
            self._tensor = torch.tensor([milliseconds / 1e3], dtype=torch.float64, device="cpu")
        return self._tensor

    def take(self) -> Tensor:
        """The same as :meth:`peek`: there is no slot to give back."""
        return self.peek()


def seconds(first: Mark, last: Mark) -> float | Pending:
    """What passed from ``first`` to ``last``: a number on a host, a Pending of one on a GPU.

    Both marks come from one clock. Where either was made inside a graph capture the answer is
    the host's, since the device did nothing then.
    """
    if first.event is None or last.event is None:
        return last.at - first.at
    return Elapsed(first.event, last.event)
