"""The stages of the pager line. Each takes bundles of alerts and adds no alert to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from gradwarden_server.model import TOLD_LATE, Alert, Change, Labels
from gradwarden_server.notify.spec import Receiver


@dataclass(frozen=True, slots=True)
class Bundle:
    """Alerts on their way to one receiver, and what is new among them.

    ``alerts`` is all that the receiver should know of the group now: those that fire, and
    those that the news resolved. Only so can it tell a group that is over from one that is not.
    """

    alerts: tuple[Alert, ...]
    news: tuple[Change, ...]
    receiver: str = ""
    group: Labels = field(default_factory=dict)


class Stage(Protocol):
    """One step of the line; an empty answer ends it."""

    def __call__(self, bundles: Iterable[Bundle]) -> list[Bundle]: ...


@dataclass(frozen=True, slots=True)
class Route:
    """One bundle per receiver, with the severities that it asked for."""

    receivers: Sequence[Receiver]

    def __call__(self, bundles: Iterable[Bundle]) -> list[Bundle]:
        return [
            Bundle(
                alerts=tuple(a for a in bundle.alerts if a.severity in receiver.severities),
                news=tuple(c for c in bundle.news if c.alert.severity in receiver.severities),
                receiver=receiver.name,
            )
            for bundle in bundles
            for receiver in self.receivers
            if receiver.watchdog_seconds is None
        ]


@dataclass(frozen=True, slots=True)
class Group:
    """Pages by run and alertname, tickets by run: a second, different page still rings."""

    def __call__(self, bundles: Iterable[Bundle]) -> list[Bundle]:
        return [part for bundle in bundles for part in self._parts(bundle)]

    def _parts(self, bundle: Bundle) -> Iterable[Bundle]:
        groups: dict[tuple[tuple[str, str], ...], None] = {}
        for alert in bundle.alerts:
            groups[_group_of(alert)] = None
        for group in groups:
            yield replace(
                bundle,
                alerts=tuple(a for a in bundle.alerts if _group_of(a) == group),
                news=tuple(c for c in bundle.news if _group_of(c.alert) == group),
                group=dict(group),
            )


@dataclass(frozen=True, slots=True)
class Mute:
    """Nothing of an alert that is muted, but the end of one that was told before."""

    def __call__(self, bundles: Iterable[Bundle]) -> list[Bundle]:
        return [
            replace(
                bundle,
                alerts=tuple(a for a in bundle.alerts if _heard(a)),
                news=tuple(c for c in bundle.news if _heard(c.alert)),
            )
            for bundle in bundles
        ]


@dataclass(frozen=True, slots=True)
class Dedup:
    """No message where nothing changed for the outside.

    News is an alert that began to fire, or one that fired and is over, or one that was muted
    from its beginning and is so no more. An enrichment waits for the next message: nobody is
    woken twice to read one more word.
    """

    def __call__(self, bundles: Iterable[Bundle]) -> list[Bundle]:
        return [bundle for bundle in bundles if any(map(is_news, bundle.news))]


def is_news(change: Change) -> bool:
    """Whether a transition is worth telling."""
    began = change.to_state == "firing" and change.from_state != "firing"
    over = change.to_state == "resolved" and change.from_state == "firing"
    return began or over or change.reason == TOLD_LATE


def _heard(alert: Alert) -> bool:
    return not alert.muted or (alert.state == "resolved" and alert.told)


def _group_of(alert: Alert) -> tuple[tuple[str, str], ...]:
    # The project is part of it: two teams may give their runs the same name.
    names = ["project", "run"]
    if alert.severity == "page" or "run" not in alert.labels:
        names.append("alertname")
    return tuple((name, alert.labels[name]) for name in names if name in alert.labels)
