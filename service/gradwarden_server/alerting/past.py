"""Stored runs judged anew: a run's frames in a file, replayed by their recorded clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from gradwarden import wire
from gradwarden_server.alerting.findings import Finding, of_changes
from gradwarden_server.alerting.replay import Process, Replay
from gradwarden_server.detect.assembler import Cell
from gradwarden_server.model import RunFacts, run_path
from gradwarden_server.rules.spec import RuleSet
from gradwarden_server.transfer import framed
from gradwarden_server.transfer.faults import Unreadable
from gradwarden_server.transfer.head import Head, StreamFacts

_LABELS = ("training_job", "owner", "team", "environment", "cluster", "queue")
_TOGETHER_NS = 1_000_000_000
"""Frames of one message that are so far apart were not heard together."""
_SILENT_NS = 120 * 1_000_000_000

_EPOCH = datetime.fromtimestamp(0, UTC)

Face = Mapping[str, Any]
Told = Callable[[str, int, int], None]


@dataclass(slots=True)
class _Stream:
    """One rank of one attempt, and when it spoke."""

    facts: StreamFacts
    first_ns: int
    last_ns: int


@dataclass(frozen=True, slots=True)
class History:
    """One run on this machine, to be judged as often as wanted."""

    face: Face
    """As the service tells of it."""
    head: Head
    frames: int
    first_ns: int
    last_ns: int
    last_step: int
    _path: Path
    _streams: dict[tuple[str, int], _Stream]
    _url: str

    @property
    def run(self) -> str:
        return self.head.run.run

    @property
    def alive(self) -> bool:
        """Whether it still trains: its end is then no finding."""
        heard = self.face["last_seen_at"]
        silent_ns = time.time_ns() - (self.last_ns if heard is None else _ns(heard))
        return self.head.run.status == "running" and silent_ns < _SILENT_NS

    def judge(self, rules: Sequence[RuleSet], told: Told) -> list[list[Finding]]:
        """What each of the rule sets finds in it; ``told`` of (run, frames judged, of all)."""
        ordinals = {a.attempt: n for n, a in enumerate(self.head.attempts, 1)}
        processes = list(self._processes(ordinals))
        facts = self._facts()
        layouts = self.head.layouts.get
        replays = [Replay(one, facts, layouts, processes, self._url) for one in rules]
        done, latest_ns = 0, 0
        _, messages = framed.messages(self._path)
        for message in messages:
            key = message.header.stream
            cell = self._cell(key)
            for batch in _apart(message.batch()):
                latest_ns = max(latest_ns, *(frame.time_ns for frame in batch.frames))
                for replay in replays:
                    replay.hear(batch, ordinals[key.attempt], latest_ns, cell=cell)
                done += len(batch.frames)
            told(self.run, done, self.frames)
        if not self.alive:
            for replay in replays:
                replay.close(self.head.run.status, self.head.run.ended_ns or self.last_ns)
        return [of_changes(replay.changes) for replay in replays]

    def _cell(self, key: wire.StreamKey) -> Cell:
        facts = self._streams[key.attempt, key.rank].facts
        return facts.shard, facts.shards

    def _processes(self, ordinals: dict[str, int]) -> Iterator[Process]:
        newest = max(ordinals.values(), default=0)
        began = {a.attempt: a.started_ns for a in self.head.attempts}
        ranks: dict[str, int] = {}
        for attempt, rank in self._streams:
            ranks[attempt] = max(ranks.get(attempt, 0), rank + 1)
        for (attempt, rank), stream in self._streams.items():
            world = self.head.run.world_size if ordinals[attempt] == newest else ranks[attempt]
            yield Process(
                ordinal=ordinals[attempt],
                rank=rank,
                started_ns=min(began[attempt] or stream.first_ns, stream.first_ns),
                last_ns=stream.last_ns,
                world_size=world,
                host=stream.facts.host,
            )

    def _facts(self) -> RunFacts:
        run = self.head.run
        project = str(self.face["project"])
        labels = {"project": project, "run": run.run, "run_name": run.name or run.run}
        labels |= {key: value for key in _LABELS if (value := getattr(run, key))}
        return RunFacts(
            row=0,
            project=project,
            run=run.run,
            name=run.name or run.run,
            status="running",
            environment="prod" if run.page else run.environment or "",
            world_size=run.world_size,
            labels=labels,
            dashboard_url=self._url + run_path(project, run.run),
            started_ns=run.started_ns or self.first_ns,
            last_seen_ns=self.last_ns,
            last_step=self.last_step,
        )


def known(face: Face, path: Path, url: str) -> History:
    """A first pass over the headers alone: who spoke, and until when.

    Args:
        face: The run as the service tells of it.
        path: Its frames, in the format ``frames``; they are read again by every judgement.
        url: What links begin with.

    Raises:
        Unreadable: it holds no frames, or is damaged.
    """
    head, messages = framed.messages(path)
    facts = {(s.attempt, s.rank): s for s in head.streams}
    streams: dict[tuple[str, int], _Stream] = {}
    frames, last_step = 0, 0
    for message in messages:
        header = message.header
        key = header.stream.attempt, header.stream.rank
        first_ns, last_ns = min(header.times), max(header.times)
        held = streams.setdefault(key, _Stream(facts[key], first_ns, last_ns))
        held.last_ns = max(held.last_ns, last_ns)
        frames += header.n
        last_step = max(last_step, *header.steps)
    if not streams:
        raise Unreadable(head.run.run, "frames", 0, "the service holds none of it any more")
    _hear_last(streams, head, face)
    return History(
        face=face,
        head=head,
        frames=frames,
        first_ns=min(s.first_ns for s in streams.values()),
        last_ns=max(s.last_ns for s in streams.values()),
        last_step=last_step,
        _path=path,
        _streams=streams,
        _url=url,
    )


def _hear_last(streams: dict[tuple[str, int], _Stream], head: Head, face: Face) -> None:
    """Heartbeats are not in the log; of the newest attempt the last ones are known all the same."""
    newest = head.attempts[-1].attempt
    for rank in face["ranks"]:
        held = streams.get((newest, rank["rank"]))
        if held is not None and rank["heartbeat_at"] is not None and not rank["ended"]:
            heard_ns = _ns(rank["heartbeat_at"])
            held.last_ns = max(held.last_ns, min(head.run.ended_ns or heard_ns, heard_ns))


def _ns(moment: str) -> int:
    return (datetime.fromisoformat(moment) - _EPOCH) // timedelta(microseconds=1) * 1000


def _apart(batch: wire.Batch) -> Iterator[wire.Batch]:
    """A batch in parts that may have been heard together."""
    part: list[wire.Frame] = []
    for frame in batch.frames:
        if part and frame.time_ns - part[0].time_ns > _TOGETHER_NS:
            yield replace(batch, frames=tuple(part))
            part = []
        part.append(frame)
    yield replace(batch, frames=tuple(part))
