"""Segments are made in processes of their own, so that arithmetic never holds up an ack.

They read the log by themselves and write nothing; what they made comes back to be written by
the one writer. They begin with the first segment, rest when nothing is to be done, and end
with the process that they work for, however it ends.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any

from gradwarden import wire
from gradwarden_server.store.compacting.build import build
from gradwarden_server.store.database import Database
from gradwarden_server.store.errors import Damaged, Unavailable
from gradwarden_server.store.log.entries import LogReader
from gradwarden_server.store.shelves.built import Built

PROCESSES = max(1, min(4, (os.cpu_count() or 1) // 2))
"""The other half of the machine takes what arrives."""

_reader: LogReader | None = None


class Workshop:
    """Makes segments elsewhere; thread-safe."""

    def __init__(self, url: str, precision_bits: int = 0) -> None:
        """``url`` is that of the database whose log is read."""
        self._url = url
        self._bits = precision_bits
        self._pool: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()

    def make(self, project: str, run: str, positions: Sequence[int], keep_roots: bool) -> Built:
        """Make the segment of these batches, which are one stream's.

        Raises:
            Damaged: a batch is.
            Unavailable: the log cannot be read now, or the process that read it died.
        """
        try:
            task = (project, run, list(positions), self._bits, keep_roots)
            made = self._open().submit(_make, *task).result()
        except BrokenProcessPool as error:
            self.rest()
            raise Unavailable(f"a process that makes segments died: {error}") from error
        if isinstance(made, Built):
            return made
        kind, told = made
        raise kind(*told)

    def rest(self) -> None:
        """Let the processes end; the next segment begins new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def _open(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    PROCESSES,
                    mp_context=get_context("spawn"),  # a fork would take locks of threads along
                    initializer=_begin,
                    initargs=(self._url,),
                )
            return self._pool


def _begin(url: str) -> None:
    """What each process does first."""
    global _reader
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the service says when it ends
    threading.Thread(target=_follow, daemon=True).start()
    _reader = LogReader(Database(url))
    gc.freeze()  # what was imported lives as long as the process


def _follow() -> None:
    """Nobody else ends a process whose service was killed."""
    service = parent_process()
    assert service is not None
    service.join()
    os._exit(1)


def _make(
    project: str, run: str, positions: list[int], precision_bits: int, keep_roots: bool
) -> Any:
    """The segment; or an error's type and what it takes, since not every error can travel."""
    assert _reader is not None
    try:
        entries = sorted(_reader.bodies(project, run, positions), key=lambda e: e.position)
        return build(entries, precision_bits, keep_roots=keep_roots)
    except Damaged as error:
        return Damaged, (error.place, error.what, error.why)
    except wire.WireError as error:
        return Damaged, (f"run {run!r}", "a batch of the log", str(error))
    except Unavailable as error:
        return Unavailable, (str(error),)
