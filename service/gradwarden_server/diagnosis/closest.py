"""Where no known pattern fits: those that come nearest, and what speaks against each. Pure.

A pattern comes near where the series that tells it moved its way, by too little for its detector.
What speaks against it is that detector, which looked and did not object, and what else moves with
it and stood still.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import NamedTuple

from gradwarden_server.diagnosis import links
from gradwarden_server.diagnosis.case import Case, Series, Watched
from gradwarden_server.diagnosis.coverage import concerns
from gradwarden_server.diagnosis.evidence import AFTER, ALIKE, BEFORE, LEVELS
from gradwarden_server.diagnosis.patterns import PATTERNS
from gradwarden_server.diagnosis.words import Evidence, Near

MOST = 3
_UP, _DOWN = 1, -1
_SIGNS: Mapping[str, tuple[str, int]] = {
    "ExplodingGradient": ("grad_norm", _UP),
    "LossDivergence": ("loss", _UP),
    "GradientShift": ("grad_norm", _DOWN),
    "LossScaleCollapse": ("loss_scale", _DOWN),
    "ClipSaturation": ("clip_coefficient", _DOWN),
    "AllReduceSlow": ("allreduce_seconds", _UP),
    "InputBound": ("data_seconds", _UP),
    "ThroughputDrop": ("step_seconds", _UP),
    "GpuMemoryPressure": ("gpu_memory_allocated_bytes", _UP),
    "CheckpointSlow": ("checkpoint_seconds", _UP),
}
"""The series that tells of a pattern, and which way it goes then. Patterns that are exact, as a
value that is not finite or replicas that differ, come near to nothing: they are there or not."""


class _Move(NamedTuple):
    """How far a series went, in natural logarithms upwards, and where."""

    far: float
    usual: float
    value: float
    step: int


def closest(case: Case, series: Series, step: int | None = None) -> tuple[Near, ...]:
    """At most :data:`MOST`, the one whose series moved furthest first.

    Args:
        case: The run.
        series: Its stored series.
        step: What is asked about; None is the newest steps.
    """
    if case.last_step is None:
        return ()
    onset = max(0, case.last_step - AFTER) if step is None else step
    found: list[tuple[float, Near]] = []
    for name, (key, way) in _SIGNS.items():
        watch = case.watch(name)
        if watch is None or not concerns(watch):
            continue
        move = _moved(series, key, onset, way)
        if move is not None:
            found.append((way * move.far, _near(case, series, watch, key, move, onset)))
    found.sort(key=lambda one: -one[0])
    return tuple(near for _, near in found[:MOST])


def _near(case: Case, series: Series, watch: Watched, key: str, move: _Move, onset: int) -> Near:
    pattern = PATTERNS[watch.alert]
    first, last = max(0, onset - BEFORE), onset + AFTER
    times = f" ({math.exp(move.far):.2g}x)"
    text = f"{key} went from {move.usual:.3g} to {move.value:.3g} at step {move.step}{times}"
    against = [
        f"its detector watched up to step {case.last_step}, and this is within its bounds"
        if watch.state == "armed"
        else f"nobody can tell, its detector is {watch.state}: {watch.detail}"
    ]
    others = [k for k in pattern.series if k != key and not k.startswith("layer:")]
    still = [k for k in others if _told(series, k, onset) and not _stirred(series, k, onset)]
    if still:
        against.append(f"{' and '.join(still)} stood still")
    sign = Evidence(text, links.path(case, first, last), key, None, None, first, last)
    return Near(watch.alert, pattern.cause, (sign,), tuple(against))


def _moved(series: Series, key: str, onset: int, way: int) -> _Move | None:
    """The furthest that it went this way after the onset; None where it did not."""
    points = series.scalar(key, max(0, onset - BEFORE), onset + AFTER)
    before = [v for s, v in points if s < onset and math.isfinite(v) and v > 0]
    after = [(s, v) for s, v in points if s >= onset and math.isfinite(v) and v > 0]
    if not before or not after:
        return None
    usual = median(before)
    step, value = max(after, key=lambda point: way * point[1])
    if key.endswith(LEVELS):  # single steps of these tell little
        step, value = after[0][0], median(v for _, v in after)
    far = math.log(value / usual)
    return _Move(far, usual, value, step) if way * far >= math.log(ALIKE) else None


def _stirred(series: Series, key: str, onset: int) -> bool:
    return any(_moved(series, key, onset, way) is not None for way in (_UP, _DOWN))


def _told(series: Series, key: str, onset: int) -> bool:
    return bool(series.scalar(key, onset, onset + AFTER))
