"""The notation of series and their points in tests of rules: ``loss{run="a"} 1 2+3x4 _ stale``.

It is that of promtool's unit tests and of Prometheus's own scripts.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from typing import Any

import promql_parser

from gradwarden_server.promql.storage import STALE_BITS
from gradwarden_server.promql.vector import NAME, Labels

STALE: float = struct.unpack("<d", struct.pack("<Q", STALE_BITS))[0]
Points = tuple[float | None, ...]
_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_UNITS["y"] = 365 * _UNITS["d"]
_SPAN = re.compile(r"(\d+)(ms|[smhdwy])")
_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|[iI]nf|NaN)"
_RUN = re.compile(rf"({_NUMBER})(?:([-+])({_NUMBER[5:]}))?x(\d+)\Z")
_GAP = re.compile(r"_x(\d+)\Z")


class Unreadable(ValueError):
    """Not of this notation; the text says what."""


def span(text: str) -> int:
    """Milliseconds of ``5m``, ``1h30m`` or a number of seconds."""
    sign = -1 if text.startswith("-") else 1
    bare = text.lstrip("-")
    found = _SPAN.findall(bare)
    if found and "".join(n + u for n, u in found) == bare:
        return sign * sum(int(n) * _UNITS[u] for n, u in found)
    try:
        return sign * round(float(bare) * 1000)
    except ValueError:
        raise Unreadable(f"no time: {text}") from None


def split(line: str) -> tuple[str, str]:
    """The metric, which may hold blanks within braces and quotes, and its points."""
    depth, quote = 0, ""
    for at, sign in enumerate(line):
        if quote:
            if sign == quote and line[at - 1] != "\\":
                quote = ""
        elif sign in "\"'`":
            quote = sign
        elif sign == "{":
            depth += 1
        elif sign == "}":
            depth -= 1
        elif sign in " \t" and not depth:
            following = line[at:].lstrip()
            if following.startswith("{") and not following.startswith("{{"):
                continue
            return line[:at].strip(), following
    return line.strip(), ""


def labels_of(metric: str) -> Labels:
    """The labels of ``name{a=\"b\"}``.

    Raises:
        Unreadable: it is no metric.
    """
    if metric.replace(" ", "") == "{}":
        return {}
    try:
        node: Any = promql_parser.parse(metric)
    except ValueError as error:
        raise Unreadable(f"{metric}: {error}") from None
    labels = {m.name: m.value for m in node.matchers.matchers if m.value}
    if node.name:
        labels[NAME] = node.name
    return labels


def points(text: str) -> Iterator[float | None]:
    """Points in order; None where there is none.

    Raises:
        Unreadable: a word is no point.
    """
    for word in text.split():
        gap = _GAP.match(word)
        run = _RUN.match(word)
        if gap is not None:
            yield from [None] * int(gap[1])
        elif word == "_":
            yield None
        elif word == "stale":
            yield STALE
        elif run is not None:
            first, sign, each, times = run.groups()
            value, by = number(first), number(each) if each else 0.0
            for i in range(int(times) + 1):
                yield value + (-by if sign == "-" else by) * i if by else value
        else:
            try:
                yield number(word)
            except ValueError:
                raise Unreadable(f"no point: {word}") from None


def number(text: str) -> float:
    """A number of the notation, or a ValueError."""
    if text.lower().lstrip("+-").startswith("0x"):
        return float(int(text, 16))
    if text == "NaN":
        return math.nan
    return float(text)
