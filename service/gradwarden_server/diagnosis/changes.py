"""What changed just before a sickness began: learning rate, batch, data, attempt. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from gradwarden_server.diagnosis.case import Case, Happening, Points, Series
from gradwarden_server.diagnosis.incidents import Incident
from gradwarden_server.model import SEVERITIES

LOOK_BACK = 200
"""Steps before an onset within which a change may be its cause."""
JUMP = 2.0
"""A learning rate that grows this many times within :data:`WITHIN` steps has jumped; smaller
changes are schedules (DETECTION.md's baseline restarts at the same)."""
WITHIN = 10
BATCH = 1.5
"""Tokens of a step that change this many times are another batch."""

LOOKED_AT = 20

LR, BATCHES, MARK, ATTEMPT = "LearningRateJump", "BatchChange", "Mark", "NewAttempt"
NAMES = (LR, BATCHES, MARK, ATTEMPT)


def changes(case: Case, series: Series, sick: Sequence[Incident]) -> list[Incident]:
    """The changes within :data:`LOOK_BACK` steps before any of the onsets, by onset.

    Of many sicknesses the :data:`LOOKED_AT` most urgent are looked at.
    """
    found: dict[str, Incident] = {}
    urgent = sorted(sick, key=lambda i: (SEVERITIES.index(i.severity or "note"), i.order))
    for one in urgent[:LOOKED_AT]:
        if one.step is None:
            continue
        first = max(0, one.step - LOOK_BACK)
        for change in _before(case, series, one, first, one.step):
            found.setdefault(change.id, change)
    return sorted(found.values(), key=lambda i: i.order)


def _before(case: Case, series: Series, one: Incident, first: int, last: int) -> Iterator[Incident]:
    jump = lr_jump(series.scalar("lr", first, last))
    if jump is not None:
        step, before, after = jump
        words = f"the learning rate went from {before:.3g} to {after:.3g} at step {step}"
        change = _change(LR, one, step, words, f"{after / before:.3g}x")
        yield replace(change, annotations={**change.annotations, "before": f"{before:.3g}"})
    batch = _batch(series.scalar("tokens", first, last))
    if batch is not None:
        step, before, after = batch
        words = f"tokens of a step went from {before:.4g} to {after:.4g} at step {step}"
        yield _change(BATCHES, one, step, words, f"{after / before:.3g}x")
    marks = [
        e
        for e in case.events
        if e.kind == "mark" and e.attempt == one.attempt and first <= e.step <= last
    ]
    for event in marks[-3:]:
        yield _change(MARK, one, event.step, f"the loop marked {_named(event)}", _named(event))
    for span in case.attempts:
        if span.ordinal == one.attempt and span.ordinal > 1 and first <= span.first_step <= last:
            words = f"attempt {span.ordinal} began at step {span.first_step}"
            yield _change(ATTEMPT, one, span.first_step, words, f"attempt {span.ordinal}")


def lr_jump(points: Points) -> tuple[int, float, float] | None:
    """The largest jump up: (step, rate before, rate after); None where there is none.

    A rate that was rising before is warming up, and grows by as much without harm; from fewer
    than three earlier values nobody can tell.
    """
    known = [(s, v) for s, v in points if math.isfinite(v) and v > 0]
    best: tuple[int, float, float] | None = None
    for at in range(3, len(known)):
        step, now = known[at]
        before = known[at - 1][1]
        later = [v for s, v in known[at : at + WITHIN] if s < step + WITHIN]
        top = max(later)
        warming = before > 1.2 * min(v for _, v in known[max(0, at - WITHIN) : at])
        sudden = now / before > 1.2 and top / before >= JUMP and not warming
        if sudden and (best is None or top / before > best[2] / best[1]):
            best = step, before, top
    return best


def _batch(points: Points) -> tuple[int, float, float] | None:
    """The newest lasting change of tokens a step: (step, before, after)."""
    known = [(s, v) for s, v in points if math.isfinite(v) and v > 0]
    width = 5
    for at in range(len(known) - width, width - 1, -1):
        before = sorted(v for _, v in known[at - width : at])
        after = sorted(v for _, v in known[at : at + width])
        ratio = after[width // 2] / before[width // 2]
        apart = before[-1] < after[0] or after[-1] < before[0]
        if apart and max(ratio, 1 / ratio) >= BATCH:
            return known[at][0], before[width // 2], after[width // 2]
    return None


def _named(event: Happening) -> str:
    name, value = event.data.get("name", ""), event.data.get("value")
    return f"{name} = {value}" if value is not None else str(name)


def _change(name: str, one: Incident, step: int, summary: str, value: str) -> Incident:
    return Incident(
        name=name,
        kind="change",
        attempt=one.attempt,
        step=step,
        active_ns=one.active_ns,
        ended_ns=None,
        state="change",
        annotations={"summary": summary, "value": value},
    )
