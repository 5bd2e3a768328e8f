"""What answers about alerts look like."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ImpactFace(BaseModel):
    """What an incident cost, from its first bad step until now or its end."""

    gpus: int = Field(description="Processes of the run; each drives a GPU where there are any")
    gpu_hours: float
    devices: Literal["GPU", "process"] = Field(description="What the hours are hours of")
    since: str | None = Field(description="The time of the first bad step")


class LastCheckpointFace(BaseModel):
    """The last good checkpoint: its checksum known, its weights finite, clean steps behind it."""

    step: int
    path: str
    age_seconds: float | None
    verified: bool = Field(description="Somebody looked at the file again, and it was as saved")


class FirstActionFace(BaseModel):
    """The first safe thing to do; a command stands only where it is known to be right."""

    text: str
    command: str | None
    risk: str | None


class NotifiedFace(BaseModel):
    """One message about the alert: to whom, when, and how it went."""

    receiver: str
    at: str | None = Field(description="Of the last try; null before the first")
    ok: bool | None
    why: str = Field(
        description="What made it be sent: fired, changed, repeated, resolved, storm, or escalated "
        "and why"
    )
    state: str = Field(description="waiting, standing, sent or dead")
    attempts: int
    detail: str | None


class AlertFace(BaseModel):
    """One incident."""

    id: int
    alertname: str
    severity: str
    state: str
    labels: dict[str, str]
    annotations: dict[str, str]
    active_at: str | None
    fired_at: str | None
    resolved_at: str | None
    reason: str
    fingerprint: str
    muted: str | None = Field(description="What holds its messages back: a silence, or its cause")
    acknowledged_at: str | None
    acknowledged_by: str | None
    owner: str | None
    runbook_url: str | None
    impact: ImpactFace | None = Field(description="Null where no run is meant")
    last_checkpoint: LastCheckpointFace | None = Field(description="Of open alerts")
    checkpoint_note: str | None = Field(description="Why that one, or why there is none")
    first_action: FirstActionFace | None = Field(description="Of open alerts")
    notified: list[NotifiedFace]


class AlertList(BaseModel):
    """Alerts, newest first."""

    items: list[AlertFace]
    next_cursor: str | None


class SilencePreview(AlertList):
    """The open alerts that a silence would hold back, and how many it would have of late."""

    past_7d: int = Field(description="Alerts that fired in the past 7 days")


class TimelineFace(BaseModel):
    """One line of an alert's timeline."""

    model_config = ConfigDict(populate_by_name=True)

    at: str | None
    kind: Literal[
        "pending",
        "firing",
        "resolved",
        "enriched",
        "muted",
        "unmuted",
        "acknowledged",
        "note",
        "notified",
    ]
    from_: str | None = Field(serialization_alias="from", validation_alias="from_")
    to: str | None
    reason: str
    who: str | None = Field(description="A person, or the receiver that was told")
    ok: bool | None = Field(description="Of messages: whether it was taken")
    text: str | None
    annotations: dict[str, str]


class DeliveryFace(BaseModel):
    """Who was told, and how it went."""

    receiver: str
    state: str
    attempts: int
    at: str | None
    ok: bool | None
    detail: str | None


class AlertDetail(AlertFace):
    """One incident with all that happened to it."""

    timeline: list[TimelineFace]
    deliveries: list[DeliveryFace]


class SaidFace(BaseModel):
    """What somebody wrote."""

    at: str | None
    by: str
    text: str


class SimilarFace(BaseModel):
    """An incident of the same name, and how it ended."""

    id: int
    run: str | None
    run_name: str | None
    severity: str
    state: str
    layer: str | None
    cause: str | None
    summary: str | None
    fired_at: str | None
    resolved_at: str | None
    reason: str
    seconds_to_resolve: float | None
    alike: list[str] = Field(description="What is the same: layer, cause, run")
    acknowledged_by: str | None
    notes: list[SaidFace]


class SimilarList(BaseModel):
    """Incidents of the past 90 days, those most alike first."""

    items: list[SimilarFace]


class Spread(BaseModel):
    """Of how many incidents a time is known, its median and the 90th percentile, in seconds."""

    of: int
    median: float | None
    p90: float | None


class AlertStats(BaseModel):
    """How often one alert came, and what became of it."""

    alertname: str
    count: int
    paged: int
    told: int = Field(description="Pages and tickets that people were told of")
    acted_on: int = Field(description="Of those, acknowledged or noted")
    acted_ratio: float | None = Field(description="Null where nobody was told")
    flapping: int = Field(description="How often it fired again within an hour of its end")
    to_detect: Spread = Field(description="From the first bad step until it fired")
    to_acknowledge: Spread
    to_resolve: Spread


class AlertStatsList(BaseModel):
    """Alerts of a time, those that people were told of most and acted on least first."""

    days: float
    count: int
    told: int
    acted_on: int
    acted_ratio: float | None
    items: list[AlertStats]
