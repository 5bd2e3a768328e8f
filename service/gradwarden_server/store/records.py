"""Rows as frozen dataclasses: what the store takes in and hands out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gradwarden_server.model import DRILL

LIVE_NS = 30 * 1_000_000_000
"""A stream heard within this time holds its (run, rank): three missed heartbeats."""


@dataclass(frozen=True, slots=True)
class StartRequest:
    """One process announces itself as one rank of one attempt of one run."""

    run: str
    attempt: str
    rank: int
    nonce: str
    host: str
    pid: int
    world_size: int = 1
    group: int = 0
    shard: int = 0
    shards: int = 1
    first_step: int = 0
    parent: str | None = None
    started_ns: int | None = None
    takeover: bool = False
    name: str | None = None
    training_job: str | None = None
    model: str | None = None
    dataset: str | None = None
    cluster: str | None = None
    queue: str | None = None
    owner: str | None = None
    team: str | None = None
    environment: str | None = None
    git_commit: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    page: bool = False
    cost_per_hour: float | None = None
    target_loss: float | None = None
    place: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Started:
    """The answer to a start: the run, and the attempt's number on this server."""

    run: str
    attempt: str
    ordinal: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life between frames."""

    run: str
    attempt: str
    rank: int
    nonce: str
    step: int | None
    phase: str | None
    sent_ns: int


@dataclass(frozen=True, slots=True)
class Ack:
    """What became durable of one batch: frames stored now, and frames held before."""

    stored: int
    duplicate: int


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run as stored."""

    id: int
    project: str
    run: str
    name: str
    training_job: str | None
    model: str | None
    dataset: str | None
    cluster: str | None
    queue: str | None
    owner: str | None
    team: str | None
    environment: str
    git_commit: str | None
    config: Mapping[str, Any]
    world_size: int
    cost_per_hour: float | None
    target_loss: float | None
    status: str
    page: bool
    started_ns: int
    ended_ns: int | None
    last_seen_ns: int
    last_step: int | None
    position: int

    @property
    def labels(self) -> dict[str, str]:
        """The stable labels of every alert of this run; unknown ones are left out."""
        labels = {
            "project": self.project,
            "run": self.run,
            "run_name": self.name,
            "training_job": self.training_job,
            "owner": self.owner,
            "team": self.team,
            "environment": self.environment,
            "cluster": self.cluster,
            "queue": self.queue,
            "drill": "true" if self.environment == DRILL else None,
        }
        return {name: value for name, value in labels.items() if value}


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt; ``superseded_after`` is the last step that a later attempt did not redo."""

    ordinal: int
    attempt: str
    parent: str | None
    status: str
    first_step: int
    last_step: int | None
    started_ns: int
    ended_ns: int | None
    superseded_after: int | None


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """One rank of one attempt: where it runs and when it was last heard."""

    ordinal: int
    rank: int
    group: int
    shard: int
    shards: int
    nonce: str
    host: str
    pid: int
    place: Mapping[str, Any]
    last_step: int | None
    last_step_ns: int | None
    last_seen_ns: int
    heartbeat_ns: int | None
    phase: str | None
    ended: bool


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Something that happened at a step: a checkpoint, a mark, a finish."""

    ordinal: int
    rank: int
    step: int
    time_ns: int
    kind: str
    data: Mapping[str, Any]
