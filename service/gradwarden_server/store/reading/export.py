"""A whole run read out in the order of its log, in short transactions and bounded memory."""

from __future__ import annotations

import array
from collections.abc import Iterator
from dataclasses import replace

from gradwarden import wire
from gradwarden_server.store.log.entries import LogEntry, LogReader

_PAGE = 16  # a batch of a large model is some megabytes


class RunExport:
    """Reads until a position that was taken at the start, so that a live run has an end."""

    def __init__(self, log: LogReader) -> None:
        self._log = log

    def batches(
        self, project: str, run: str, until: int, first: int | None, last: int | None
    ) -> Iterator[wire.Batch]:
        """Batches up to log position ``until``, with corrected times.

        ``first`` and ``last`` bound the steps. Nothing is read ahead: who stops asking stops
        the reading.
        """
        entries = (
            self._all(project, run, until)
            if first is None and last is None
            else self._within(project, run, until, first or 0, 2**62 if last is None else last)
        )
        for entry in entries:
            batch = entry.batch()
            frames = tuple(
                replace(frame, time_ns=max(0, frame.time_ns + entry.shift_ns))
                for frame in batch.frames
                if (first is None or frame.step >= first) and (last is None or frame.step <= last)
            )
            if frames:
                yield replace(batch, frames=frames)

    def _all(self, project: str, run: str, until: int) -> Iterator[LogEntry]:
        position = 0
        while position < until:
            page = self._log.after(project, run, position, _PAGE)
            yield from (entry for entry in page if entry.position <= until)
            if not page:
                return
            position = page[-1].position

    def _within(
        self, project: str, run: str, until: int, first: int, last: int
    ) -> Iterator[LogEntry]:
        touched = self._log.index(project, run, first, last)
        positions = array.array("q", (e.position for e in touched if e.position <= until))
        del touched
        for start in range(0, len(positions), _PAGE):
            page = positions[start : start + _PAGE]
            found = {e.position: e for e in self._log.bodies(project, run, page)}
            yield from (found[position] for position in page if position in found)
