"""Functions that turn each value into another: arithmetic, trigonometry, clamps, calendar."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwarden_server.promql.vector import Floats

_DAY = 86_400
Dates = NDArray[np.datetime64]
Numbers = NDArray[Any]


def _round(values: Floats, nearest: Floats | None = None) -> Floats:
    """To the nearest multiple; ties go up."""
    inverse = 1.0 if nearest is None else 1.0 / nearest
    return np.asarray(np.floor(values * inverse + 0.5) / inverse, np.float64)


def _clamp(values: Floats, low: Floats, high: Floats) -> Floats:
    return np.asarray(np.maximum(low, np.minimum(high, values)), np.float64)


def _clamp_min(values: Floats, low: Floats) -> Floats:
    return np.asarray(np.maximum(low, values), np.float64)


def _clamp_max(values: Floats, high: Floats) -> Floats:
    return np.asarray(np.minimum(high, values), np.float64)


def _calendar(part: Callable[[Dates], Numbers]) -> Callable[..., Floats]:
    """A part of the UTC date of each value in seconds; NaN where there is no such date."""

    def of(values: Floats) -> Floats:
        known = np.isfinite(values) & (np.abs(values) < 2**53)
        seconds = np.where(known, values, 0).astype(np.int64)
        return np.where(known, part(seconds.astype("datetime64[s]")).astype(np.float64), np.nan)

    return of


def _days(moment: Dates) -> Dates:
    return np.asarray(moment.astype("datetime64[D]"))


def _months(moment: Dates) -> Dates:
    return np.asarray(moment.astype("datetime64[M]"))


def _length(moment: Dates) -> Numbers:
    month = _months(moment)
    return np.asarray((month + 1).astype("datetime64[D]") - month.astype("datetime64[D]"))


def _day_of_year(moment: Dates) -> Numbers:
    return np.asarray(
        (_days(moment) - moment.astype("datetime64[Y]").astype("datetime64[D]")).astype(int) + 1
    )


def _day_of_month(moment: Dates) -> Numbers:
    return np.asarray((_days(moment) - _months(moment).astype("datetime64[D]")).astype(int) + 1)


ELEMENTWISE: Mapping[str, Callable[..., Floats]] = {
    "abs": np.abs,
    "acos": np.arccos,
    "acosh": np.arccosh,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "ceil": np.ceil,
    "clamp": _clamp,
    "clamp_max": _clamp_max,
    "clamp_min": _clamp_min,
    "cos": np.cos,
    "cosh": np.cosh,
    "deg": np.degrees,
    "exp": np.exp,
    "floor": np.floor,
    "ln": np.log,
    "log10": np.log10,
    "log2": np.log2,
    "rad": np.radians,
    "round": _round,
    "sgn": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "tan": np.tan,
    "tanh": np.tanh,
}
CALENDAR: Mapping[str, Callable[..., Floats]] = {
    "day_of_month": _calendar(_day_of_month),
    "day_of_week": _calendar(lambda m: (_days(m).astype(int) + 4) % 7),
    "day_of_year": _calendar(_day_of_year),
    "days_in_month": _calendar(lambda m: _length(m).astype(int)),
    "hour": _calendar(lambda m: m.astype(int) % _DAY // 3600),
    "minute": _calendar(lambda m: m.astype(int) % 3600 // 60),
    "month": _calendar(lambda m: _months(m).astype(int) % 12 + 1),
    "year": _calendar(lambda m: m.astype("datetime64[Y]").astype(int) + 1970),
}
"""Without an argument they read the evaluation time."""
