"""The pager line: from the transitions of one evaluation to the messages for each receiver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gradwarden_server.model import Alert, Change, Notification
from gradwarden_server.notify.payload import body, group_key
from gradwarden_server.notify.spec import Receiver
from gradwarden_server.notify.stages import Bundle, Dedup, Group, Mute, Route, Stage, is_news


class Pipeline:
    """Runs the stages in order and writes what is left as notifications."""

    def __init__(self, stages: Sequence[Stage], external_url: str) -> None:
        self._stages = tuple(stages)
        self._external_url = external_url

    def run(self, alerts: Mapping[str, Alert], changes: Sequence[Change]) -> list[Notification]:
        """The messages that the changes cause.

        Args:
            alerts: The open alerts by fingerprint as they stood before the changes; needed
                because a message speaks of its whole group.
            changes: Transitions in order. Each moment gets its own messages, so that an alert
                that fired and resolved in one evaluation is told as both.
        """
        standing = {key: alert for key, alert in alerts.items() if alert.state == "firing"}
        notifications: list[Notification] = []
        for news in _moments(changes):
            resolved: dict[str, Alert] = {}
            for change in news:
                key = change.alert.fingerprint
                standing.pop(key, None)
                if change.to_state == "firing":
                    standing[key] = change.alert
                elif is_news(change):
                    resolved[key] = change.alert
            bundle = Bundle(alerts=(*standing.values(), *resolved.values()), news=news)
            notifications.extend(self._deliverable(bundle))
        return notifications

    def _deliverable(self, bundle: Bundle) -> list[Notification]:
        bundles = [bundle]
        for stage in self._stages:
            if not bundles:
                break
            bundles = stage(bundles)
        return [self._notification(b) for b in bundles]

    def _notification(self, bundle: Bundle) -> Notification:
        first = bundle.alerts[0]
        return Notification(
            project=first.project,
            receiver=bundle.receiver,
            group_key=group_key(bundle.group),
            severity=first.severity,
            payload=body(bundle.receiver, bundle.group, bundle.alerts, self._external_url),
        )


def _moments(changes: Sequence[Change]) -> Iterator[tuple[Change, ...]]:
    """The changes by moment; never two pieces of news of one alert in one, even at one time."""
    moment: list[Change] = []
    told: set[str] = set()
    for change in changes:
        again = is_news(change) and change.alert.fingerprint in told
        if moment and (again or change.at_ns != moment[-1].at_ns):
            yield tuple(moment)
            moment, told = [], set()
        moment.append(change)
        if is_news(change):
            told.add(change.alert.fingerprint)
    if moment:
        yield tuple(moment)


def build(receivers: Sequence[Receiver], external_url: str) -> Pipeline:
    """The line as it ships."""
    return Pipeline((Mute(), Route(receivers), Group(), Dedup()), external_url)
