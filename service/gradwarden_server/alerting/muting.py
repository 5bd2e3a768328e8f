"""Who must not be told now: silences that people made, and causes that stand before effects.

Pure. A muted alert fires, has its history and its place on every page; only its messages wait.
When what mutes it is over and it still fires, it is told then, so nothing is lost. What was told
before it was muted is told when it resolves as well: nobody is left with an open incident.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import cast

from gradwarden_server.model import SEVERITIES, TOLD_LATE, Alert, Change, Quiet, Severity
from gradwarden_server.rules.spec import Inhibition

MUTED = "muted"
UNMUTED = "unmuted"
_INHIBITED = "inhibited by "


@dataclass(frozen=True, slots=True)
class Muting:
    """What mutes the alerts of a project now."""

    inhibitions: Sequence[Inhibition] = ()
    silences: Sequence[Quiet] = ()
    elsewhere: Sequence[Alert] = ()
    """Firing alerts of the project that may be causes in this run."""

    def apply(
        self, standing: Mapping[str, Alert], changes: Iterable[Change], now_ns: int
    ) -> tuple[list[Change], dict[str, Alert]]:
        """The changes of one evaluation of one run as they are told, and what stands after them.

        Args:
            standing: The open alerts of the run before the changes, by fingerprint.
            changes: Transitions in order.
            now_ns: The moment.

        Returns:
            The changes with their alerts marked, those of muting itself added, and the open
            alerts by fingerprint.
        """
        open_ = dict(standing)
        told: list[Change] = []
        for _, moment in groupby(changes, key=lambda change: change.at_ns):
            held = [self._carried(open_, change) for change in moment]
            rung = {c.alert.fingerprint for c in held if c.to_state == "firing"} & open_.keys()
            marks = {key: self._marked(open_[key], open_, now_ns) for key in rung}
            open_ |= marks
            told += [
                replace(change, alert=marks[change.alert.fingerprint])
                if change.to_state == "firing" and change.alert.fingerprint in marks
                else change
                for change in held
            ]
        for alert in _firing(open_):
            marked = self._marked(alert, open_, now_ns)
            open_[alert.fingerprint] = marked
            if bool(marked.muted) != bool(alert.muted):
                late = TOLD_LATE if marked.told and not alert.told else UNMUTED
                told.append(Change(marked, "firing", now_ns, MUTED if marked.muted else late))
            elif marked != alert:
                told.append(Change(marked, "firing", now_ns, MUTED))
        return told, open_

    def _carried(self, open_: dict[str, Alert], change: Change) -> Change:
        """Take a change in; the state machine knows nothing of muting."""
        key = change.alert.fingerprint
        known = open_.get(key)
        if known is not None:
            marked = replace(
                change.alert,
                muted=known.muted,
                muted_until_ns=known.muted_until_ns,
                told=known.told,
            )
            change = replace(change, alert=marked)
        if change.to_state in ("pending", "firing"):
            open_[key] = change.alert
        else:
            open_.pop(key, None)
        return change

    def _marked(self, alert: Alert, open_: Mapping[str, Alert], now_ns: int) -> Alert:
        silence = next((s for s in self.silences if s.covers(alert.labels, now_ns)), None)
        if silence is not None:
            return replace(alert, muted=silence.title, muted_until_ns=None)
        cause = self._cause(alert, open_)
        if cause is not None:
            return replace(alert, muted=_INHIBITED + cause.cause, muted_until_ns=None)
        if alert.muted.startswith(_INHIBITED):
            until_ns = alert.muted_until_ns
            if until_ns is None:
                until_ns = now_ns + self._grace_ns(alert.muted.removeprefix(_INHIBITED))
            if now_ns < until_ns:
                return replace(alert, muted_until_ns=until_ns)
        return replace(alert, muted="", muted_until_ns=None, told=True)

    def _cause(self, alert: Alert, open_: Mapping[str, Alert]) -> Inhibition | None:
        """Why it is no news; what was told already has no use for a cause."""
        if alert.told:
            return None
        for inhibition in self.inhibitions:
            if alert.alertname in inhibition.effects and any(
                other.alertname == inhibition.cause and _urgency(other) <= _urgency(alert)
                for other in (*_firing(open_), *self.elsewhere)
            ):
                return inhibition
        return None

    def _grace_ns(self, cause: str) -> int:
        return next((round(i.grace_seconds * 1e9) for i in self.inhibitions if i.cause == cause), 0)


def _firing(open_: Mapping[str, Alert]) -> list[Alert]:
    return [alert for alert in open_.values() if alert.state == "firing"]


def _urgency(alert: Alert) -> int:
    return SEVERITIES.index(cast(Severity, alert.severity))
