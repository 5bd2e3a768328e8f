"""Values as JSON can carry them: non-finite numbers, times, and what strangers wrote."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Literal

_EPOCH = datetime(1970, 1, 1)
Number = float | Literal["NaN", "Infinity", "-Infinity"]


def number(value: float | None) -> Number | None:
    """A number as JSON can carry it: non-finite ones as text."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def kept_number(value: float | str | None) -> Number | None:
    """A number as the store keeps it in JSON, where a non-finite one is text, likewise."""
    return None if value is None else number(float(value))


@lru_cache(maxsize=8192)  # lists tell the same starts and ends again and again
def rfc3339(ns: int | None) -> str | None:
    """Nanoseconds since the epoch as UTC text with microseconds."""
    if ns is None:
        return None
    try:
        moment = _EPOCH + timedelta(microseconds=ns // 1000)
    except OverflowError:  # a hostile clock, beyond the year 9999
        return None
    return moment.isoformat(timespec="microseconds") + "Z"


def plain(value: Any) -> Any:
    """Foreign JSON made safe to store and to send: no bare NaN, no half characters, no NUL."""
    text = json.dumps(value, ensure_ascii=False, default=str).replace("\\u0000", "")
    return json.loads(text.encode(errors="replace"), parse_constant=str)
