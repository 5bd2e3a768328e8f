"""Who is told of which alerts, grouped by what, and when: the routes of the receivers file.

A flat list in order. The first route whose matchers hold takes the alert; with ``continue`` the
next ones are asked as well. Without routes every receiver gets the severities it asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradwarden_server.matchers import Matcher, all_match
from gradwarden_server.model import Alert, Labels, Lane
from gradwarden_server.notify.payload import MAX_ALERTS, MAX_PUSHED, group_key
from gradwarden_server.notify.spec import NOBODY, Receiver

SECOND_NS = 1_000_000_000
REPEAT_SECONDS = 4 * 3600.0
ESCALATE_SECONDS = 15 * 60.0
# A page leaves at once; what else begins within half a minute comes together.
_WAIT_SECONDS = {"page": 0.0, "ticket": 30.0}
_INTERVAL_SECONDS = {"page": 30.0, "ticket": 300.0}
# A second, different page of the same run is another incident; its tickets are one.
GROUP_BY = {"page": ("run", "alertname"), "ticket": ("run",)}
"""What alerts of a severity share to be one group, where their route does not say."""


@dataclass(frozen=True, slots=True)
class Escalation:
    """Who is told as well when nobody acknowledges a page in time, or it cannot be delivered."""

    receiver: str
    after_seconds: float = ESCALATE_SECONDS


@dataclass(frozen=True, slots=True)
class Storm:
    """Of more new page groups than ``groups`` within ``seconds`` the rest fold into one."""

    groups: int = 10
    seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Timing:
    """The times of a group, in nanoseconds; ``repeat_ns`` 0 means never."""

    wait_ns: int
    interval_ns: int
    repeat_ns: int
    cool_down_ns: int


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the list. What is None follows from the severity of the alert."""

    receiver: str
    matchers: tuple[Matcher, ...] = ()
    group_by: tuple[str, ...] | None = None
    group_wait_seconds: float | None = None
    group_interval_seconds: float | None = None
    repeat_interval_seconds: float = REPEAT_SECONDS
    cool_down_seconds: float = 0.0
    goes_on: bool = False
    escalate: Escalation | None = None
    storm: Storm | None = Storm()

    @property
    def name(self) -> str:
        """Its matchers; empty for a route that takes everything."""
        return ",".join(map(str, self.matchers))

    def timing(self, severity: str) -> Timing:
        """The times of a group whose most urgent alert has this severity."""
        wait = self.group_wait_seconds
        if wait is None:
            wait = _WAIT_SECONDS[severity]
        interval = self.group_interval_seconds
        if interval is None:
            interval = _INTERVAL_SECONDS[severity]
        # What is told again is a message of its group: no sooner than the interval allows.
        repeat = self.repeat_interval_seconds and max(self.repeat_interval_seconds, interval)
        return Timing(
            round(wait * SECOND_NS),
            round(interval * SECOND_NS),
            round(repeat * SECOND_NS),
            round(self.cool_down_seconds * SECOND_NS),
        )

    def lane(self, alert: Alert) -> Lane:
        """The group of this route that an alert belongs to."""
        labels = alert.labels
        names = list(GROUP_BY[alert.severity] if self.group_by is None else self.group_by)
        if self.group_by is None and "run" not in labels and "alertname" not in names:
            names.append("alertname")
        # The project is part of every group: two teams may give their runs the same name.
        group = {name: labels[name] for name in ("project", *names) if name in labels}
        wait_ns = self.timing(alert.severity).wait_ns
        return Lane(self.receiver, self.name, group_key(group, self.name), group, wait_ns)


class Routing:
    """Finds the ways from an alert to people."""

    def __init__(self, receivers: Sequence[Receiver], routes: Sequence[Route] = ()) -> None:
        self.hearers = tuple(receivers)
        hears = [receiver for receiver in receivers if receiver.watchdog_seconds is None]
        self._pushed = {receiver.name for receiver in hears if receiver.type == "alertmanager"}
        self._severities = {receiver.name: receiver.severities for receiver in hears}
        self._default = tuple(map(_whole, hears))
        self.adopt(routes)

    def adopt(self, routes: Sequence[Route]) -> None:
        """Work by these routes from now on."""
        named: dict[tuple[str, str], Route] = {}
        self.routes = tuple(routes) or self._default
        """In order."""
        for route in self.routes:
            named.setdefault((route.receiver, route.name), route)
        for route in self.routes:
            if route.escalate is not None:
                named.setdefault((route.escalate.receiver, route.name), route)
        self._named = named

    def of(self, labels: Labels) -> list[Route]:
        """The routes that alerts with these labels take."""
        taken = []
        for route in self.routes:
            if all_match(route.matchers, labels):
                if route.receiver != NOBODY:
                    if labels.get("severity") not in self._severities.get(route.receiver, ()):
                        continue  # it does not take it; who is behind it may
                    taken.append(route)
                if not route.goes_on:
                    break
        return taken

    def lanes(self, alert: Alert) -> list[Lane]:
        """The groups that an alert belongs to; none for a note, which wakes nobody."""
        lanes = {}
        for route in self.of(alert.labels):
            lane = route.lane(alert)
            lanes[lane.receiver, lane.key] = lane
        return [lanes[key] for key in sorted(lanes)]

    def receivers(self, labels: Labels) -> list[str]:
        """Who is told of alerts with these labels, each once."""
        return list(dict.fromkeys(route.receiver for route in self.of(labels)))

    def most(self, receiver: str) -> int:
        """How many alerts a message to this receiver may hold."""
        return MAX_PUSHED if receiver in self._pushed else MAX_ALERTS

    def route(self, receiver: str, name: str) -> Route | None:
        """The route that told or escalated a group; None where the file has it no more."""
        return self._named.get((receiver, name))


def _whole(receiver: Receiver) -> Route:
    """What a receiver gets where the file has no routes."""
    if receiver.type == "alertmanager":
        # It groups, waits and repeats by itself, and would do so a second time behind ours.
        return Route(
            receiver.name,
            group_wait_seconds=0.0,
            group_interval_seconds=0.0,
            repeat_interval_seconds=0.0,
            goes_on=True,
            storm=None,
        )
    return Route(receiver.name, goes_on=True)
