"""Joins the frames of all ranks into steps, so that detectors never see arrival order.

A rank has closed a step when its frames, in the order of their seq and without a gap, hold a
final frame of that step or any frame of a later one. A step is released, in step order, when
all expected ranks have closed it or the wait is over; frames that come later still are counted
and left to storage. Frames that carry only events are no part of a step: they pass as steps
without groups, in their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gradwarden import wire
from gradwarden_server.detect.heard import Heard, freeze, thaw
from gradwarden_server.detect.joining import Joiner, Layouts
from gradwarden_server.detect.state import pack, unpack
from gradwarden_server.detect.steps import Step

WAIT_NS = 2_000_000_000
"""How long a step waits for its last rank."""

Cell = tuple[int, int]
"""Which shard of its group's parameters a rank holds, and of how many."""


def _no_layout(digest: str) -> None:
    return None


@dataclass(slots=True)
class _Stream:
    """How far one rank has spoken without a gap."""

    next_seq: int = 1
    closed: int = -1
    ended: bool = False
    ahead: dict[int, Heard] = field(default_factory=dict)


@dataclass(slots=True)
class _Pending:
    """The frames of a step that waits, and since when."""

    first_ns: int
    frames: dict[tuple[int, int], Heard] = field(default_factory=dict)


class AttemptAssembler:
    """The assembler of one attempt; :class:`Assembler` holds one per attempt of a run."""

    def __init__(
        self,
        attempt: int,
        world_size: int = 0,
        wait_ns: int = WAIT_NS,
        layouts: Layouts = _no_layout,
    ) -> None:
        self.attempt = attempt
        self._joiner = Joiner(layouts)
        self.world_size = world_size
        self.late = 0
        self._wait_ns = wait_ns
        self._released = -1
        self._streams: dict[int, _Stream] = {}
        self._absent: set[int] = set()
        self._gapped: set[int] = set()
        self._blocking: int | None = None
        self._open: dict[int, _Pending] = {}
        self._events: list[tuple[int, int, Heard]] = []
        self._alarming: set[int] = set()
        self._told: set[int] = set()

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be released."""
        return not (self._open or self._events or self._gapped)

    @property
    def deadline_ns(self) -> int | None:
        """When a wait ends next, or None."""
        times = [pending.first_ns for pending in self._open.values()]
        times += [_oldest(self._streams[rank].ahead.values()) for rank in self._gapped]
        return min(times) + self._wait_ns if times else None

    def add(
        self, batch: wire.Batch, received_ns: int, shift_ns: int = 0, cell: Cell = (0, 1)
    ) -> None:
        """Take a batch; ``shift_ns`` corrects its host's clock."""
        key = batch.stream
        self._absent.discard(key.rank)
        stream = self._streams.setdefault(key.rank, _Stream())
        for frame in batch.frames:
            if frame.seq < stream.next_seq or frame.seq in stream.ahead:
                continue  # delivered twice
            heard = Heard(
                rank=key.rank,
                group=key.group,
                layout=batch.layout,
                parameters=batch.parameters,
                quantities=batch.quantities,
                frame=replace(frame, time_ns=frame.time_ns + shift_ns) if shift_ns else frame,
                received_ns=received_ns,
                wide=batch.wide,
                shard=cell[0],
                shards=cell[1],
            )
            heard.late = heard.factual and frame.step <= self._released
            stream.ahead[frame.seq] = heard
            if heard.late:
                self.late += 1
            elif heard.factual:
                pending = self._open.setdefault(frame.step, _Pending(received_ns))
                pending.frames[key.rank, frame.seq] = heard
                if heard.alarming:
                    self._alarming.add(frame.step)
        self._follow(key.rank)

    def urgent(self) -> list[Step]:
        """Early looks at steps with a non-finite fact that still wait for other ranks.

        Each such step is told once, when the speaker's own word on it is final: before that it
        is open whether the bad gradient was applied or skipped.
        """
        told = []
        for number in sorted(self._alarming - self._told):
            pending = self._open.get(number)
            if pending is not None and _decided(pending.frames.values()):
                self._told.add(number)
                told.append(self._build(number, pending, partial=True))
        return told

    def release(self, now_ns: int) -> list[Step]:
        """The steps that are complete, or have waited long enough, in step order."""
        for rank in sorted(self._gapped):
            stream = self._streams[rank]
            if _oldest(stream.ahead.values()) + self._wait_ns <= now_ns:
                stream.next_seq = min(stream.ahead)  # what is missing will not come in time
                self._follow(rank)
        frontier = self._frontier(now_ns)
        ready = [n for n in self._open if n <= frontier]
        waiting = min((n for n in self._open if n > frontier), default=None)
        rows: list[tuple[int, int, int, Step]] = []
        for number in ready:
            built = self._build(number, self._open.pop(number))
            self._absent.update(r for r in built.missing if self._closed(r) < number)
            rows.append((number, 1, 0, built))
        held = []
        for at, (number, side, heard) in enumerate(self._events):
            if waiting is not None and (number, side) > (waiting, 1):
                held.append((number, side, heard))
            else:
                rows.append((number, side, at, _carrier(self.attempt, heard)))
        self._events = held
        if ready:
            self._released = max(ready)
            self._alarming = {n for n in self._alarming if n > self._released}
            self._told &= self._alarming
        return [row[3] for row in sorted(rows, key=lambda row: row[:3])]

    def _follow(self, rank: int) -> None:
        stream = self._streams[rank]
        while (heard := stream.ahead.pop(stream.next_seq, None)) is not None:
            frame = heard.frame
            stream.next_seq += 1
            if frame.events and (heard.late or not heard.factual):
                side = 2 if stream.closed >= frame.step else 0
                self._events.append((frame.step, side, heard))
            if heard.factual:
                closed = frame.step - 1 if frame.open else frame.step
                stream.closed = max(stream.closed, closed)
            stream.ended = stream.ended or heard.ends
        if stream.ahead:
            self._gapped.add(rank)
        else:
            self._gapped.discard(rank)

    def _living(self) -> set[int]:
        ranks = set(range(self.world_size)) | set(self._streams)
        return ranks - {r for r, s in self._streams.items() if s.ended}

    def _closed(self, rank: int) -> int:
        return self._streams[rank].closed if rank in self._streams else -1

    def _frontier(self, now_ns: int) -> int:
        """The last step that may go: closed by all, or overdue."""
        if not self._open:
            return self._released
        overdue = [n for n, p in self._open.items() if p.first_ns + self._wait_ns <= now_ns]
        return max([self._closed_by_all(), *overdue])

    def _closed_by_all(self) -> int:
        """The last step that every expected rank has closed.

        A rank that let one step wait in vain is not expected again until it speaks. With a
        thousand ranks this is asked a thousand times a step, so the answer is looked for anew
        only when the rank that held it up last has moved.
        """
        at = self._blocking
        if at is not None and at not in self._absent and self._closed(at) < min(self._open):
            stream = self._streams.get(at)
            if stream is None or not stream.ended:
                return self._released
        expected = self._living() - self._absent
        # Ranks tend to arrive in order, so the last of the slowest holds up longest.
        self._blocking = min(expected, key=lambda r: (self._closed(r), -r), default=None)
        return max(self._open) if self._blocking is None else self._closed(self._blocking)

    def _build(self, number: int, pending: _Pending, partial: bool = False) -> Step:
        return self._joiner.step(
            self.attempt, number, pending.first_ns, pending.frames, self._living(), partial
        )

    def state(self) -> dict[str, Any]:
        return {
            "attempt": self.attempt,
            "world_size": self.world_size,
            "late": self.late,
            "released": self._released,
            "absent": sorted(self._absent),
            "told": sorted(self._told),
            "alarming": sorted(self._alarming),
            "open": [freeze(h) for p in self._open.values() for h in p.frames.values()],
            "events": [[n, side, freeze(h)] for n, side, h in self._events],
            "streams": [
                [r, s.next_seq, s.closed, s.ended, [freeze(h) for h in s.ahead.values()]]
                for r, s in self._streams.items()
            ],
        }

    @classmethod
    def restored(
        cls, state: Mapping[str, Any], wait_ns: int = WAIT_NS, layouts: Layouts = _no_layout
    ) -> AttemptAssembler:
        made = cls(state["attempt"], state["world_size"], wait_ns, layouts)
        made.late = state["late"]
        made._released = state["released"]
        made._absent = set(state["absent"])
        made._told = set(state["told"])
        made._alarming = set(state["alarming"])
        for heard in map(thaw, state["open"]):
            pending = made._open.setdefault(heard.frame.step, _Pending(heard.received_ns))
            pending.frames[heard.rank, heard.frame.seq] = heard
        made._events = [(n, side, thaw(h)) for n, side, h in state["events"]]
        for rank, next_seq, closed, ended, ahead in state["streams"]:
            frames = {h.frame.seq: h for h in map(thaw, ahead)}
            made._streams[rank] = _Stream(next_seq, closed, ended, frames)
            if frames:
                made._gapped.add(rank)
        return made


