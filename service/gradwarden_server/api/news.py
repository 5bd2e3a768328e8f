"""What a topic of the stream tells: its state as items by key, and what changed between two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field

from gradwarden import wire
from gradwarden_server.api.schemas import RunFace, RunLine
from gradwarden_server.api.summary import Summaries
from gradwarden_server.store.fleet import Fleet
from gradwarden_server.store.standing import Standing, StandingAlert

FLEET_RUNS = 100
"""As many as the first page of runs shows; those behind it are read when somebody looks."""
_RUN = "run:"

Event = Literal["run.update", "alert.update"]
State = Mapping[str, Mapping[str, Any]]


class RunNews(BaseModel):
    """Runs that changed; lines of topic fleet have a spark."""

    topic: str
    items: list[RunFace | RunLine]
    gone: list[str]


class StandingFace(BaseModel):
    """An open alert in short."""

    id: int
    run: str | None
    alertname: str
    severity: str
    state: Literal["pending", "firing"]
    quiet: bool = Field(description="Silenced, held back by its cause, or acknowledged")


class StandingCounts(BaseModel):
    """Open alerts, the newest thousand; those that are quiet are counted as that alone."""

    firing: int
    pending: int
    quiet: int


class AlertNews(BaseModel):
    """Open alerts that changed, and those that are open no more."""

    topic: str
    counts: StandingCounts
    items: list[StandingFace]
    gone: list[str]


@dataclass(frozen=True, slots=True)
class News:
    """What changed in a topic; the client is told this and nothing of the past."""

    event: Event
    data: Mapping[str, Any]


def is_topic(text: str) -> bool:
    """Whether there is such a topic: fleet, alerts, or run:<its name>."""
    return text in ("fleet", "alerts") or (
        text.startswith(_RUN) and wire.is_identifier(text.removeprefix(_RUN))
    )


class Newsroom:
    """Reads topics; each reading is a handful of statements and no matrix."""

    def __init__(self, fleet: Fleet, summaries: Summaries, standing: Standing) -> None:
        self._fleet = fleet
        self._summaries = summaries
        self._standing = standing

    def read(self, project: str, topic: str, now_ns: int) -> State:
        """The topic's state now."""
        if topic == "alerts":
            return {str(alert.id): _alert(alert) for alert in self._standing.open(project)}
        if topic == "fleet":
            runs = self._fleet.page(project, limit=FLEET_RUNS).items
            lines = self._summaries.lines(project, runs, now_ns)
            return {line["run"]: line for line in lines}
        run = topic.removeprefix(_RUN)
        listed = self._fleet.one(project, run)
        if listed is None:
            return {}
        (line,) = self._summaries.lines(project, [listed], now_ns)
        return {run: {key: value for key, value in line.items() if key != "spark"}}


def changed(topic: str, before: State, after: State) -> News | None:
    """What to tell somebody who knows ``before``; None where that is nothing."""
    items = [now for key, now in after.items() if _told(before.get(key)) != _told(now)]
    gone = [key for key in before if key not in after]
    if not items and not gone:
        return None
    if topic != "alerts":
        return News("run.update", {"topic": topic, "items": items, "gone": gone})
    counts = dict.fromkeys(("firing", "pending", "quiet"), 0)
    for alert in after.values():
        counts["quiet" if alert["quiet"] else alert["state"]] += 1
    data = {"topic": topic, "counts": counts, "items": items, "gone": gone}
    return News("alert.update", data)


def _alert(alert: StandingAlert) -> Mapping[str, Any]:
    return {
        "id": alert.id,
        "run": alert.run,
        "alertname": alert.alertname,
        "severity": alert.severity,
        "state": alert.state,
        "quiet": bool(alert.muted) or alert.acked_ns is not None,
    }


def _told(item: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """An item without what changes by itself: how long a silent run has been silent."""
    if item is None or item.get("health") != "silent":
        return item
    return {key: value for key, value in item.items() if key != "reason"}
