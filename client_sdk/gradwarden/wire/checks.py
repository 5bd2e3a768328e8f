"""What a message may not be: errors that name field, finding and remedy; limits; field checks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,127}\Z")
HASH = re.compile(r"[0-9a-f]{32}\Z")
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_MAX_INT = 2**63 - 1


class WireError(ValueError):
    """A message that cannot be taken, with the field, what was found, and the remedy."""

    def __init__(self, field: str, found: object, remedy: str) -> None:
        shown = found if isinstance(found, (int, float)) else str(found)[:120]
        super().__init__(f"{field}: {shown!r}; {remedy}")
        self.field = field
        self.remedy = remedy


class Malformed(WireError):
    """The bytes do not form a message: truncated, corrupted or inconsistent."""


class TooLarge(WireError):
    """A stated or actual size is above the limit; nothing was decompressed past it."""


class UnsupportedVersion(WireError):
    """The message is of a version that this side does not read."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds that a message must respect, checked before memory is taken."""

    header_bytes: int = 4 << 20
    payload_bytes: int = 64 << 20
    frames: int = 4096
    parameters: int = 200_000
    quantities: int = 64
    scalars: int = 256
    events: int = 1024


DEFAULT_LIMITS = Limits()


def member(data: object, name: str, kind: type) -> Any:
    if type(data) is not dict and not isinstance(data, Mapping):
        raise Malformed(name, type(data).__name__, "expected a JSON object around it")
    value = data.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Malformed(name, value, f"expected {kind.__name__}")
    return value


def integer(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_INT:
        raise Malformed(name, value, "expected an integer from 0 to 2^63 - 1")
    return value


def integers(values: list[Any], name: str) -> list[int]:
    """``values``, every one of which is an integer that :func:`integer` takes."""
    whole = all(type(value) is int for value in values)
    if not whole or min(values, default=0) < 0 or max(values, default=0) > _MAX_INT:
        return [integer(value, name) for value in values]  # it names the one at fault
    return values


def text(value: object, name: str, longest: int) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= longest or "\x00" in value:
        raise Malformed(name, value, f"expected text of 1 to {longest} characters")
    return value


def identifier(header: Mapping[str, Any], name: str) -> str:
    value = member(header, name, str)
    if not ID.match(value):
        raise Malformed(name, value, "letters, digits and . _ : + - only, at most 128 of them")
    return str(value)


def is_identifier(value: str) -> bool:
    """Whether a run, attempt or nonce may be called so on the wire."""
    return bool(ID.match(value))


def to_json_number(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def from_json_number(value: object, name: str) -> float:
    if isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Malformed(name, value, 'expected a number, "NaN", "Infinity" or "-Infinity"')
    try:
        return float(value)
    except OverflowError:
        raise Malformed(name, value, "expected a number that a float64 can hold") from None
