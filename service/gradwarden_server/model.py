"""The nouns that rooms hand to each other. Frozen, without I/O; times are UTC nanoseconds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

from gradwarden_server.matchers import Matcher, all_match
from gradwarden_server.weekly import Span, Weekly

Severity = Literal["page", "ticket", "note"]
AlertState = Literal["inactive", "pending", "firing", "resolved"]
Labels = Mapping[str, str]

SEVERITIES: tuple[Severity, ...] = ("page", "ticket", "note")
TOLD_LATE = "told_late"
"""Why an alert that fires already is news: what muted it from its beginning is over."""


DEFAULT_PROJECT = "default"
DRILL = "drill"
"""The environment of runs that only test the line to people; a label of their alerts."""
SHADOW = "shadow"
"""An annotation of tickets that stand for a page; its value is ``WOULD_HAVE_PAGED``."""
WOULD_HAVE_PAGED = "would have paged"
PROOF = "proof"
"""An annotation of pages that no threshold made: what was seen leaves no other reading."""


def run_path(project: str, run: str) -> str:
    """Where the dashboard shows a run; a browser without a token must name the project."""
    return f"/runs/{run}" + ("" if project == DEFAULT_PROJECT else f"?project={quote(project)}")


def fingerprint(labels: Labels) -> str:
    """16 hex digits that name a label set, whatever its order."""
    text = "\xff".join(f"{k}\xfe{labels[k]}" for k in sorted(labels))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What rules and alerts need to know of a run beyond its frames.

    ``labels`` are the stable labels of its alerts, without alertname and severity.
    """

    row: int
    project: str
    run: str
    name: str
    status: str
    environment: str
    world_size: int
    labels: Labels
    dashboard_url: str
    started_ns: int
    last_seen_ns: int
    last_step: int | None
    ended_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """What one rule says of one run at one moment; the input of the alert state machine.

    ``active`` False means the rule looked and saw nothing; a rule that cannot judge says
    nothing at all. ``annotations`` carry step, layer and rank, which are never identity.
    """

    alertname: str
    severity: Severity
    active: bool
    annotations: Mapping[str, str] = field(default_factory=dict)
    reason: str = "condition"


@dataclass(frozen=True, slots=True)
class Silence:
    """What somebody does not want to hear for a while."""

    id: int
    project: str
    matchers: tuple[Matcher, ...]
    starts_ns: int
    ends_ns: int
    author: str
    comment: str

    def state(self, now_ns: int) -> Literal["pending", "active", "expired"]:
        """As Alertmanager calls it."""
        if now_ns < self.starts_ns:
            return "pending"
        return "active" if now_ns < self.ends_ns else "expired"

    @property
    def title(self) -> str:
        """What an alert says that it holds back."""
        return f"silence {self.id}"

    def covers(self, labels: Labels, now_ns: int) -> bool:
        """Whether it holds back messages of alerts with these labels now."""
        return self.state(now_ns) == "active" and all_match(self.matchers, labels)


@dataclass(frozen=True, slots=True)
class Maintenance:
    """Work that is planned: a silence once, or every week.

    One that comes back does so from ``starts_ns`` on, until ``ends_ns`` where that is set.
    ``ended_ns`` is when somebody ended it for good.
    """

    id: int
    project: str
    matchers: tuple[Matcher, ...]
    starts_ns: int
    ends_ns: int | None
    weekly: Weekly | None
    author: str
    comment: str
    ended_ns: int | None = None

    @property
    def title(self) -> str:
        """What an alert says that it holds back."""
        return f"maintenance {self.id}"

    def window(self, now_ns: int) -> Span | None:
        """The window that is open now, cut to the time in which it holds; None where none is."""
        if not self.starts_ns <= now_ns < self._until_ns:
            return None
        if self.weekly is None:
            return self.starts_ns, self._until_ns
        found = self.weekly.covering(now_ns)
        return None if found is None else self._cut(found)

    def next_window(self, now_ns: int) -> Span | None:
        """The first window that opens after now; None where none does."""
        if self.weekly is None:
            found = self.starts_ns, self._until_ns
            return found if now_ns < found[0] < found[1] else None
        found = self.weekly.following(max(now_ns, self.starts_ns - 1))
        return self._cut(found) if found[0] < self._until_ns else None

    def state(self, now_ns: int) -> Literal["scheduled", "active", "ended"]:
        """Whether it holds messages back now, or will."""
        if self.window(now_ns) is not None:
            return "active"
        return "ended" if self.next_window(now_ns) is None else "scheduled"

    def covers(self, labels: Labels, now_ns: int) -> bool:
        """Whether it holds back messages of alerts with these labels now."""
        return all_match(self.matchers, labels) and self.window(now_ns) is not None

    @property
    def _until_ns(self) -> int:
        ends = [ns for ns in (self.ends_ns, self.ended_ns) if ns is not None]
        return min(ends, default=2**63)

    def _cut(self, span: Span) -> Span:
        return max(span[0], self.starts_ns), min(span[1], self._until_ns)


