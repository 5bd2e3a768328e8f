"""Spools as runs: what a training without a service wrote down, judged by the shipped detectors."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradwarden import wire
from gradwarden.spool import read_segment, segments
from gradwarden.sync import find
from gradwarden_server.alerting.replay import Process, Replay
from gradwarden_server.model import DEFAULT_PROJECT, RunFacts
from gradwarden_server.rules.spec import RuleSet

_LABELS = ("training_job", "owner", "team", "environment", "cluster", "queue")
_WORST = ("failed", "preempted", "cancelled", "finished")
Hear = Callable[[str, int, wire.Batch], None]
"""Told of (run, attempt number, batch)."""


def _deaf(run: str, ordinal: int, batch: wire.Batch) -> None:
    """Nobody listens."""


@dataclass(frozen=True, slots=True)
class Spooled:
    """One run of a spool, judged."""

    facts: RunFacts
    replay: Replay
    damaged: int = 0
    """Batches that could not be read."""
    status: str = "running"
    """How it ended."""
    starts: Sequence[tuple[int, Mapping[str, Any]]] = ()
    """What each process said of itself, with the number of its attempt."""
    layouts: Mapping[str, wire.Layout] = field(default_factory=dict)


@dataclass(slots=True)
class _Stream:
    """One rank of one attempt: its start and when it spoke."""

    start: dict[str, Any]
    first_ns: int
    last_ns: int
    last_step: int
    status: str | None = None


@dataclass(slots=True)
class _Run:
    directories: list[Path] = field(default_factory=list)
    layouts: dict[str, wire.Layout] = field(default_factory=dict)
    streams: dict[tuple[str, int], _Stream] = field(default_factory=dict)
    damaged: int = 0


def judge(directory: Path, rules: RuleSet, hear: Hear = _deaf) -> list[Spooled]:
    """Judge every run whose spools lie at or under a directory, in the order of their starts.

    A frame counts as received when its batch was sealed, so that what is found does not depend
    on when the spool is read. ``hear`` is told of every batch as it is judged.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"no spool directory at {directory}")
    runs = _runs(directory)
    judged = [_judged(name, run, rules, hear) for name, run in runs.items() if run.streams]
    return sorted(judged, key=lambda one: one.facts.started_ns)


def _runs(directory: Path) -> dict[str, _Run]:
    """What there is, with nothing but heads kept in memory."""
    runs: dict[str, _Run] = {}
    for spool in find(directory):
        starts: dict[tuple[str, str, int], dict[str, Any]] = {}
        layouts: dict[str, wire.Layout] = {}
        for kind, body in _records(spool):
            if kind == "start":
                start = json.loads(body)
                starts[start["run"], start["attempt"], start["rank"]] = start
                runs.setdefault(start["run"], _Run())
            elif kind == "layout":
                layout = wire.Layout.from_json(json.loads(body))
                layouts[layout.hash] = layout
            else:
                _meet(runs, starts, body)
        for name in {run for run, _, _ in starts}:
            runs[name].directories.append(spool)
            runs[name].layouts |= layouts
    return runs


def _meet(
    runs: dict[str, _Run], starts: dict[tuple[str, str, int], dict[str, Any]], body: bytes
) -> None:
    try:
        header = wire.check(body).header
    except wire.WireError:
        for run in {run for run, _, _ in starts}:
            runs[run].damaged += 1
        return
    key = header.stream
    start = starts.get((key.run, key.attempt, key.rank))
    if start is None:
        return
    first_ns, last_ns = min(header.times), max(header.times)
    begun_ns = min(int(start.get("started_ns") or first_ns), first_ns)
    streams = runs[key.run].streams
    held = streams.setdefault(
        (key.attempt, key.rank), _Stream(start, begun_ns, last_ns, max(header.steps))
    )
    held.last_ns = max(held.last_ns, last_ns)
    held.last_step = max(held.last_step, *header.steps)
    for event in (event for events in header.events for event in events):
        if event["kind"] == "finish":
            held.status = str(event.get("status", "finished"))


def _judged(name: str, run: _Run, rules: RuleSet, hear: Hear) -> Spooled:
    first: dict[str, int] = {}
    for (attempt, _), stream in run.streams.items():
        at_ns = stream.first_ns if not stream.start.get("parent") else stream.last_ns
        first[attempt] = min(at_ns, first.get(attempt, at_ns))
    ordinals = {a: n for n, a in enumerate(sorted(first, key=lambda a: (first[a], a)), start=1)}
    processes = [
        Process(
            ordinal=ordinals[attempt],
            rank=rank,
            started_ns=stream.first_ns,
            last_ns=stream.last_ns,
            world_size=int(stream.start.get("world_size") or 1),
            host=str(stream.start.get("host") or ""),
        )
        for (attempt, rank), stream in run.streams.items()
    ]
    facts = _facts(name, run, processes)
    replay = Replay(rules, facts, run.layouts.get, processes)
    for received_ns, batch in heapq.merge(
        *(_batches(d, name) for d in run.directories), key=lambda pair: pair[0]
    ):
        held = run.streams.get((batch.stream.attempt, batch.stream.rank))
        if held is None:
            continue
        cell = int(held.start.get("shard") or 0), int(held.start.get("shards") or 1)
        hear(name, ordinals[batch.stream.attempt], batch)
        replay.hear(batch, ordinals[batch.stream.attempt], received_ns, cell=cell)
    newest = max(ordinals.values())
    last = {a for a, n in ordinals.items() if n == newest}
    statuses = [s.status for (a, _), s in run.streams.items() if a in last]
    status = _status(statuses)
    replay.close(status, max(p.last_ns for p in processes))
    starts = [(ordinals[attempt], s.start) for (attempt, _), s in run.streams.items()]
    return Spooled(facts, replay, run.damaged, status, starts, run.layouts)


def _facts(name: str, run: _Run, processes: Sequence[Process]) -> RunFacts:
    start = next(iter(run.streams.values())).start
    labels = {"project": DEFAULT_PROJECT, "run": name, "run_name": start.get("name") or name}
    labels |= {key: start[key] for key in _LABELS if start.get(key)}
    labels.setdefault("environment", "dev")
    return RunFacts(
        row=0,
        project=DEFAULT_PROJECT,
        run=name,
        name=str(start.get("name") or name),
        status="running",
        environment="prod" if start.get("page") else labels["environment"],
        world_size=max(p.world_size for p in processes),
        labels=labels,
        dashboard_url="",
        started_ns=min(p.started_ns for p in processes),
        last_seen_ns=max(p.last_ns for p in processes),
        last_step=max(s.last_step for s in run.streams.values()),
    )


def _status(statuses: Sequence[str | None]) -> str:
    """As the service sets it: a failure of any rank is the run's; else all must have ended."""
    known = [s if s in _WORST else "failed" for s in statuses if s is not None]
    worst = min(known, key=_WORST.index, default="running")
    ended = len(known) == len(statuses) or worst in ("failed", "preempted")
    return worst if ended else "running"


def _batches(directory: Path, run: str) -> Iterator[tuple[int, wire.Batch]]:
    """The readable batches of one spool in order, each with when it was sealed."""
    latest_ns = 0
    for kind, body in _records(directory):
        if kind != "batch":
            continue
        try:
            batch = wire.decode(body)
        except wire.WireError:
            continue
        if batch.stream.run == run:
            latest_ns = max(latest_ns, *(frame.time_ns for frame in batch.frames))
            yield latest_ns, batch


def _records(directory: Path) -> Iterator[tuple[str, bytes]]:
    for path in segments(directory):
        for record in read_segment(path):
            yield record.kind, record.body
