"""What the stored series show around an onset, and what they rule out. Pure over ``Series``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

from gradwarden_server.diagnosis import links
from gradwarden_server.diagnosis.case import Case, Points, Series
from gradwarden_server.diagnosis.changes import BATCHES, JUMP, LOOK_BACK, LR, lr_jump
from gradwarden_server.diagnosis.coverage import concerns
from gradwarden_server.diagnosis.incidents import Incident
from gradwarden_server.diagnosis.patterns import Pattern
from gradwarden_server.diagnosis.words import Evidence, Excluded

BEFORE, AFTER = 100, 30
"""Steps looked at on both sides of an onset."""
ALIKE = 1.2
"""A series that moved by less stood still."""
LEVELS = ("_seconds", "tokens", "clip_coefficient")
"""Series that are compared by their medians, the others by what lies farthest away."""
_MOST = 6
_LEARNING = 100  # steps, as alert_rules/baseline.yaml has it


def evidence(
    case: Case, series: Series, one: Incident, pattern: Pattern, alone: bool
) -> tuple[Evidence, ...]:
    """What was seen: the detector's own words first, then the series, before against after.

    A note that stands ``alone`` has its own words only: there may be many.
    """
    found = list(_said(case, one, pattern))
    if one.step is not None and not (alone and one.severity == "note"):
        for key in pattern.series:
            item = _shown(case, series, one, one.step, key)
            if item is not None:
                found.append(item)
        found += _guarded(case, one, one.step)
    if not found:
        found.append(_told(case, one, one.said("summary") or one.name))
    return tuple(found[:_MOST])


def _said(case: Case, one: Incident, pattern: Pattern) -> Iterator[Evidence]:
    if one.name in (LR, BATCHES):
        return  # its own series tells it better
    words = [one.said("bracket"), one.said("values_before")]
    if pattern.measured:
        words.insert(0, one.said("cause"))
    if one.rank is None:
        words.append(one.said("rank"))  # why there is none
    for text in filter(None, words):
        yield _told(case, one, text)


def _guarded(case: Case, one: Incident, step: int) -> Iterator[Evidence]:
    """What the guard did about it, if there is one."""
    for event in case.events:
        if event.kind == "guard" and event.attempt == one.attempt:
            acted = event.data.get("step", event.step)
            if isinstance(acted, int) and 0 <= acted - step <= AFTER:
                said = f"{event.data.get('action', '')}: {event.data.get('reason', '')}"
                path = links.path(case, acted, acted)
                yield Evidence(
                    f"the guard at step {acted}: {said}", path, None, None, None, acted, acted
                )
                return


def _told(case: Case, one: Incident, text: str) -> Evidence:
    layer = one.said("layer") or None
    path = links.path(case, one.step, one.step, layer)
    return Evidence(text, path, None, layer, one.rank, one.step, one.step)


def _shown(case: Case, series: Series, one: Incident, step: int, key: str) -> Evidence | None:
    first, last = max(0, step - BEFORE), step + AFTER
    layer = None
    if key.startswith("layer:"):
        quantity = key.removeprefix("layer:")
        row = links.row_of(case, one.said("parameter") or one.said("layer"))
        if row is None:
            return None
        layer = case.parameters[row]
        points = series.layer(layer, quantity, first, last)
        label, name = f"{quantity} of {layer}", f"layer:{row}:{quantity}"
        path = links.path(case, first, last, layer, quantity)
    else:
        points = series.scalar(key, first, last)
        label = name = key
        path = links.path(case, first, last)
    text = _before_and_after(label, points, step)
    if text is None:
        return None
    return Evidence(text, path, name, layer, None, first, last)


def _before_and_after(label: str, points: Points, step: int) -> str | None:
    """One line, or None where nothing changed or too little is known."""
    before = [v for s, v in points if s < step and math.isfinite(v)]
    after = [(s, v) for s, v in points if s >= step]
    if not after:
        return None
    bad = next(((s, v) for s, v in after if not math.isfinite(v)), None)
    usual = median(before) if before else None
    if bad is not None:
        was = "" if usual is None else f", {usual:.3g} in the steps before"
        return f"{label} is {bad[1]} at step {bad[0]}{was}"
    if usual is None:
        return None
    at, value = max(after, key=lambda point: _apart(usual, point[1]))
    if label.endswith(LEVELS):  # single steps of these tell little
        at, value = after[0][0], median(v for _, v in after)
    if _apart(usual, value) < math.log(ALIKE):
        return None
    times = f" ({value / usual:.3g}x)" if usual else ""
    return f"{label} went from {usual:.3g} to {value:.3g} at step {at}{times}"


def _apart(one: float, other: float) -> float:
    """How far two values lie apart, as the logarithm of their ratio."""
    if one == other:
        return 0.0
    if one * other <= 0:
        return math.inf
    return abs(math.log(abs(other)) - math.log(abs(one)))


def rivals(
    case: Case,
    series: Series,
    one: Incident,
    pattern: Pattern,
    story: Sequence[Incident],
    found: list[Incident],
) -> tuple[tuple[Excluded, ...], tuple[Excluded, ...]]:
    """Other causes: those that something speaks against, and those that nothing does.

    What follows in the story that ``one`` begins is told there, and is no other cause.
    """
    follows = {other.name for other in story if other.id != one.id}
    out: list[Excluded] = []
    left: list[Excluded] = []
    for alert in (name for name in pattern.rivals if name not in follows):
        known = next((i for i in found if i.name == alert and i.order <= one.order), None)
        watch = case.watch(alert)
        if known is not None:
            at = "" if known.step is None else f" from step {known.step}"
            left.append(Excluded(alert, f"it was there{at}, with no known way from it to this"))
        elif watch is None or _too_early(case, one):
            continue
        elif not concerns(watch):
            out.append(Excluded(alert, watch.detail))
        elif watch.state == "armed":
            until = "" if one.step is None else f" up to step {one.step}"
            out.append(Excluded(alert, f"watched for, and nothing seen{until}"))
        else:
            left.append(Excluded(alert, f"{watch.state}: {watch.detail}"))
    if pattern.steady and one.step is not None:
        _steadiness(case, series, one, one.step, out, left)
    return tuple(out), tuple(left)


def _too_early(case: Case, one: Incident) -> bool:
    """Whether most detectors were still learning what is normal when it began."""
    begun = next((a.first_step for a in case.attempts if a.ordinal == one.attempt), 0)
    return one.step is not None and one.step - begun < _LEARNING


def _steadiness(
    case: Case,
    series: Series,
    one: Incident,
    step: int,
    out: list[Excluded],
    left: list[Excluded],
) -> None:
    first = max(0, step - LOOK_BACK)
    points = [(s, v) for s, v in series.scalar("lr", first, step) if math.isfinite(v)]
    what = "a jump of the learning rate"
    if len(points) < 2:
        left.append(Excluded(what, "it is not known: monitor.log(lr=lr)"))
    elif lr_jump(points) is None:
        low, high = min(v for _, v in points), max(v for _, v in points)
        over = f"over steps {points[0][0]}-{points[-1][0]}"
        if points[-1][1] > JUMP * points[0][1]:  # a climb excludes nothing
            grew = f"from {points[0][1]:.3g} to {points[-1][1]:.3g}"
            left.append(Excluded(what, f"it grew step by step, {grew} {over}"))
        else:
            moved = f"{low:.3g}" if high <= low * 1.001 else f"between {low:.3g} and {high:.3g}"
            out.append(Excluded(what, f"it was {moved} {over}"))
    begun = [a for a in case.attempts if a.ordinal == one.attempt and a.ordinal > 1]
    if not any(first <= a.first_step <= step for a in begun):
        out.append(Excluded("a restart", f"no attempt began in steps {first}-{step}"))