class Assembler:
    """The assemblers of one run: a new attempt opens a new one, an old one drains.

    ``layouts`` finds a layout by its hash: it tells which rows are sharded.
    """

    def __init__(
        self, world_size: int = 0, wait_ns: int = WAIT_NS, layouts: Layouts = _no_layout
    ) -> None:
        self.world_size = world_size
        self._wait_ns, self._layouts = wait_ns, layouts
        self._late = 0
        self._attempts: dict[int, AttemptAssembler] = {}

    @property
    def late(self) -> int:
        """Frames that came after their step was judged."""
        return self._late + sum(a.late for a in self._attempts.values())

    @property
    def deadline_ns(self) -> int | None:
        """When to call :meth:`release` next, even if nothing arrives."""
        times = [a.deadline_ns for a in self._attempts.values()]
        return min((t for t in times if t is not None), default=None)

    def start(self, attempt: int, world_size: int) -> None:
        """Tell how many ranks an attempt has, before or after its first frame."""
        self.world_size = world_size
        if attempt in self._attempts:
            self._attempts[attempt].world_size = world_size

    def add(
        self,
        batch: wire.Batch,
        attempt: int,
        received_ns: int,
        shift_ns: int = 0,
        cell: Cell = (0, 1),
    ) -> None:
        """Take a batch of the attempt with this ordinal, from a rank of this cell."""
        if attempt not in self._attempts and attempt < max(self._attempts, default=0):
            self._late += len(batch.frames)  # a superseded attempt that was already let go
            return
        if attempt not in self._attempts:
            made = AttemptAssembler(attempt, self.world_size, self._wait_ns, self._layouts)
            self._attempts[attempt] = made
        self._attempts[attempt].add(batch, received_ns, shift_ns, cell)

    def urgent(self) -> list[Step]:
        """See :meth:`AttemptAssembler.urgent`; call it after :meth:`release`."""
        return [step for at in sorted(self._attempts) for step in self._attempts[at].urgent()]

    def release(self, now_ns: int) -> list[Step]:
        """Joined steps, attempt by attempt, in step order."""
        steps = []
        for at in sorted(self._attempts):
            steps += self._attempts[at].release(now_ns)
        for at in sorted(self._attempts)[:-1]:
            if self._attempts[at].idle:
                self._late += self._attempts.pop(at).late
        return steps

    def state(self) -> bytes:
        attempts = [a.state() for a in self._attempts.values()]
        return pack({"world_size": self.world_size, "late": self._late, "attempts": attempts})

    def restore(self, data: bytes) -> None:
        state = unpack(data)
        self.world_size = state["world_size"]
        self._late = state["late"]
        attempts = state["attempts"]
        made = [AttemptAssembler.restored(a, self._wait_ns, self._layouts) for a in attempts]
        self._attempts = {a.attempt: a for a in made}


def _decided(frames: Iterable[Heard]) -> bool:
    held = list(frames)
    ranks = {h.rank for h in held if h.alarming}
    return any(h.rank in ranks and (not h.frame.open or h.frame.stepped is not None) for h in held)


def _oldest(frames: Iterable[Heard]) -> int:
    return min(h.received_ns for h in frames)


def _carrier(attempt: int, heard: Heard) -> Step:
    return Step(
        attempt=attempt,
        step=heard.frame.step,
        time_ns=heard.frame.time_ns,
        first_received_ns=heard.received_ns,
        events=tuple((heard.rank, event) for event in heard.frame.events),
    )
