"""From the device to the host without ever waiting: one copy, one event, read when done."""

from __future__ import annotations

import ctypes
import sys
import threading
from array import array
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Pending:
    """Values on their way to the host. ``ready`` never blocks; read only what is ready."""

    __slots__ = ("_event", "_free", "_tensor")

    def __init__(
        self, tensor: Tensor, event: Any = None, free: Callable[[], None] | None = None
    ) -> None:
        self._tensor, self._event, self._free = tensor, event, free

    @property
    def ready(self) -> bool:
        return self._event is None or bool(self._event.query())

    def peek(self) -> Tensor:
        """The values while they are still held; only when ``ready``."""
        return self._tensor

    def take(self) -> Tensor:
        """The values, as memory of their own; the pinned slot goes back to the ring."""
        if self._free is None:
            return self._tensor
        tensor = self._tensor.clone()
        self._release()
        return tensor

    def __del__(self) -> None:
        # Superseded values are never read. The next copy into their slot queues behind theirs.
        self._release()

    def _release(self) -> None:
        free, self._free = self._free, None
        if free is not None:
            free()


class Collector:
    """Copies small results to the host through a ring of pinned slots.

    A host tensor is taken as it is. When all slots of a device are still on their way the
    sample is dropped and counted, since waiting would cost the training loop.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._lock = threading.RLock()
        self._idle: list[Tensor] = []
        self._made = 0
        self.dropped = 0

    def fetch(self, tensor: Tensor) -> Pending | None:
        """Start the copy of ``tensor`` (float32 or float64) to the host; None means dropped."""
        tensor = tensor.detach()
        if tensor.device.type == "cpu":
            return Pending(tensor)
        slot = self._slot(tensor.numel())
        if slot is None:
            self.dropped += 1
            return None
        view = slot[: tensor.numel()].view(tensor.shape)
        view.copy_(tensor, non_blocking=tensor.is_cuda)  # elsewhere no event would tell
        event = torch.cuda.Event() if tensor.is_cuda else None  # type: ignore[no-untyped-call]
        if event is not None:
            event.record(torch.cuda.current_stream(tensor.device))
        return Pending(view, event, lambda: self._give_back(slot))

    def _slot(self, size: int) -> Tensor | None:
        with self._lock:
            for i, slot in enumerate(self._idle):
                if slot.numel() >= size:
                    return self._idle.pop(i)
            if self._made >= self._slots:
                if not self._idle:
                    return None
                self._idle.pop(0)  # all idle slots are too small: one is replaced
                self._made -= 1
            self._made += 1
        return torch.empty(max(size, 8), dtype=torch.float32, pin_memory=torch.cuda.is_available())

    def _give_back(self, slot: Tensor) -> None:
        with self._lock:
            self._idle.append(slot)


def to_bytes(matrix: Tensor) -> bytes:
    """Little-endian float32 bytes of a host matrix, without numpy."""
    matrix = matrix.to(torch.float32).contiguous()
    raw = ctypes.string_at(matrix.data_ptr(), matrix.numel() * 4) if matrix.numel() else b""
    if sys.byteorder == "big":  # pragma: no cover - no such host at hand
        words = array("I", raw)
        words.byteswap()
        raw = words.tobytes()
    return raw
