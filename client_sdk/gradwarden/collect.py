"""From the device to the host without ever waiting: one copy, one event, read when done."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import weakref
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradwarden.wire import HISTOGRAM, QUANTITIES

WIDTH = len(QUANTITIES) + len(HISTOGRAM)
"""Values of one row of a measured matrix; a checksum may follow them."""
_LEAST = 64
"""Bytes of the smallest slot: one cache line."""
_RELAXED = 2
"""``cudaStreamCaptureModeRelaxed``."""


class Reading(NamedTuple):
    """What a host reads of one measured group of tensors, as views of the memory it came in."""

    matrix: Tensor
    """[n, 22] float64: QUANTITIES, then HISTOGRAM; NaN where not measured."""
    checksums: Tensor | None
    """[n] int64, or None where the engine takes none."""


def reading(values: Tensor) -> Reading:
    """The host tensor of ``stats.measure``, either kind of it, as a :class:`Reading`.

    int64 [n, 23] holds the bits of 22 float64 and a checksum; float [n, 22] has no checksum.

    Raises:
        ValueError: it is neither.
    """
    if values.dtype == torch.int64 and values.dim() == 2 and values.shape[1] == WIDTH + 1:
        return Reading(values[:, :WIDTH].view(torch.float64), values[:, WIDTH])
    if values.is_floating_point() and values.dim() == 2 and values.shape[1] == WIDTH:
        return Reading(values.to(torch.float64), None)
    raise ValueError(f"expected [n, {WIDTH + 1}] int64 or [n, {WIDTH}] float, got {values.dtype}")


class Pending:
    """Values on their way to the host. ``ready`` never blocks; read only what is ready."""

    __slots__ = ("_event", "_free", "_tensor")

    def __init__(
        self, tensor: Tensor, event: Any = None, free: Callable[[], None] | None = None
    ) -> None:
        self._tensor, self._event, self._free = tensor, event, free

    @property
    def ready(self) -> bool:
        event = self._event  # another thread may take the values meanwhile
        return event is None or done(event)

    @property
    def at_hand(self) -> bool:
        """Whether the values were on the host from the first, so that a look costs nothing."""
        return self._event is None and self._free is None

    def peek(self) -> Tensor:
        """The values while they are still held; only when ``ready``."""
        return self._tensor

    def take(self) -> Tensor:
        """The values, as memory of their own; the pinned slot goes back to the ring."""
        if self._free is None:
            return self._tensor
        self._tensor = self._tensor.clone()
        self._release()
        return self._tensor

    def __del__(self) -> None:
        # Superseded values are never read; the ring looks at the slot's event before it is used.
        self._release()

    def _release(self) -> None:
        free, self._free = self._free, None
        if free is not None:
            self._event = None  # it belongs to the slot
            free()


class _Slab:
    """One pinned allocation, cut into slots."""

    def __init__(self, size: int, slots: int) -> None:
        self.size, self.bytes = size, size * slots
        self.memory = torch.empty(
            self.bytes, dtype=torch.uint8, pin_memory=torch.cuda.is_available()
        )


class _Slot:
    """A place for one sample, and the event of the last copy into it."""

    __slots__ = ("event", "memory", "slab")

    def __init__(self, slab: _Slab, number: int) -> None:
        self.slab = slab
        self.memory = slab.memory[number * slab.size : (number + 1) * slab.size]
        self.event: Any = None


class Collector:
    """Copies small results to the host through a ring of pinned slots.

    A host tensor is taken as it is. When all slots are still on their way the sample is
    dropped and counted, since waiting would cost the training loop. The ring is pinned in one
    piece, at its first sample or by :meth:`reserve`; it has ``slots`` slots, fewer where they
    would exceed ``limit`` bytes, but at least two.
    """

    def __init__(self, slots: int, limit: int = 32 << 20) -> None:
        self._slots, self._limit = slots, limit
        self._lock = threading.RLock()
        self._idle: list[_Slot] = []
        self._slab: _Slab | None = None
        self._slabs: weakref.WeakSet[_Slab] = weakref.WeakSet()
        self.dropped = 0

    @property
    def pinned_bytes(self) -> int:
        """Page-locked host memory held now: the ring, and old ones whose samples are unread."""
        return sum(slab.bytes for slab in list(self._slabs))

    def reserve(self, size: int) -> None:
        """Pin a ring whose slots hold ``size`` bytes, unless the present one does."""
        with self._lock:
            if self._slab is not None and self._slab.size >= size:
                return
            # Powers of two, since that is what torch pins anyway: a layout that grows by a
            # parameter then still fits.
            size = max(_LEAST, 1 << (size - 1).bit_length() if size else 0)
            slots = max(2, min(self._slots, self._limit // size))
            self._slab = slab = _Slab(size, 1 << (slots.bit_length() - 1))
            self._slabs.add(slab)
            self._idle = [_Slot(slab, k) for k in range(slab.bytes // size)]

    def fetch(self, tensor: Tensor) -> Pending | None:
        """Start the copy of ``tensor``, of any dtype, to the host; None means dropped."""
        tensor = tensor.detach() if tensor.requires_grad else tensor
        if tensor.device.type == "cpu":
            return Pending(tensor)
        if not tensor.is_cuda:  # no event would tell when the copy is done
            return Pending(tensor.to("cpu"))
        size = tensor.numel() * tensor.element_size()
        slot = self._take(size)
        if slot is None:
            self.dropped += 1
            return None
        view = slot.memory[:size].view(tensor.dtype).view(tensor.shape)
        view.copy_(tensor, non_blocking=True)
        slot.event = slot.event or torch.cuda.Event()  # type: ignore[no-untyped-call]
        slot.event.record(torch.cuda.current_stream(tensor.device))
        return Pending(view, slot.event, lambda: self._give_back(slot))

    def _take(self, size: int) -> _Slot | None:
        with self._lock:
            if self._slab is None or self._slab.size < size:
                self.reserve(size)
            for i, slot in enumerate(self._idle):
                if slot.event is None or done(slot.event):
                    return self._idle.pop(i)
            return None

    def _give_back(self, slot: _Slot) -> None:
        with self._lock:
            if slot.slab is self._slab:
                self._idle.append(slot)


def send(values: Tensor, device: torch.device) -> Tensor:
    """A copy of a small host tensor on a device, in its stream's order and never waited for."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)  # torch keeps it until it is read


