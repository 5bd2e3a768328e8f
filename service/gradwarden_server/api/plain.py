"""Values as JSON can carry them: non-finite numbers, times, and what strangers wrote."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any, Literal

Number = float | Literal["NaN", "Infinity", "-Infinity"]


def number(value: float | None) -> Number | None:
    """A number as JSON can carry it: non-finite ones as text."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def rfc3339(ns: int | None) -> str | None:
    """Nanoseconds since the epoch as UTC text with microseconds."""
    if ns is None:
        return None
    try:
        moment = datetime.fromtimestamp(ns // 1_000_000_000, UTC)
    except (OverflowError, ValueError, OSError):  # a hostile clock, beyond the year 9999
        return None
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ns % 1_000_000_000 // 1000:06d}Z"


def plain(value: Any) -> Any:
    """Foreign JSON made safe to store and to send: no bare NaN, no half characters, no NUL."""
    text = json.dumps(value, ensure_ascii=False, default=str).replace("\\u0000", "")
    return json.loads(text.encode(errors="replace"), parse_constant=str)
