"""The thread between the book and the outbox: pieces become frames, frames sealed batches."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch

from gradwarden import wire
from gradwarden.collect import to_bytes
from gradwarden.errors import Faults
from gradwarden.frames import WIDTH, FrameBook, Piece
from gradwarden.identity import Identity
from gradwarden.outbox import Losses, Outbox, Record
from gradwarden.spool import Spool

BATCH_SECONDS = 0.25
MOST_BATCH_SECONDS = 1.5
"""Whatever a service asks for: it waits two seconds for the last rank of a step."""
BATCH_FRAMES = 256
BATCH_EVENTS = 512
BATCH_BYTES = 4 << 20
EVIDENCE_STEPS = 3
"""Steps after a non-finite transition in which a rank that does not speak shows its matrix."""
_HELD = 4096
CODEC: wire.Codec = "zstd" if find_spec("zstandard") else "deflate"


@dataclass(frozen=True, slots=True)
class Outlet:
    """Where sealed records go: the queue, and the context that every spool segment needs."""

    outbox: Outbox
    spool: Spool | None

    def put(self, record: Record, context: str | None = None) -> None:
        if context is not None and self.spool is not None:
            self.spool.provide(context, record)
        self.outbox.put(record)


class Pump:
    """Reads what is ready, gives it its place in the stream, seals it once."""

    def __init__(
        self,
        book: FrameBook,
        outlet: Outlet,
        losses: Losses,
        faults: Faults,
        identify: Callable[[], Identity | None],
        start_record: Callable[[Identity, int, int], dict[str, Any]],
        on_frame: Callable[[wire.Frame, wire.Layout | None], None],
    ) -> None:
        self._book, self._outlet, self._losses, self._faults = book, outlet, losses, faults
        self._identify, self._start_record, self._on_frame = identify, start_record, on_frame
        self.identity: Identity | None = None
        self.speaking = False
        """Set by the service's command: this rank sends matrices although another one should."""
        self.frames = 0
        self.cpu_seconds = 0.0
        """What this thread has used of the processor so far."""
        self.chores: Callable[[], None] = lambda: None
        """What else is to be done now and then off the training thread."""
        self._pieces: deque[Piece] = deque()
        self._batch: list[wire.Frame] = []
        self._events = self._bytes = 0
        self._layout: wire.Layout | None = None
        self._checksums = False
        self._sent_layouts: dict[str, None] = {}
        self._rollback = -1
        self._seq = 0
        self._evidence: int | None = None
        self._urgent = False
        self._since = 0.0
        self._gather_seconds = BATCH_SECONDS
        self._wake = threading.Event()
        self._deadline: float | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gradwarden-pump", daemon=True)
        book.on_urgent(self._wake.set)

    def start(self) -> None:
        self._thread.start()

    def gather(self, seconds: object) -> None:
        """Gather frames that are not urgent for so long, as a busy service asks."""
        if isinstance(seconds, int | float) and seconds >= BATCH_SECONDS:
            self._gather_seconds = min(float(seconds), MOST_BATCH_SECONDS)
        else:
            self._gather_seconds = BATCH_SECONDS

    def stop(self, deadline: float) -> None:
        """Seal all that the book holds; what is not ready by the deadline loses its matrix."""
        self._deadline = deadline
        self._wake.set()
        self._done.wait(max(0.0, deadline - time.monotonic()))
        if self._done.is_set():
            return
        self._losses.add("exit deadline", len(self._pieces) + len(self._batch))

    def _run(self) -> None:
        while True:
            last = self._deadline is not None
            try:
                self._turn(time.monotonic(), last)
            except Exception as error:  # our own bug: what waits is tried again next turn
                self._faults.record("sealing", error, fatal=False)
            if last and (not self._pieces or time.monotonic() >= (self._deadline or 0.0)):
                break
            self._rest()
            self._faults.quiet("chores", self.chores)
            self.cpu_seconds = time.thread_time()
        self._done.set()

    def _rest(self) -> None:
        busy = self._pieces or self._batch or self._book.waiting() or self._deadline is not None
        self._wake.wait(0.01 if busy else BATCH_SECONDS / 2)
        self._wake.clear()

    def _turn(self, now: float, last: bool) -> None:
        for piece in self._book.drain(now):
            self._pieces.append(piece)
        if self._book.dropped:
            self._losses.add("frames overran", self._book.dropped)
            self._book.dropped = 0
        if self.identity is None:
            self.identity = self._identify()
            if self.identity is None:
                self._hold_back(last)
                return
        if self._rollback < 0:
            self._open_stream(0, self._pieces[0].step if self._pieces else self._book.first)
        late = self._deadline is not None and now >= self._deadline - 0.5
        while self._pieces and (self._pieces[0].ready or late):
            self._give_or_lose(self._pieces.popleft(), now)
        if self._batch and (last or self._urgent or now - self._since >= self._gather_seconds):
            self._seal()

    def _give_or_lose(self, piece: Piece, now: float) -> None:
        try:
            self._add(piece, now)
        except Exception as error:
            self._faults.record("sealing", error, fatal=False)
            self._losses.add("sealing failed", 1)

    def _hold_back(self, last: bool) -> None:
        """Frames wait for the run's name, bounded; without one at the end they are lost."""
        while len(self._pieces) > (0 if last and self._too_late() else _HELD):
            self._pieces.popleft()
            self._losses.add("run id unknown", 1)

    def _too_late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline - 0.5

    def _open_stream(self, rollback: int, first_step: int) -> None:
        assert self.identity is not None
        record = self._start_record(self.identity, rollback, max(0, first_step))
        body = json.dumps(record, default=str).encode()
        attempt = self.identity.attempt_after(rollback)
        self._outlet.put(Record("start", body, 0, attempt), f"start{rollback % 2}")
        self._rollback, self._seq = rollback, 0

    def _add(self, piece: Piece, now: float) -> None:
        assert self.identity is not None
        if piece.attempt != self._rollback:
            self._seal()
            self._open_stream(piece.attempt, piece.step)
        ready = piece.ready
        layout = piece.layout()
        roots = piece.roots() if ready and self.identity.has_replicas else b""
        values, checksums = piece.matrix() if ready else (b"", b"")
        if not values and piece.sees:
            self._losses.add("no device copy in time", 1)
        if values and (self._layout is not layout or self._checksums != bool(checksums)):
            self._seal()
            self._layout, self._checksums = layout, bool(checksums)
        frame = wire.Frame(
            seq=self._seq + 1,
            step=piece.step,
            time_ns=piece.time_ns,
            scalars=piece.numbers() if ready else {},
            events=tuple(piece.events),
            capture=piece.capture,
            stepped=piece.stepped(),
            open=piece.open,
            values=values,
            wide=checksums,
            roots=roots,
        )
        self._faults.quiet("tripwires", self._on_frame, frame, layout)
        if values and not self._says(piece, frame.step):
            frame = replace(frame, values=b"", wide=b"")
        if not self._batch:
            self._since = now
        self._batch.append(frame)
        self._seq += 1
        self._events += len(frame.events)
        self._bytes += len(frame.values)
        self._urgent = self._urgent or piece.urgent
        full = len(self._batch) >= BATCH_FRAMES or self._events >= BATCH_EVENTS
        if full or self._bytes >= BATCH_BYTES:
            self._seal()

    def _says(self, piece: Piece, step: int) -> bool:
        """Whether this rank's matrix travels: it speaks, has evidence, or was asked."""
        assert self.identity is not None
        asked = any(p.checksums for p in piece.parts.values())
        if self.identity.speaks or self.speaking or asked:
            return True
        if all(p.finite for p in piece.parts.values()):
            self._evidence = None
            return False
        if self._evidence is None:
            self._evidence = step
        return step < self._evidence + EVIDENCE_STEPS

    def _seal(self) -> None:
        if not self._batch:
            return
        assert self.identity is not None
        frames, layout = self._batch, self._layout
        self._reset()
        try:
            self._send(self.identity, frames, layout)
        except Exception as error:
            self._faults.record("sealing", error, fatal=False)
            self._losses.add("sealing failed", len(frames))

    def _send(
        self, identity: Identity, frames: list[wire.Frame], layout: wire.Layout | None
    ) -> None:
        spoken = [f for f in frames if f.values]
        layout = layout if spoken else None
        if layout is not None and layout.hash not in self._sent_layouts:
            body = json.dumps(layout.to_json()).encode()
            slot = f"layout{len(self._sent_layouts) % 3}"
            self._sent_layouts[layout.hash] = None
            self._outlet.put(Record("layout", body), slot)
        columns, frames = narrowed(frames)
        batch = wire.Batch(
            stream=identity.stream(self._rollback),
            frames=tuple(frames),
            layout=layout.hash if layout is not None else "",
            parameters=len(layout.parameters) if layout is not None else 0,
            quantities=tuple(wire.COLUMNS[c] for c in columns),
            wide=wire.CHECKSUMS if any(f.wide for f in spoken) else (),
            sent_ns=time.time_ns(),
        )
        attempt = identity.attempt_after(self._rollback)
        record = Record("batch", wire.encode(batch, CODEC), len(frames), attempt)
        self.frames += len(frames)
        self._outlet.put(record)

    def _reset(self) -> None:
        self._batch, self._events, self._bytes, self._urgent = [], 0, 0, False


def narrowed(frames: Sequence[wire.Frame]) -> tuple[list[int], list[wire.Frame]]:
    """The columns that some row of some matrix has a value in, and the frames with these only.

    The statistics are always among them. One pass over all matrices: it is done at every seal.
    """
    always = len(wire.QUANTITIES)
    spoken = [f for f in frames if f.values]
    if not spoken:
        return list(range(always)), list(frames)
    whole = torch.frombuffer(bytearray().join(f.values for f in spoken), dtype=torch.float32)
    whole = whole.view(-1, WIDTH)
    seen = whole[:, always:].isnan().logical_not_().any(0)
    columns = [*range(always), *(always + i for i in seen.nonzero().flatten().tolist())]
    if len(columns) == WIDTH:
        return columns, list(frames)
    kept = to_bytes(whole[:, : len(columns)] if columns[-1] < len(columns) else whole[:, columns])
    size = len(kept) // len(spoken)
    pieces = (kept[at : at + size] for at in range(0, len(kept), size))
    return columns, [replace(f, values=next(pieces)) if f.values else f for f in frames]
