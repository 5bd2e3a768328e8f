"""What sets some steps apart from those around them: series ranked by how far they moved.

Pure arithmetic. A series is compared by its medians inside and outside, in decades where all of
it is positive, and the distance is told in spreads of the outside: its scaled median absolute
deviation, which a few wild steps do not widen. Values that are not finite count by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NORMAL = 1.4826
"""Makes the MAD of normally distributed data equal their standard deviation."""
_LEAST_DECADES = 0.01
"""A series that stands still outside is not infinitely surprised by a change of two per cent."""
_LEAST_SHARE = 0.01
_FAR = 3.5
"""Scaled deviations from which on a difference is told (Iglewicz and Hoaglin, 1993)."""
_LEAST_STEPS = 3

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Contrast:
    """One series inside and outside.

    Medians of finite values, None where there are none; ``spreads`` is how far the inside lies
    from the outside, infinite where it has values that are not finite and the outside has none.
    """

    inside: float | None
    outside: float | None
    spreads: float
    nonfinite: int

    @property
    def told(self) -> bool:
        """Whether it is far enough to be told."""
        return self.spreads >= _FAR


def contrast(inside: Doubles, outside: Doubles) -> Contrast | None:
    """Compare one series' values; NaN and infinity are steps that were not finite.

    None where the outside has too few values to say what is usual.
    """
    calm = outside[np.isfinite(outside)]
    seen = inside[np.isfinite(inside)]
    bad = int(inside.size - seen.size)
    if calm.size < _LEAST_STEPS or not inside.size:
        return None
    usual = float(np.median(calm))
    if not seen.size:
        return Contrast(None, usual, math.inf, bad)
    here = float(np.median(seen))
    if bad and calm.size == outside.size:
        return Contrast(here, usual, math.inf, bad)
    if (calm > 0).all() and (seen > 0).all():
        logs = np.log10(calm)
        moved = abs(float(np.median(np.log10(seen))) - float(np.median(logs)))
        spread = max(_deviation(logs), _LEAST_DECADES)
    else:
        moved = abs(here - usual)
        spread = max(_deviation(calm), _LEAST_SHARE * abs(usual))
    if moved == 0:
        return Contrast(here, usual, 0.0, bad)
    return Contrast(here, usual, moved / spread if spread else math.inf, bad)


def _deviation(values: Doubles) -> float:
    return _NORMAL * float(np.median(np.abs(values - np.median(values))))


def ranked(found: Iterable[tuple[str, Contrast | None]], most: int) -> list[tuple[str, Contrast]]:
    """Those that are told, the furthest first: not finite before finite, then by spreads."""
    told = [(name, c) for name, c in found if c is not None and c.told]
    return sorted(told, key=lambda item: (-item[1].spreads, -item[1].nonfinite, item[0]))[:most]


def around(first: int, last: int, span: tuple[int, int]) -> tuple[int, int]:
    """The steps to compare with: four times as many on both sides, at least 64, of the run's."""
    reach = max(64, 4 * (last - first + 1))
    return max(span[0], first - reach), min(span[1], last + reach)
