"""The step in progress: what hooks and the loop say about it becomes pieces of a frame."""

from __future__ import annotations

import math
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gradwarden import wire
from gradwarden.collect import Pending, to_bytes, to_words
from gradwarden.part import Part

GRACE = 0.02
"""Seconds that an urgent piece waits for the optimizer's verdict and the loss beside it."""
STALE = 1.0
"""Seconds after which a piece of an open step leaves, so that the live edge stays live."""
MOVING = 10.0
"""Seconds for which a piece waits for its optimizer's step to end."""
MOST_EVENTS = 256
"""Events of one frame; more of them go in several frames of the same step."""
WIDTH = len(wire.COLUMNS)


@dataclass(eq=False, slots=True)
class Piece:
    """What one frame will say: all of a step, or what is known of it so far."""

    step: int
    attempt: int
    time_ns: int
    born: float
    capture: wire.Capture = ""
    parts: dict[int, Part] = field(default_factory=dict)
    scalars: dict[str, float | Pending] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[Part] = field(default_factory=list)
    pressed: float | None = None
    open: bool = False

    @property
    def urgent(self) -> bool:
        return self.pressed is not None

    @property
    def empty(self) -> bool:
        return not (self.parts or self.scalars or self.events)

    @property
    def ready(self) -> bool:
        values = [v for v in self.scalars.values() if isinstance(v, Pending)]
        return all(p.ready for p in self.parts.values()) and all(v.ready for v in values)

    @property
    def sees(self) -> bool:
        """Whether a matrix was taken."""
        return any(p.sees for p in self.parts.values())

    def moves(self, now: float) -> bool:
        """Whether it is worth waiting for an optimizer that is moving sampled weights."""
        sick = any(p.examine() is False for p in self.parts.values())
        return not sick and now - self.born < MOVING and any(p.moving for p in self.parts.values())

    def stepped(self) -> bool | None:
        """Whether the step was applied; None while that is undecided.

        Of several optimizers those with a non-finite gradient count, if there are any: what
        the others did is no news beside it. One that sat a step out skips nothing.
        """
        sick = [p for p in self.verdicts if p.examine() is False]
        verdicts = [p.verdict() for p in sick or self.verdicts]
        if True in verdicts:
            return True
        return None if None in verdicts or not verdicts else False

    def layout(self) -> wire.Layout | None:
        return next((p.layout for p in reversed(self.parts.values())), None)

    def roots(self) -> bytes:
        """The words by which replicas are compared; to be asked for before :meth:`matrix`."""
        words = [0] * wire.ROOT_WORDS
        if not self.parts or not all(p.add_roots(words) for p in self.parts.values()):
            return b""
        return struct.pack(f"<{wire.ROOT_WORDS}Q", *words)

    def matrix(self) -> tuple[bytes, bytes]:
        """[L, columns] float32, NaN where nothing was measured, and [L, 2] 64-bit checksums.

        Each is empty where there is none. Only the first call has the values.
        """
        layout = self.layout()
        parts = [p for p in self.parts.values() if p.layout is layout]
        if layout is None or not any(p.sees for p in parts):
            return b"", b""
        size = len(layout.parameters)
        whole = torch.full((size, WIDTH), math.nan, dtype=torch.float32, device="cpu")
        full = any(p.checksums for p in parts)
        shape = (size, len(wire.CHECKSUMS))
        sums = torch.zeros(shape, dtype=torch.int64, device="cpu") if full else None
        found = [part.fill(whole, sums) for part in parts]
        if not any(found):
            return b"", b""
        return to_bytes(whole), b"" if sums is None else to_words(sums)

    def numbers(self) -> dict[str, float]:
        return {
            name: float(v.take().reshape(())) if isinstance(v, Pending) else v
            for name, v in self.scalars.items()
        }