def done(event: Any) -> bool:
    """Whether a CUDA event has happened; no graph capture minds the question."""
    with relaxed():
        return bool(event.query())


@contextmanager
def relaxed() -> Iterator[None]:
    """Events may be asked while some thread captures a graph.

    A plain query by any other thread would be refused meanwhile, and the user's capture would
    fail with it.
    """
    exchange = _exchange(torch.version.cuda)
    if exchange is None:
        yield
        return
    mode = ctypes.c_int(_RELAXED)
    exchange(ctypes.byref(mode))
    try:
        yield
    finally:
        exchange(ctypes.byref(mode))


@cache
def _exchange(version: str | None) -> Any:
    """``cudaThreadExchangeStreamCaptureMode`` of the very runtime that torch has loaded."""
    if version is None or not hasattr(os, "RTLD_NOLOAD"):
        return None
    try:  # PyDLL: to let go of the interpreter for a microsecond may cost milliseconds
        name = f"libcudart.so.{version.partition('.')[0]}"
        library = ctypes.PyDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        return library.cudaThreadExchangeStreamCaptureMode
    except (OSError, AttributeError):
        return None


def to_bytes(matrix: Tensor) -> bytes:
    """Little-endian float32 bytes of a host matrix, without numpy."""
    return _raw(matrix.to(torch.float32), "I")


def to_words(matrix: Tensor) -> bytes:
    """Little-endian 64-bit words of an int64 host matrix, without numpy."""
    return _raw(matrix.to(torch.int64), "Q")


def _raw(matrix: Tensor, code: str) -> bytes:
    matrix = matrix.contiguous()
    size = matrix.numel() * matrix.element_size()
    raw = ctypes.string_at(matrix.data_ptr(), size) if size else b""
    if sys.byteorder == "big":  # pragma: no cover - no such host at hand
        words = array(code, raw)
        words.byteswap()
        raw = words.tobytes()
    return raw
