"""The pager line without a database: marks, groups and messages in memory, at a clock of its own.

What is decided is the service's own code; only the tables are replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gradwarden_server.model import Alert, Change, Group, Lane, Member, Notification
from gradwarden_server.notify import groups as deciding
from gradwarden_server.notify.payload import body
from gradwarden_server.notify.routes import Route, Routing

Incident = tuple[str, int]


@dataclass
class Held:
    """A group and when to look at it."""

    group: Group
    due_ns: int | None


@dataclass
class Board:
    """Changes in, messages out."""

    routing: Routing
    url: str = "http://gradwarden"
    groups: dict[tuple[str, str], Held] = field(default_factory=dict)
    rows: dict[Incident, int] = field(default_factory=dict)
    alerts: dict[int, Alert] = field(default_factory=dict)
    said: list[tuple[int, str, Notification]] = field(default_factory=list)

    def change(self, changes: Iterable[Change], now_ns: int) -> None:
        """Write changes, as the ledger does."""
        rows = {}
        for one in changes:
            alert = one.alert
            if alert.fired_ns is None:
                continue
            row = self.rows.setdefault((alert.fingerprint, alert.active_ns), len(self.rows) + 1)
            rows[row] = self.alerts[row] = alert
        for held in self.groups.values():
            if any(member.row in rows for member in held.group.members):
                held.due_ns = now_ns
        for row, alert in rows.items():
            for lane in self.routing.lanes(alert) if alert.state == "firing" else ():
                self._join(lane, row, alert, now_ns)

    def news(self, changes: Iterable[Change], now_ns: int) -> list[Notification]:
        """Write changes and look at once."""
        self.change(changes, now_ns)
        return self.tell(now_ns)

    def acknowledge(self, now_ns: int) -> None:
        """Somebody cares for all that fires."""
        self.alerts = {k: replace(a, acked_ns=now_ns) for k, a in self.alerts.items()}

    def tell(self, now_ns: int) -> list[Notification]:
        """Look at what is due; the messages that come of it."""
        told: list[Notification] = []
        while due := [
            h for h in self.groups.values() if h.due_ns is not None and h.due_ns <= now_ns
        ]:
            for held in due:
                told += self._look(held, now_ns)
        return told

    def next_ns(self) -> int | None:
        """When something is due next."""
        return min((h.due_ns for h in self.groups.values() if h.due_ns is not None), default=None)

    def _join(self, lane: Lane, row: int, alert: Alert, now_ns: int) -> None:
        key = lane.receiver, lane.key
        held = self.groups.get(key)
        if held is None:
            number = len(self.groups) + 1
            group = Group(
                number, alert.project, lane.receiver, lane.route, lane.key, lane.labels,
                began_ns=now_ns,
            )  # fmt: skip
            held = self.groups[key] = Held(group, now_ns + lane.wait_ns)
        else:
            held.due_ns = now_ns
        if all(member.row != row for member in held.group.members):
            members = (*held.group.members, Member(row, alert, False))
            held.group = replace(held.group, members=members)

    def _look(self, held: Held, now_ns: int) -> Sequence[Notification]:
        members = tuple(replace(m, alert=self.alerts[m.row]) for m in held.group.members)
        group = replace(held.group, members=members)
        route = self.routing.route(group.receiver, group.route) or Route(group.receiver)
        step = deciding.decide(group, route, now_ns)
        kept = tuple(
            replace(m, told=m.told or m.row in step.told) for m in members if m.row not in step.gone
        )
        held.group, held.due_ns = replace(step.group, members=kept), step.due_ns
        if step.escalate and route.escalate is not None:
            lane = Lane(route.escalate.receiver, group.route, group.key, group.labels, 0)
            for member in kept:
                self._join(lane, member.row, member.alert, now_ns)
            follower = self.groups[lane.receiver, lane.key]
            follower.group = replace(follower.group, source=group.id, why=step.escalate)
        if not step.say:
            return []
        payload = body(group.receiver, group.labels, step.alerts, self.url, group.key)
        message = Notification(group.project, group.receiver, group.key, step.severity, payload)
        why = f"{step.say}: {held.group.why}" if step.say == deciding.ESCALATED else step.say
        self.said.append((now_ns, why, message))
        return [message]


def brief(messages: Sequence[Notification]) -> list[tuple[str, str, list[str]]]:
    """Receiver, status, and each alert with its status."""
    return [
        (
            n.receiver,
            n.payload["status"],
            [f"{a['labels']['alertname']}:{a['status']}" for a in n.payload["alerts"]],
        )
        for n in messages
    ]


def labelled(**labels: str) -> Mapping[str, str]:
    """Labels as an alert has them at least."""
    return {"project": "default", "alertname": "NonFiniteGradient", "severity": "page"} | labels
