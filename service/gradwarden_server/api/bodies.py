"""What requests may hold, checked before anything else looks at it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from gradwarden import wire
from gradwarden_server.api.plain import plain
from gradwarden_server.store.commands import CommandKind
from gradwarden_server.store.tokens import Scope

_MOST_NS = 2**62


def _identifier(value: str) -> str:
    if not wire.is_identifier(value):
        raise ValueError("use letters, digits and . _ : + - only, at most 128 of them")
    return value


def _no_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("leave out the NUL character")
    return value


Identifier = Annotated[str, AfterValidator(_identifier)]
Text = Annotated[str, StringConstraints(max_length=256), AfterValidator(_no_nul)]
Short = Annotated[str, StringConstraints(max_length=64), AfterValidator(_no_nul)]
Rank = Annotated[int, Field(ge=0, le=10_000_000)]
Step = Annotated[int, Field(ge=0, le=_MOST_NS)]
Moment = Annotated[int, Field(ge=0, le=_MOST_NS, description="UTC nanoseconds")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Facts = Annotated[dict[str, Any], AfterValidator(plain)]


class _Body(BaseModel):
    # Members that a newer SDK sends are ignored: an upgrade of the trainers must not stop them.
    model_config = ConfigDict(extra="ignore", strict=False)


class StartBody(_Body):
    """One process announces itself as one rank of one attempt of one run."""

    run: Identifier
    attempt: Identifier
    rank: Rank
    nonce: Identifier
    host: Text
    pid: Annotated[int, Field(ge=0, le=_MOST_NS)]
    world_size: Annotated[int, Field(ge=1, le=10_000_000)] = 1
    group: Rank = 0
    shard: Rank = 0
    shards: Annotated[int, Field(ge=1, le=10_000_000)] = 1
    first_step: Step = 0
    parent: Identifier | None = None
    started_ns: Moment | None = None
    takeover: bool = False
    name: Text | None = None
    training_job: Text | None = None
    model: Text | None = None
    dataset: Text | None = None
    cluster: Text | None = None
    queue: Text | None = None
    owner: Text | None = None
    team: Text | None = None
    environment: Short | None = None
    git_commit: Short | None = None
    config: Facts = Field(default_factory=dict)
    page: bool = False
    cost_per_hour: Finite | None = None
    target_loss: Finite | None = None
    place: Facts = Field(default_factory=dict)

    @model_validator(mode="after")
    def _shard_exists(self) -> StartBody:
        if self.shard >= self.shards:
            raise ValueError(f"shard {self.shard}; shards count from 0 to {self.shards - 1}")
        return self


class HeartbeatBody(_Body):
    """A sign of life between frames."""

    run: Identifier
    attempt: Identifier
    rank: Rank
    nonce: Identifier
    step: Step | None = None
    phase: Short | None = None
    sent_ns: Moment


class CommandAckBody(_Body):
    """The rank that did what a command asked."""

    run: Identifier
    attempt: Identifier
    rank: Rank
    nonce: Identifier


class CommandBody(_Body):
    """Ask something of a rank; what ``args`` may hold depends on the kind, see :data:`ARGS`."""

    rank: Rank = 0
    kind: CommandKind
    args: Facts = Field(default_factory=dict)


class Args(BaseModel):
    """The arguments of one kind of command: an unknown one is a mistake, not news."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StepsArgs(Args):
    """For how many captured steps."""

    steps: Annotated[int, Field(ge=1, le=1000)] = 4


class SpeakArgs(Args):
    """Whether this rank sends the matrices of its cell."""

    on: bool = True


class ScheduleArgs(Args):
    """When to capture from now on; what is left out stays as it is."""

    every: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    early: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    preset: Literal["light", "standard", "full"] | None = None


class HaltArgs(Args):
    """Why the run is to end; the trainer's log and the run's page say it."""

    reason: Text = ""


ARGS: Mapping[CommandKind, type[Args]] = {
    "checksums": StepsArgs,
    "capture": StepsArgs,
    "speak": SpeakArgs,
    "pause": Args,
    "resume": Args,
    "schedule": ScheduleArgs,
    "halt": HaltArgs,
}


def command_args(kind: CommandKind, args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a command, checked, with those left out at their defaults.

    Raises:
        pydantic.ValidationError: one is unknown, or of a wrong type or range.
    """
    return ARGS[kind].model_validate(dict(args)).model_dump(exclude_none=True)


class TokenBody(_Body):
    """A token to make."""

    name: Annotated[Text, StringConstraints(min_length=1, max_length=128)]
    scope: Scope
    expires_in_days: Annotated[float, Field(gt=0, le=36500)] | None = None


class LoginBody(_Body):
    """A token to exchange for a session."""

    token: Annotated[str, StringConstraints(min_length=1, max_length=256)]
