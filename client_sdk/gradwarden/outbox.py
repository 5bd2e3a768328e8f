"""Where the training process lets go: records sealed once, bounded, the oldest dropped first."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["start", "layout", "batch"]


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One sealed message; every retry sends the same bytes."""

    kind: Kind
    body: bytes
    frames: int = 0
    attempt: str = ""


class Losses:
    """What was given up, in frames, by reason. A loss is always a number someone can see."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._counts: Counter[str] = Counter()

    def add(self, reason: str, frames: int) -> None:
        if frames:
            with self._lock:
                self._counts[reason] += frames

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)

    @property
    def total(self) -> int:
        return sum(self.counts().values())


class Outbox:
    """A queue of records with an upper bound in bytes and count.

    ``overflow`` takes the oldest records of a full queue (the spool does); without it, or
    when it answers False, they are dropped and counted. The lock is re-entrant since a
    signal handler may interrupt its holder.
    """

    def __init__(
        self,
        losses: Losses,
        overflow: Callable[[Record], bool] | None = None,
        most_bytes: int = 32 << 20,
        most_records: int = 2048,
    ) -> None:
        self._losses, self._overflow = losses, overflow
        self._most_bytes, self._most_records = most_bytes, most_records
        self._changed = threading.Condition(threading.RLock())
        self._queue: deque[Record] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def bytes(self) -> int:
        return self._bytes

    def put(self, record: Record) -> None:
        """Append, then push the oldest out while above the bounds."""
        with self._changed:
            self._queue.append(record)
            self._bytes += len(record.body)
            while len(self._queue) > 1 and (
                self._bytes > self._most_bytes or len(self._queue) > self._most_records
            ):
                oldest = self._shift()
                if self._overflow is None or not self._overflow(oldest):
                    self._losses.add("outbox full", oldest.frames)
            self._changed.notify_all()

    def head(self) -> Record | None:
        """The oldest record, left in place: it is in flight until :meth:`remove`."""
        with self._changed:
            return self._queue[0] if self._queue else None

    def remove(self, record: Record) -> None:
        """Forget a delivered record, if it was not pushed out meanwhile."""
        with self._changed:
            if self._queue and self._queue[0] is record:
                self._shift()

    def take_all(self) -> list[Record]:
        with self._changed:
            records = list(self._queue)
            self._queue.clear()
            self._bytes = 0
            return records

    def wait(self, seconds: float) -> None:
        """Sleep until something is put, :meth:`wake` is called, or the time is over."""
        with self._changed:
            if not self._queue:
                self._changed.wait(seconds)

    def nap(self, seconds: float) -> None:
        """Sleep although records wait, until :meth:`wake`."""
        with self._changed:
            self._changed.wait(seconds)

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _shift(self) -> Record:
        record = self._queue.popleft()
        self._bytes -= len(record.body)
        return record