Quiet = Silence | Maintenance
"""What holds messages back because somebody wanted it so."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One incident: from pending to resolved. A new incident is a new alert.

    ``muted`` says what holds its messages back, until ``muted_until_ns`` where that is known;
    ``told`` that its firing was let through at least once. ``rule_group`` names the group of
    Prometheus's rules that keeps it; None where the detectors of its run do.
    """

    id: int | None
    project: str
    run: str | None
    labels: Labels
    annotations: Mapping[str, str]
    state: AlertState
    active_ns: int
    fired_ns: int | None = None
    resolved_ns: int | None = None
    reason: str = "condition"
    muted: str = ""
    muted_until_ns: int | None = None
    told: bool = False
    acked_ns: int | None = None
    acked_by: str | None = None
    rule_group: str | None = None

    @property
    def alertname(self) -> str:
        return self.labels["alertname"]

    @property
    def severity(self) -> str:
        return self.labels["severity"]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.labels)


@dataclass(frozen=True, slots=True)
class Change:
    """A transition of one alert, with why; what the ledger stores and the pager line reads."""

    alert: Alert
    from_state: AlertState
    at_ns: int
    reason: str

    @property
    def to_state(self) -> AlertState:
        return self.alert.state


@dataclass(frozen=True, slots=True)
class Lane:
    """One way from an alert to people: the group of one receiver that it belongs to.

    ``key`` names the group to the receiver, ``route`` the route of the receivers file that led
    there. A group that is new is first told after ``wait_ns``.
    """

    receiver: str
    route: str
    key: str
    labels: Labels
    wait_ns: int


@dataclass(frozen=True, slots=True)
class Member:
    """An alert of a group, by its row, and whether the receiver was told that it fires."""

    row: int
    alert: Alert
    told: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Alerts that one receiver hears of together, and what it was told of them.

    From its first message to its end it is ``open``. ``began_ns`` is when something began to fire
    that was not told yet, ``opened_ns`` when it was opened last, and ``told_ns`` when it was last
    told that something fires; both stay behind its end, so that flapping is held back.
    """

    id: int
    project: str
    receiver: str
    route: str
    key: str
    labels: Labels
    open: bool = False
    storm: bool = False
    """It stands for many groups, which were folded into it."""
    counted: int = 0
    """Of a storm: of how many alerts its last message spoke."""
    folded_into: int | None = None
    """The storm that speaks for it."""
    source: int | None = None
    """The group that escalated into this one; ``why`` says why."""
    why: str = ""
    began_ns: int | None = None
    opened_ns: int | None = None
    told_ns: int | None = None
    escalated_ns: int | None = None
    failing: str = ""
    """Why its messages do not reach the receiver, where that is so."""
    members: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True)
class Folded:
    """What fires in the groups of a storm; the worst runs have the most alerts."""

    groups: int
    alerts: int
    runs: int
    alertnames: Mapping[str, int]
    worst_runs: Sequence[str]
    acknowledged: bool


@dataclass(frozen=True, slots=True)
class Notification:
    """One message to one receiver, stored in the transaction of the change that caused it."""

    project: str
    receiver: str
    group_key: str
    severity: str
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Queued:
    """A notification claimed from the outbox for one try."""

    id: int
    notification: Notification
    seq: int
    attempts: int
    created_ns: int


@dataclass(frozen=True, slots=True)
class Thread:
    """Where a group's first message stands: in which channel or mailbox, and its name there."""

    place: str
    anchor: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """How one try went.

    ``retry_at_ns`` None with ``ok`` False means: give up. With ``ok`` True a ``retry_at_ns``
    means: it arrived, and is to be repeated then until its group says something new.
    """

    ok: bool
    detail: str
    at_ns: int
    duration_seconds: float
    retry_at_ns: int | None = None
