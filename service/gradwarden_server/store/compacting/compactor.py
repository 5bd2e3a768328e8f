"""The thread that keeps the log short; one per serve process, and any process takes any stream."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from gradwarden import wire
from gradwarden_server.store.compacting.claims import Due
from gradwarden_server.store.compacting.compaction import Compaction, LostClaim
from gradwarden_server.store.compacting.workshop import PROCESSES
from gradwarden_server.store.errors import Damaged, StoreError, Unavailable

log = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0
_REST_SECONDS = 60.0
_HANDS = PROCESSES + 1  # while one segment is written the next is made
_RETRY_MOST_SECONDS = 600.0
MOST_BACKLOG_BYTES = 4 << 30
"""Inflated; beyond it trainers are told to come back, since the log may not grow for ever."""


@dataclass(slots=True)
class Progress:
    """What this process compacted since it started."""

    segments: int = 0
    frames: int = 0
    failures: int = 0
    backlog_frames: int = 0
    backlog_bytes: int = 0


@dataclass(slots=True)
class _Failing:
    times: int = 0
    retry_at: float = 0.0


class Compactor:
    """Compacts what is due, and rests a second when nothing is."""

    def __init__(self, compaction: Compaction) -> None:
        self._compaction = compaction
        self._failing: dict[int, _Failing] = {}
        self._counting = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="compactor", daemon=True)
        self.progress = Progress()

    def start(self) -> None:
        """Begin compacting."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the segment under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def wait_seconds(self) -> float | None:
        """How long a trainer should wait before it sends more; None where it need not."""
        behind = self.progress.backlog_bytes
        if behind <= MOST_BACKLOG_BYTES:
            return None
        return min(30.0, 1.0 + behind / MOST_BACKLOG_BYTES)

    def round(self) -> int:
        """Compact every stream that is due once; how many segments that made.

        Raises:
            Unavailable: nothing can be read or put now.
        """
        self._measure()
        self._compaction.ready()
        due = self._compaction.due(time.time_ns())
        with ThreadPoolExecutor(_HANDS, "compaction") as hands:
            made = sum(hands.map(self._compact, due))
        self._measure()
        return made

    def _measure(self) -> None:
        behind = self._compaction.backlog()
        self.progress.backlog_frames = behind.frames
        self.progress.backlog_bytes = behind.bytes

    def _compact(self, due: Due) -> int:
        failing = self._failing.get(due.stream_id)
        if self._stopping.is_set() or (failing and time.monotonic() < failing.retry_at):
            return 0
        try:
            claim = self._compaction.compact(due)
        except (Unavailable, LostClaim) as error:
            log.warning("compaction of run %s, rank %d: %s", due.run, due.rank, error)
            return 0
        except (Damaged, wire.WireError) as error:
            self._put_off(due, f"a batch of its log is damaged: {error}")
            return 0
        except Exception:
            log.exception("compaction of run %s, rank %d failed", due.run, due.rank)
            self._put_off(due, "see above")
            return 0
        self._failing.pop(due.stream_id, None)
        if claim is None:
            return 0
        with self._counting:
            self.progress.segments += 1
            self.progress.frames += claim.frames
        return 1

    def _put_off(self, due: Due, why: str) -> None:
        """Its log stays as it is, and is read as it is."""
        with self._counting:
            self.progress.failures += 1
        failing = self._failing.setdefault(due.stream_id, _Failing())
        failing.times += 1
        wait = min(_RETRY_MOST_SECONDS, 2.0**failing.times)
        failing.retry_at = time.monotonic() + wait
        where = f"run {due.run}, rank {due.rank}"
        log.error("compaction of %s is put off for %.0f s: %s", where, wait, why)

    def _loop(self) -> None:
        worked = time.monotonic()
        while not self._stopping.is_set():
            try:
                made = self.round()
            except StoreError as error:
                log.warning("compaction waits: %s", error)
                made = 0
            except Exception:
                self.progress.failures += 1
                log.exception("a round of compaction failed")
                made = 0
            if made:
                worked = time.monotonic()
                continue
            if time.monotonic() - worked > _REST_SECONDS:
                self._compaction.rest()
            self._stopping.wait(_PAUSE_SECONDS)
        self._compaction.rest()
