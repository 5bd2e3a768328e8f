"""The recorded clock: long times enter here, by rewriting what a real run wrote down.

A run of some seconds is stretched to hours, and a pause is lengthened, in the spool itself:
times of frames, seconds of steps and phases, times of sending. Nothing ever waits for it, and
the frames' other numbers stay as the trainer wrote them.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from gradwarden import wire
from gradwarden.outbox import Record
from gradwarden.spool import pack, read_segment, segments
from gradwarden.sync import find

SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Pause:
    """The run stood for ``seconds`` before the end of ``step``, in ``phase``."""

    step: int
    seconds: float
    phase: str = ""
    """``evaluation``, ``checkpoint``, ``compile``, ``data``; else nothing accounts for it."""


@dataclass(frozen=True, slots=True)
class Clock:
    """What is done to the recorded times.

    ``even`` gives every rank and step the median times: how busy the machine was that trained
    is then no part of the run. ``stretch`` multiplies all times. ``pauses`` come on top. What
    was sent from step ``a`` to step ``b`` arrives only after ``b`` where ``outage`` is
    ``(a, b)``.
    """

    stretch: float = 1.0
    even: bool = False
    pauses: tuple[Pause, ...] = ()
    outage: tuple[int, int] | None = None


EVEN = Clock(even=True)


class _Rewriter:
    def __init__(self, clock: Clock, batches: Sequence[wire.Batch]) -> None:
        self._clock = clock
        heard = [(b.stream.rank, f) for b in batches for f in b.frames]
        self._origin = min(f.time_ns for _, f in heard)
        self._ends: dict[int, list[int]] = {}
        spent: dict[str, list[float]] = {}
        for rank, frame in sorted(heard, key=lambda pair: pair[1].time_ns):
            if "step_seconds" in frame.scalars:
                self._ends.setdefault(rank, []).append(frame.time_ns)
            timed = [(n, v) for n, v in frame.scalars.items() if n.endswith("_seconds")]
            timed += [(e["kind"], e["seconds"]) for e in frame.events if "seconds" in e]
            for name, seconds in timed:
                spent.setdefault(name, []).append(seconds)
        self._medians = {n: median(held) for n, held in spent.items()} if clock.even else {}

    def moment(self, rank: int, time_ns: int, step: int) -> int:
        """When what a rank did at ``time_ns``, in ``step``, was done by this clock."""
        ago = (time_ns - self._origin) / SECOND
        if self._clock.even:
            ago = bisect_right(self._ends.get(rank, []), time_ns) * self._medians["step_seconds"]
        paused = sum(p.seconds for p in self._clock.pauses if p.step <= step)
        return self._origin + int((ago * self._clock.stretch + paused) * SECOND)

    def batches(self, batch: wire.Batch, back_ns: int | None) -> Iterator[wire.Batch]:
        """Each frame by itself, sent when it was done: what fell into a quarter of a second
        was minutes apart, and a trainer does not wait so long."""
        for frame in batch.frames:
            made = self._frame(batch.stream.rank, frame)
            sent = made.time_ns + SECOND // 4
            if back_ns is not None and self._in_outage(frame):
                sent = max(sent, back_ns)
            yield replace(batch, frames=(made,), sent_ns=sent)

    def _in_outage(self, frame: wire.Frame) -> bool:
        gone = self._clock.outage
        return gone is not None and gone[0] <= frame.step <= gone[1]

    def _frame(self, rank: int, frame: wire.Frame) -> wire.Frame:
        scalars = {n: self._scalar(n, v) for n, v in frame.scalars.items()}
        for pause in self._clock.pauses:
            if pause.step == frame.step and "step_seconds" in scalars:
                for name in ("step_seconds", *([f"{pause.phase}_seconds"] if pause.phase else [])):
                    scalars[name] = scalars.get(name, 0.0) + pause.seconds
        return replace(
            frame,
            time_ns=self.moment(rank, frame.time_ns, frame.step),
            scalars=scalars,
            events=tuple(self._event(e, frame.step) for e in frame.events),
        )

    def _scalar(self, name: str, value: float) -> float:
        if not name.endswith("_seconds"):
            return value
        return self._medians.get(name, value) * self._clock.stretch

    def _event(self, event: Mapping[str, Any], step: int) -> dict[str, Any]:
        made = dict(event)
        if isinstance(made.get("seconds"), (int, float)):
            seconds = self._medians.get(made["kind"], made["seconds"])
            made["seconds"] = seconds * self._clock.stretch
            phase = "checkpoint" if made["kind"] == "checkpoint" else made.get("name")
            for pause in self._clock.pauses:
                # A thread tells of a checkpoint, so in the step before or in that of the pause.
                if pause.phase == phase and pause.step - 1 <= step <= pause.step:
                    made["seconds"] += pause.seconds
        return made


def rewrite(root: Path, clock: Clock, target: Path) -> Path:
    """Copy every spool under ``root`` with the times that this clock would have shown."""
    held = {d: [(p, list(read_segment(p))) for p in segments(d)] for d in find(root)}
    batches = [wire.decode(r.body) for s in held.values() for _, rs in s for r in _batches(rs)]
    rewriter = _Rewriter(clock, batches)
    back = None
    if clock.outage is not None:
        back = max(
            rewriter.moment(b.stream.rank, f.time_ns, f.step)
            for b in batches
            for f in b.frames
            if f.step <= clock.outage[1]
        )
    for spool in held.values():
        for path, records in spool:
            made = (pack(m) for r in records for m in _rewritten(r, rewriter, back))
            copy = target / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(b"".join(made))
    return target


def _batches(records: Iterable[Record]) -> Iterable[Record]:
    return (r for r in records if r.kind == "batch")


def _rewritten(record: Record, rewriter: _Rewriter, back_ns: int | None) -> Iterator[Record]:
    if record.kind == "start":
        said = json.loads(record.body)
        said["started_ns"] = rewriter.moment(said["rank"], said["started_ns"], said["first_step"])
        yield replace(record, body=json.dumps(said).encode())
    elif record.kind == "layout":
        yield record
    else:
        for batch in rewriter.batches(wire.decode(record.body), back_ns):
            yield replace(record, body=wire.encode(batch), frames=1)
