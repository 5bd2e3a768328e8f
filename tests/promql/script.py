"""Reads Prometheus's scripts of PromQL cases: ``load``, ``clear``, and ``eval`` with its answer."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import promql_parser

from gradwarden_server.promql.storage import STALE_BITS
from gradwarden_server.promql.vector import NAME, Labels

STALE: float = struct.unpack("<d", struct.pack("<Q", STALE_BITS))[0]
_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_UNITS["y"] = 365 * _UNITS["d"]
_SPAN = re.compile(r"(\d+)(ms|[smhdwy])")
_NUMBER = r"[-+]?(?:0x[0-9a-fA-F]+|\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|[iI]nf|NaN)"
_RUN = re.compile(rf"({_NUMBER})(?:([-+])({_NUMBER[5:]}))?x(\d+)\Z")
_GAP = re.compile(r"_x(\d+)\Z")
_INSTANT = re.compile(r"eval(?:_(\w+))?\s+instant\s+at\s+(\S+)\s+(.+)\Z", re.DOTALL)
_RANGE = re.compile(
    r"eval(?:_(\w+))?\s+range\s+from\s+(\S+)\s+to\s+(\S+)\s+step\s+(\S+)\s+(.+)\Z", re.DOTALL
)


class Unreadable(ValueError):
    """A line of a script that this reader does not know."""


@dataclass(frozen=True, slots=True)
class Series:
    """A series and its points; None where there is none."""

    labels: Labels
    points: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """Series with one point every ``step_ms`` from zero on.

    ``histograms`` are names under which there are native histograms as well, which are left out.
    """

    step_ms: int
    series: tuple[Series, ...]
    histograms: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Clear:
    """Forget everything."""


@dataclass(slots=True)
class Eval:
    """A query and what it must answer."""

    line: int
    query: str
    start_ms: int
    end_ms: int
    step_ms: int
    kind: Literal["instant", "range"]
    fails: bool = False
    ordered: bool = False
    message: str = ""
    pattern: str = ""
    text: str | None = None
    scalar: float | None = None
    series: list[Series] = field(default_factory=list)
    raw: tuple[int, int, int] | None = None
    skip: str = ""


Command = Load | Clear | Eval


def read(text: str) -> Iterator[Command]:
    """The commands of a script, in order. What it has of native histograms is marked as skipped.

    Raises:
        Unreadable: a line is none of the format.
    """
    for number, lines in _blocks(text):
        head = lines[0]
        if head.startswith("clear"):
            yield Clear()
        elif head.startswith("load"):
            yield _load(head, lines[1:])
        elif head.startswith("eval"):
            yield _eval(number, lines)
        else:
            raise Unreadable(f"line {number}: {head}")


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


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Commands with the indented lines below them."""
    held: list[str] = []
    start = 0
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.rstrip()
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0] in " \t" and held:
            held.append(line.strip())
            continue
        if held:
            yield start, held
        held, start = [line.strip()], number
    if held:
        yield start, held


def _load(head: str, lines: Sequence[str]) -> Load:
    words = head.split()
    series, histograms = [], set()
    for line in lines:
        metric, points = _split(line)
        name = metric.partition("{")[0].strip()
        if words[0] == "load_with_nhcb":
            histograms.add(name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum"))
        if "{{" in points:
            histograms.add(name)
        elif not points.startswith("@"):
            series.append(_series(line))
    return Load(span(words[1]), tuple(series), frozenset(histograms))


def _eval(number: int, lines: Sequence[str]) -> Eval:
    head = lines[0]
    found = _INSTANT.match(head)
    if found is not None:
        mode, at, query = found.groups()
        case = Eval(number, query, span(at), span(at), 0, "instant")
    else:
        ranged = _RANGE.match(head)
        if ranged is None:
            raise Unreadable(f"line {number}: {head}")
        mode, start, end, step, query = ranged.groups()
        case = Eval(number, query, span(start), span(end), span(step), "range")
    case.fails = mode == "fail"
    case.ordered = mode == "ordered"
    for line in lines[1:]:
        _expect(case, line)
    return case


def _expect(case: Eval, line: str) -> None:
    if line.startswith("expect "):
        what = line.removeprefix("expect ").strip()
        if what.startswith("fail"):
            case.fails = True
            rest = what.removeprefix("fail").strip()
            if rest.startswith("msg:"):
                case.message = rest.removeprefix("msg:").strip()
            elif rest.startswith("regex:"):
                case.pattern = rest.removeprefix("regex:").strip()
        elif what.startswith("ordered"):
            case.ordered = True
        elif what.startswith("string"):
            quoted = what.removeprefix("string").strip()
            case.text = promql_parser.parse(quoted).val
        elif what.startswith("range vector"):
            words = what.split()
            case.raw = span(words[3]), span(words[5]), span(words[7])
        return
    if line.startswith(("expected_fail_message", "expected_fail_regexp")):
        word, _, rest = line.partition(" ")
        setattr(case, "message" if word.endswith("message") else "pattern", rest.strip())
        return
    if "{{" in line:
        case.skip = "native histograms"
        return
    try:
        case.scalar = _number(line)
    except ValueError:
        case.series.append(_series(line))


def _series(line: str) -> Series:
    metric, points = _split(line)
    return Series(_labels(metric), tuple(_points(points)))


def _split(line: str) -> tuple[str, str]:
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


def _labels(metric: str) -> Labels:
    if metric.replace(" ", "") == "{}":
        return {}
    try:
        node = promql_parser.parse(metric)
    except ValueError as error:
        raise Unreadable(f"{metric}: {error}") from None
    labels = {m.name: m.value for m in node.matchers.matchers if m.value}
    if node.name:
        labels[NAME] = node.name
    return labels


def _points(text: str) -> Iterator[float | None]:
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
            value, by = _number(first), _number(each) if each else 0.0
            for i in range(int(times) + 1):
                yield value + (-by if sign == "-" else by) * i if by else value
        else:
            try:
                yield _number(word)
            except ValueError:
                raise Unreadable(f"no point: {word}") from None


def _number(text: str) -> float:
    if text.lower().lstrip("+-").startswith("0x"):
        return float(int(text, 16))
    if text == "NaN":
        return math.nan
    return float(text)
