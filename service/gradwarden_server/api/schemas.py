"""What answers look like; the OpenAPI document is made of these."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from gradwarden_server.api.plain import Number, rfc3339
from gradwarden_server.store.tokens import Scope, TokenRecord


class CommandFace(BaseModel):
    """Something asked of a rank; doing it twice does no harm."""

    id: int
    kind: str
    args: dict[str, Any]


class CommandsAnswer(BaseModel):
    """Open commands of the asking rank."""

    commands: list[CommandFace]


class StartAnswer(CommandsAnswer):
    """The stream as the service knows it."""

    run: str
    attempt: str
    ordinal: int = Field(description="The attempt's number on this server, from 1")
    url: str = Field(description="The run's page")


class LayoutAnswer(BaseModel):
    """The layout is kept."""

    hash: str


class IngestAnswer(CommandsAnswer):
    """What is durable now."""

    stored: int
    duplicate: int
    batch_seconds: float | None = Field(
        default=None,
        description="Left out, or for how long to gather frames that are not urgent",
    )


class AlertCounts(BaseModel):
    """Open alerts of a run."""

    pending: int
    firing: int


class RunLine(BaseModel):
    """One run in a line."""

    run: str
    name: str
    project: str
    owner: str | None
    training_job: str | None
    environment: str
    status: str
    health: Literal["ok", "warn", "crit", "silent"]
    reason: str
    verdict: str = Field(
        description="Health in words: healthy, healthy (partly watched) where fewer than 80 % of "
        "the detectors that could watch it are armed, at risk, critical or silent"
    )
    attempt: int = Field(description="The newest attempt's number")
    step: int | None
    loss: Number | None
    worst_layer: str | None
    alerts: AlertCounts
    world_size: int
    started_at: str | None
    last_seen_at: str | None
    ended_at: str | None


class RunFace(RunLine):
    """One run in a list."""

    spark: list[float | None] = Field(description="Recent global gradient norms")


class RunList(BaseModel):
    """Runs, newest first."""

    items: list[RunFace]
    next_cursor: str | None


class LayerFace(BaseModel):
    """One watched parameter."""

    i: int
    name: str
    layer: str
    block: str
    kind: str
    params: int
    dtype: str


class AttemptFace(BaseModel):
    """One attempt of a run."""

    ordinal: int
    attempt: str
    status: str
    first_step: int
    last_step: int | None
    superseded_after: int | None


class RankFace(BaseModel):
    """One rank of the newest attempt, and where it runs."""

    rank: int
    group: int
    shard: int
    shards: int
    host: str
    place: dict[str, Any]
    last_step: int | None
    last_seen_at: str | None
    heartbeat_at: str | None = Field(description="The last sign that its process lived")
    ended: bool


class CoverageFace(BaseModel):
    """Whether one kind of sickness could be seen in this run."""

    alert: str
    state: Literal["armed", "waiting", "blind"]
    detail: str
    concerns: bool = Field(description="False where there is nothing to look for in this run")


class RunDetail(RunFace):
    """One run with all that its page shows."""

    layers: list[LayerFace]
    backward: list[int]
    attempts: list[AttemptFace]
    ranks: list[RankFace]
    steps: tuple[int, int] | None
    coverage: list[CoverageFace]
    unjudged: int
    """Batches that were received and that no detector has looked at yet."""
    config: dict[str, Any]


class EventFace(BaseModel):
    """Something that happened at a step."""

    step: int
    time_ns: int
    rank: int
    attempt: int
    kind: str
    text: str
    data: dict[str, Any]


class EventList(BaseModel):
    """Events in time order."""

    items: list[EventFace]


class CommandAnswer(BaseModel):
    """The command as issued."""

    id: int


class ReceiverFace(BaseModel):
    """Somebody who is told; the URL may be a credential and is not shown."""

    name: str
    type: str
    severities: list[str]
    links: bool = Field(description="Whether messages carry links that acknowledge and silence")


class ReceiverList(BaseModel):
    """Every receiver of the file."""

    items: list[ReceiverFace]
    next_cursor: str | None = None


class ReceiverTest(BaseModel):
    """How a test message went."""

    ok: bool
    latency_ms: float
    detail: str


class TokenFace(BaseModel):
    """A token as listed, without its secret."""

    id: int
    name: str
    prefix: str
    scope: Scope
    created_at: str | None
    expires_at: str | None
    last_used_at: str | None
    revoked_at: str | None


def token_face(token: TokenRecord) -> TokenFace:
    """A token as listed."""
    return TokenFace(
        id=token.id,
        name=token.name,
        prefix=token.prefix,
        scope=token.scope,
        created_at=rfc3339(token.created_ns),
        expires_at=rfc3339(token.expires_ns),
        last_used_at=rfc3339(token.last_used_ns),
        revoked_at=rfc3339(token.revoked_ns),
    )


class TokenList(BaseModel):
    """Every token of the project, newest first."""

    items: list[TokenFace]
    next_cursor: str | None = None


class TokenCreated(TokenFace):
    """A new token; the secret is shown here and never again."""

    secret: str


class SessionFace(BaseModel):
    """Who asks, as the dashboard needs to know it."""

    authenticated: bool
    project: str | None
    scope: Scope | None
    login_required: bool
    projects: list[str]
    version: str
