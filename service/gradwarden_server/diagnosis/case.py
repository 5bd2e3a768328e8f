"""What a diagnosis is made from: alerts, events, coverage, places, and a way to stored series."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from gradwarden_server.model import Alert, Change

Points = Sequence[tuple[int, float]]
"""(step, value) in step order; a value that is not finite is NaN or an infinity."""

KINDS = ("checkpoint", "mark", "guard", "finish")
"""The kinds of events that a diagnosis reads."""


class Series(Protocol):
    """The stored series of one run, step by step; what is not there is empty."""

    def scalar(self, name: str, first: int, last: int) -> Points:
        """A scalar, or ``grad_norm``, over steps [first, last]."""

    def layer(self, parameter: str, quantity: str, first: int, last: int) -> Points:
        """One quantity of one parameter over steps [first, last]."""


class NoSeries:
    """Where nothing is stored."""

    def scalar(self, name: str, first: int, last: int) -> Points:
        """Nothing."""
        return ()

    def layer(self, parameter: str, quantity: str, first: int, last: int) -> Points:
        """Nothing."""
        return ()


@dataclass(frozen=True, slots=True)
class Watched:
    """Whether one alert watched the run, and if not, what would arm it."""

    alert: str
    state: Literal["armed", "waiting", "blind"]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Happening:
    """An event of a run; ``step`` is that of the frame that brought it."""

    attempt: int
    rank: int
    step: int
    time_ns: int
    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Span:
    """An attempt; steps past ``superseded_after`` were done again by a later one."""

    ordinal: int
    first_step: int
    last_step: int | None = None
    superseded_after: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank of the newest attempt runs, with what its scheduler told it."""

    rank: int
    host: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def fact(self, name: str) -> str:
        """One fact as text, empty where it is not known."""
        value = self.facts.get(name)
        return "" if value is None else str(value)

    @property
    def node(self) -> str:
        return self.fact("node") or self.host


@dataclass(frozen=True, slots=True)
class Case:
    """Everything about one run that a diagnosis reads but its series.

    ``path`` is the run's page on the dashboard, ``parameters`` their names by row, ``newest``
    the number of the newest attempt.
    """

    run: str
    name: str
    status: str
    path: str
    last_step: int | None = None
    newest: int = 1
    world_size: int = 1
    alerts: Sequence[Alert] = ()
    events: Sequence[Happening] = ()
    coverage: Sequence[Watched] = ()
    attempts: Sequence[Span] = ()
    places: Sequence[Place] = ()
    parameters: Sequence[str] = ()

    def place(self, rank: int) -> Place | None:
        """Where a rank runs."""
        return next((p for p in self.places if p.rank == rank), None)

    def watch(self, alert: str) -> Watched | None:
        """How one alert watched the run."""
        return next((w for w in self.coverage if w.alert == alert), None)


def alerts_of(changes: Iterable[Change]) -> list[Alert]:
    """Each incident as the last transition left it, in the order in which they began."""
    told: list[Alert] = []
    at: dict[str, int] = {}
    for change in changes:
        key = change.alert.fingerprint
        if change.from_state == "inactive" or key not in at:
            at[key] = len(told)
            told.append(change.alert)
        else:
            told[at[key]] = change.alert
    return told
