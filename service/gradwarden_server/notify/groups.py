"""When a group of alerts is told, and of what. Pure: what is so and the time are arguments.

A message is made from the alerts as they are at its moment, so what changed back meanwhile is
not told: what is over within its group's wait sends nothing. Where there is no wait, as for pages,
one that was over before it could be told, as where the service was dead meanwhile, is told once, as
over. An addition waits for the group's interval; the end of all of it is told at once, so that
nobody works on what is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gradwarden_server.model import SEVERITIES, Alert, Folded, Group, Member, Severity
from gradwarden_server.notify.routes import Route, Timing

FIRED = "fired"
CHANGED = "changed"
REPEATED = "repeated"
RESOLVED = "resolved"
ESCALATED = "escalated"
STORM_ALERT = "AlertStorm"
# The first message of a storm says how large it is; what folds into it was paged for already.
STORM_WAIT_NS = 5 * 1_000_000_000
NOT_SEEN = "nobody acknowledged it"


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of a group now.

    ``say`` is why a message is sent, empty where none is; ``alerts`` are what it holds, and
    ``news`` the rows of those that it is about. ``told`` are members that the receiver knows to
    fire from now on, ``gone`` members to forget. ``escalate`` says why the second receiver is
    told as well. ``due_ns`` is when to look again; None: when something changes.
    """

    group: Group
    due_ns: int | None = None
    say: str = ""
    alerts: tuple[Alert, ...] = ()
    news: tuple[int, ...] = ()
    told: tuple[int, ...] = ()
    gone: tuple[int, ...] = ()
    escalate: str = ""

    @property
    def severity(self) -> str:
        """The most urgent of what the message holds."""
        return urgent(self.alerts)


def urgent(alerts: Sequence[Alert]) -> Severity:
    """The most urgent severity among alerts."""
    held = {alert.severity for alert in alerts}
    return next((severity for severity in SEVERITIES if severity in held), "ticket")


def decide(group: Group, route: Route, now_ns: int) -> Step:
    """What to do about a group whose members are as they are now."""
    firing = [m for m in group.members if m.alert.state == "firing"]
    over = [m for m in group.members if m.alert.state == "resolved"]
    if group.folded_into is not None:
        return _folded(group, [m for m in firing if not m.alert.muted], over)
    ended = [m for m in over if m.told]
    missed = [m for m in over if not m.told and _was_owed(m.alert, group, route)]
    gone = tuple(m.row for m in over if m not in ended and m not in missed)
    known = [m for m in firing if m.told]
    new = [m for m in firing if not m.told and not m.alert.muted]
    timing = route.timing(urgent([m.alert for m in (*known, *new) or missed]))
    if not group.open:
        step = _unopened(group, new, missed, timing, gone, now_ns)
        return _watched(step, route, timing, new, now_ns) if step.group.open else step
    quiet_until_ns = (group.told_ns or 0) + timing.interval_ns
    if not known and not new:
        return _ended(group, [*ended, *missed], gone, now_ns)
    if now_ns < quiet_until_ns:  # what flaps beside an incident is no news of it
        gone = (*gone, *(m.row for m in missed))
    else:
        ended += missed
    step = Step(group, gone=gone)
    if new or ended:
        step = replace(step, due_ns=quiet_until_ns)
        if now_ns >= quiet_until_ns:
            step = _spoken(step, CHANGED, [*known, *new], new, ended, now_ns)
    elif _repeats(group, known, timing, now_ns):
        step = _spoken(step, REPEATED, known, known, [], now_ns)
    heard = [*known, *new] if step.say else known
    return _watched(step, route, timing, heard, now_ns)


