"""What a detector is: it is advanced over steps, asked at moments, and can be put aside.

Detectors are pure: data and time are arguments. Each gives its own conditions; which of
several names of one sickness reaches a person is decided behind them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Protocol

from gradwarden_server.detect.context import RunContext
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import SEVERITIES, Condition, RunFacts, Severity

ESCALATED = "escalated"
CLEARED = "cleared"


class Rule(Protocol):
    """The part of a native rule that makes a detector."""

    @property
    def alert(self) -> str: ...
    @property
    def detector(self) -> str: ...
    @property
    def params(self) -> Mapping[str, Any]: ...
    @property
    def severity(self) -> Severity | None: ...


@dataclass(frozen=True, slots=True)
class Coverage:
    """Whether one alert watches this run, and if not, the line of code that would arm it."""

    alert: str
    state: Literal["armed", "waiting", "blind"]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """A command that a detector wants one rank of the present attempt to be given."""

    rank: int
    kind: Literal["checksums", "speak"]
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RankLiveness:
    """When one rank of the newest attempt was last heard of, by the service's clock."""

    rank: int
    last_seen_ns: int
    last_step: int | None = None
    last_step_ns: int | None = None
    phase: str | None = None
    ended: bool = False
    host: str = ""


@dataclass(frozen=True, slots=True)
class Liveness:
    """Who of the newest attempt lives. ``service_started_ns`` bounds all silence, for the
    service's own downtime is no evidence against a run."""

    attempt: int
    attempt_started_ns: int
    service_started_ns: int
    ranks: tuple[RankLiveness, ...] = ()

    def since(self, moment_ns: int) -> int:
        """When a silence that began at ``moment_ns`` could first be noticed."""
        return max(moment_ns, self.service_started_ns)

    @property
    def living(self) -> tuple[RankLiveness, ...]:
        return tuple(r for r in self.ranks if not r.ended)


class Detector(ABC):
    """One detector of one run.

    Subclasses name themselves, list their parameters as a dataclass without defaults (values
    and sources are in ``alert_rules/``), and overwrite what concerns them.
    """

    name: ClassVar[str]
    severities: ClassVar[tuple[Severity, ...]]
    parameters: ClassVar[type[Any]]

    def __init__(self, alert: str, params: Any) -> None:
        self.alert = alert
        self.params = params
        self._all_clear: dict[str, list[Condition]] = {}

    def advance(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        """Judge the present step; ``ctx`` was advanced over it before.

        Nobody changes a list that was returned: the same one again says that nothing changed.
        """
        return ()

    def peek(self, step: Step, ctx: RunContext) -> Sequence[Condition]:
        """Judge a partial step early, changing nothing; its full form is advanced over later."""
        return ()

    def tick(self, now_ns: int, facts: RunFacts, liveness: Liveness) -> Sequence[Condition]:
        """Judge what only time can tell; called about once a second for live runs."""
        return ()

    def requests(self) -> Sequence[Request]:
        """What it wants of trainers after the step it was last advanced over."""
        return ()

    @abstractmethod
    def coverage(self, ctx: RunContext) -> Coverage:
        """Whether this run gives it what it needs."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that :meth:`restore` needs to go on as if never stopped."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""

    @classmethod
    def schema(cls) -> dict[str, str]:
        """Name and type of each parameter."""
        return {f.name: str(f.type) for f in fields(cls.parameters)}

    def calm(self, reason: str = CLEARED) -> list[Condition]:
        """It looked and saw nothing, at any severity; the same list each time."""
        held = self._all_clear.get(reason)
        if held is None:
            held = [Condition(self.alert, s, False, reason=reason) for s in self.severities]
            self._all_clear[reason] = held
        return held

    def say(self, severity: Severity, annotations: Mapping[str, str]) -> list[Condition]:
        """It saw something; the other severities are quiet."""
        return [
            Condition(self.alert, s, True, annotations)
            if s == severity
            else Condition(self.alert, s, False, reason=ESCALATED)
            for s in self.severities
        ]


class Incident:
    """One sickness from its first sign until enough clean steps, at its highest severity."""

    def __init__(self) -> None:
        self.severity: Severity | None = None
        self.annotations: dict[str, str] = {}
        self.clean = 0
        self._told: tuple[Severity, dict[str, str], list[Condition]] | None = None

    def sign(self, severity: Severity, annotations: Mapping[str, str]) -> None:
        """A sign; the words change only when it is worse than before."""
        self.clean = 0
        if self.severity is None or rank_of(severity) < rank_of(self.severity):
            self.severity, self.annotations = severity, dict(annotations)

    def worse_than(self, severity: Severity) -> bool:
        """Whether a sign of ``severity`` would change nothing."""
        return self.severity is not None and rank_of(self.severity) <= rank_of(severity)

    def healthy_step(self, enough: int) -> None:
        self.clean += 1
        if self.clean >= enough:
            self.severity, self.annotations = None, {}

    def conditions(self, detector: Detector) -> list[Condition]:
        if self.severity is None:
            return detector.calm()
        told = self._told
        if told is None or told[0] != self.severity or told[1] is not self.annotations:
            said = detector.say(self.severity, self.annotations)
            told = self._told = (self.severity, self.annotations, said)
        return told[2]

    def state(self) -> list[Any]:
        return [self.severity, self.annotations, self.clean]

    def restore(self, state: Sequence[Any]) -> None:
        self.severity, self.annotations, self.clean = state[0], dict(state[1]), state[2]


def rank_of(severity: Severity) -> int:
    """0 for a page, growing with calm."""
    return SEVERITIES.index(severity)