class FrameBook:
    """Turns captures, scalars and events into pieces, in step order; thread-safe.

    The lock is re-entrant since a signal handler may interrupt its holder.
    """

    def __init__(self, start_step: int = 0, limit: int = 4096) -> None:
        self._lock = threading.RLock()
        self._done: deque[Piece] = deque()
        self._limit = limit
        self._open: Piece | None = None
        self._names: set[str] = set()
        self._captured: set[int] = set()
        self._verdicts: list[Part] = []
        self._split = self._led = False
        self.first = self._next = start_step
        self._last = start_step - 1
        self._bad = self._left = False
        self._wake: Callable[[], None] = lambda: None
        self.on_sick: Callable[[], None] = lambda: None
        """Called when a step that was not captured turns out to be non-finite."""
        self.attempt = 0
        self.captures = 0
        self.dropped = 0
        self.overhead = 0.0

    def on_urgent(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    @property
    def step_now(self) -> int:
        """The newest step that anything is known of."""
        return self._open.step if self._open else self._last

    def upcoming(self, key: int, leads: bool) -> int:
        """The step of which this optimizer's next capture will be."""
        piece = self._open
        if piece is None:
            return self._next
        return piece.step + (key in self._captured and (leads or self._led))

    def capture(self, key: int, leads: bool, part: Part, kind: wire.Capture) -> None:
        """Take one optimizer's gradients.

        The leading optimizer counts the steps: its next capture ends one, and so does
        another's next once the leading one was there.
        """
        with self._lock:
            if key in self._captured:
                held = self._open.parts.get(key) if self._open else None
                if leads or self._led:
                    self.close()
                elif held is not None and held.examine() is False:
                    self._flush()  # a non-finite matrix is never overwritten
            self._left = False
            piece = self._current()
            if kind and piece.capture != "pre_clip":
                piece.capture = kind
            piece.parts[key] = part
            self._captured.add(key)
            self._led = self._led or leads
            self._verdicts.append(part)
            piece.verdicts = self._verdicts
            self.captures += part.sees
            self._judge(part, piece)

    def turn(self) -> None:
        """The next capture is the next step's, if the one in progress has its leader's."""
        with self._lock:
            if self._led:
                self.close()

    def replace(self, key: int, old: Part, new: Part) -> None:
        """Gradients went on accumulating after ``old`` was taken: it is the same step."""
        with self._lock:
            piece = self._current()
            piece.parts[key] = new
            if old in self._verdicts:
                self._verdicts.remove(old)
            self._verdicts.append(new)
            piece.verdicts = self._verdicts
            self._judge(new, piece)

    def scalar(self, name: str, value: float | Pending, logged: bool = True) -> None:
        """Attach a number. A name logged twice after a capture is of the step in progress.

        What a loop logs between a rewind and the next capture is of the step that was left.
        """
        with self._lock:
            if logged and self._left:
                return
            if logged and self._captured and name in self._names:
                self.close()
            if logged:
                self._names.add(name)
            self._current().scalars[name] = value

    def event(self, event: Mapping[str, Any], urgent: bool = True) -> None:
        with self._lock:
            piece = self._current()
            piece.events.append(dict(event))
            if urgent:
                self._press(piece)
            if len(piece.events) >= MOST_EVENTS:
                self._flush()

    def step(self, number: int) -> None:
        """The step just done is ``number``; a smaller one than before is a rollback."""
        with self._lock:
            if number < self._last:
                self.attempt += 1
            piece = self._open
            if piece is not None:
                piece.step, piece.attempt = number, self.attempt
                self.close()
            self._last = number
            self._next = number + 1

    def rewind(self, step: int) -> None:
        """What follows is the step after ``step``, in a new attempt."""
        with self._lock:
            self.close()
            self.attempt += 1
            self._last, self._next, self._left = step, step + 1, True

    def close(self) -> None:
        """End the step in progress, if any."""
        with self._lock:
            piece, self._open = self._open, None
            if piece is None:
                return
            captured = bool(self._captured)
            if captured:
                piece.scalars.setdefault("overhead_seconds", self.overhead)
                self.overhead = 0.0
            if self._split or not piece.empty:
                self._put(piece)
            self._last = piece.step
            self._next = piece.step + 1 if captured else piece.step
            self._names, self._captured = set(), set()
            self._split = self._led = False
            self._verdicts = []

    def drain(self, now: float) -> list[Piece]:
        """Pieces that should leave: of ended steps, and of an open one that is urgent or old."""
        with self._lock:
            piece = self._open
            if piece is not None and not piece.empty:
                for part in piece.parts.values():
                    if part.finite is None:
                        self._judge(part, piece)
                pressed = piece.pressed is not None and now - piece.pressed >= GRACE
                if (pressed or now - piece.born >= STALE) and not piece.moves(now):
                    self._flush()
            done = list(self._done)
            self._done.clear()
            return done

    def waiting(self) -> bool:
        """Whether an open piece may soon have to leave early."""
        piece = self._open
        return piece is not None and (
            piece.urgent or any(p.finite is None for p in list(piece.parts.values()))
        )

    def _current(self) -> Piece:
        if self._open is None:
            self._open = Piece(self._next, self.attempt, time.time_ns(), time.monotonic())
        return self._open

    def _flush(self) -> None:
        """Let what is known of the open step go; the step itself stays open."""
        piece = self._open
        assert piece is not None
        piece.open = self._split = True
        self._put(piece)
        self._open = Piece(piece.step, piece.attempt, time.time_ns(), time.monotonic())
        self._open.capture, self._open.verdicts = piece.capture, self._verdicts

    def _put(self, piece: Piece) -> None:
        if len(self._done) >= self._limit:
            self._done.popleft()
            self.dropped += 1
        self._done.append(piece)
        if piece.urgent:
            self._wake()

    def _judge(self, part: Part, piece: Piece) -> None:
        finite = part.examine()
        if finite is None:
            return
        if not finite and not part.sees:
            piece.events.append({"kind": "nonfinite", "step": piece.step})
            self.on_sick()
        if not finite and not self._bad:
            self._press(piece)
        self._bad = not finite

    def _press(self, piece: Piece) -> None:
        if piece.pressed is None:
            piece.pressed = time.monotonic()
            self._wake()