def decide_storm(group: Group, folded: Folded, route: Route, project: str, now_ns: int) -> Step:
    """What to do about a storm of which so much fires now."""
    timing = route.timing("page")
    began_ns = group.began_ns or now_ns
    alert = storm_alert(group, folded, project, began_ns)
    if folded.groups == 0:
        closed = _closed(group)
        if not group.open:
            return Step(closed)
        over = replace(alert, state="resolved", resolved_ns=now_ns)
        return Step(closed, say=RESOLVED, alerts=(over,))
    group = replace(group, began_ns=began_ns)
    if not group.open:
        due_ns = began_ns + (STORM_WAIT_NS if group.source is None else 0)
        if now_ns < due_ns:
            return Step(group, due_ns=due_ns)
        say = FIRED if group.source is None else ESCALATED
    elif folded.alerts > group.counted:
        due_ns = (group.told_ns or 0) + timing.interval_ns
        if now_ns < due_ns:
            return _awaited(Step(group, due_ns), route, timing, not folded.acknowledged, now_ns)
        say = CHANGED
    elif not folded.acknowledged and _is_due(group.told_ns, timing.repeat_ns, now_ns):
        say = REPEATED
    else:
        say = ""
    step = Step(group)
    if say:
        if not group.open:
            group = _opened(group, now_ns)
        told = replace(group, told_ns=now_ns, counted=folded.alerts)
        step = Step(told, say=say, alerts=(alert,))
    return _awaited(step, route, timing, not folded.acknowledged, now_ns)


def storm_alert(group: Group, folded: Folded, project: str, began_ns: int) -> Alert:
    """The one alert that stands for all that folded into a storm."""
    counts = sorted(folded.alertnames.items(), key=lambda item: (-item[1], item[0]))
    names = ", ".join(f"{name} {count}" for name, count in counts)
    return Alert(
        id=None,
        project=project,
        run=None,
        labels={"alertname": STORM_ALERT, "severity": "page", "project": project},
        annotations={
            "summary": f"{folded.alerts} more pages of {folded.runs} runs fire: {names}",
            "alertnames": names,
            "worst_runs": ", ".join(folded.worst_runs),
            "first_action": "Look for one cause: a node, a data set, a release, a network.",
        },
        state="firing",
        active_ns=began_ns,
        fired_ns=began_ns,
        reason="storm",
    )


def fold(step: Step, storm: int) -> Step:
    """A page that begins in a storm: the storm speaks for it, and nobody of one that is over."""
    if step.say == RESOLVED:
        return Step(replace(step.group, told_ns=None), gone=step.gone)
    group = replace(step.group, folded_into=storm, open=False, told_ns=None)
    return Step(group, gone=step.gone, news=step.news)


def with_unsaid(step: Step, over: Mapping[int, Alert]) -> Step:
    """A message that also holds what is over, by row, and that an earlier one was to tell of."""
    said = {alert.fingerprint for alert in step.alerts}
    left = {row: alert for row, alert in over.items() if alert.fingerprint not in said}
    alerts = _latest([*step.alerts, *left.values()])
    return replace(step, alerts=alerts, news=(*step.news, *left))


def _folded(group: Group, firing: Sequence[Member], over: Sequence[Member]) -> Step:
    gone = tuple(m.row for m in over)
    if firing:
        return Step(group, gone=gone)
    alone = replace(group, folded_into=None, began_ns=None)
    return Step(alone, gone=gone)


def _was_owed(alert: Alert, group: Group, route: Route) -> bool:
    """Whether an alert that is over should have been told the moment it fired."""
    at_once = route.timing(urgent([alert])).wait_ns == 0
    return at_once and not alert.muted and group.source is None


def _unopened(
    group: Group,
    new: Sequence[Member],
    missed: Sequence[Member],
    timing: Timing,
    gone: tuple[int, ...],
    now_ns: int,
) -> Step:
    over = (*gone, *(m.row for m in missed))
    began_ns = group.began_ns or now_ns
    due_ns = began_ns + (0 if group.source is not None else timing.wait_ns)
    held = False
    if group.told_ns is not None:
        # What comes back soon is told if it stays: an incident that flaps rings once a while.
        due_ns = max(due_ns, group.told_ns + max(timing.interval_ns, timing.cool_down_ns))
        held = now_ns < due_ns or group.began_ns is not None
    if not new:
        group = replace(group, began_ns=None, failing="")
        if held or not missed:
            return Step(group, gone=over)
        return _ended(_opened(group, now_ns), missed, gone, now_ns)
    group = replace(group, began_ns=began_ns)
    if now_ns < due_ns:
        return Step(group, due_ns=due_ns, gone=over if held else gone)
    step = Step(_opened(group, now_ns), gone=gone)
    return _spoken(step, ESCALATED if group.source else FIRED, new, new, missed, now_ns)


def _ended(group: Group, ended: Sequence[Member], gone: tuple[int, ...], now_ns: int) -> Step:
    rows = tuple(m.row for m in ended)
    step = Step(_closed(group), gone=(*gone, *rows))
    if not ended:
        return step
    step = replace(step, group=replace(step.group, told_ns=now_ns))
    # A relapse while the first incident of its name was told is one incident to the receiver.
    return replace(step, say=RESOLVED, alerts=_latest([m.alert for m in ended]), news=rows)


def _spoken(
    step: Step,
    say: str,
    firing: Sequence[Member],
    news: Sequence[Member],
    ended: Sequence[Member],
    now_ns: int,
) -> Step:
    return replace(
        step,
        group=replace(step.group, told_ns=now_ns),
        say=say,
        alerts=_latest([m.alert for m in (*firing, *ended)]),
        news=tuple(m.row for m in (*news, *ended)),
        told=tuple(m.row for m in firing if not m.told),
        gone=(*step.gone, *(m.row for m in ended)),
        due_ns=None,
    )


def _latest(alerts: Sequence[Alert]) -> tuple[Alert, ...]:
    """One alert of each identity: what fires wins, then what ended last."""
    kept: dict[str, Alert] = {}
    for alert in sorted(alerts, key=lambda a: (a.state == "firing", a.active_ns)):
        kept[alert.fingerprint] = alert
    return tuple(kept.values())


def _opened(group: Group, now_ns: int) -> Group:
    return replace(group, open=True, opened_ns=now_ns, told_ns=now_ns)


def _closed(group: Group) -> Group:
    return replace(group, open=False, began_ns=None, escalated_ns=None, failing="", counted=0)


def _repeats(group: Group, known: Sequence[Member], timing: Timing, now_ns: int) -> bool:
    return _unseen(known) and _is_due(group.told_ns, timing.repeat_ns, now_ns)


def _is_due(told_ns: int | None, repeat_ns: int, now_ns: int) -> bool:
    return told_ns is not None and repeat_ns > 0 and now_ns >= told_ns + repeat_ns


def _unseen(members: Sequence[Member]) -> bool:
    """Whether something fires that nobody took care of and nothing mutes."""
    return any(m.alert.acked_ns is None and not m.alert.muted for m in members)


def _watched(
    step: Step, route: Route, timing: Timing, firing: Sequence[Member], now_ns: int
) -> Step:
    pages = [m for m in firing if m.alert.severity == "page"]
    step = _awaited(step, route, timing, _unseen(pages), now_ns)
    if not _unseen(firing) or not timing.repeat_ns:
        return step
    return _sooner(step, (step.group.told_ns or now_ns) + timing.repeat_ns)


def _awaited(step: Step, route: Route, timing: Timing, unseen: bool, now_ns: int) -> Step:
    """Whether a page that nobody cares for goes to the second receiver, now or later."""
    group = step.group
    if unseen and timing.repeat_ns and group.storm:
        step = _sooner(step, (group.told_ns or now_ns) + timing.repeat_ns)
    waits = unseen and route.escalate is not None and group.escalated_ns is None
    if not waits or not group.open or group.source is not None:
        return step
    assert route.escalate is not None
    at_ns = (group.opened_ns or now_ns) + round(route.escalate.after_seconds * 1e9)
    if group.failing or now_ns >= at_ns:
        why = group.failing or f"{NOT_SEEN} within {route.escalate.after_seconds:g} s"
        return replace(step, group=replace(group, escalated_ns=now_ns), escalate=why)
    return _sooner(step, at_ns)


def _sooner(step: Step, at_ns: int) -> Step:
    return replace(step, due_ns=at_ns if step.due_ns is None else min(step.due_ns, at_ns))
