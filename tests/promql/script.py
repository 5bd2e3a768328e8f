"""Reads Prometheus's scripts of PromQL cases: ``load``, ``clear``, and ``eval`` with its answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import promql_parser

from gradwarden_server.promql.notation import (
    Unreadable,
    labels_of,
    number,
    points,
    span,
    split,
)
from gradwarden_server.promql.vector import Labels

_INSTANT = re.compile(r"eval(?:_(\w+))?\s+instant\s+at\s+(\S+)\s+(.+)\Z", re.DOTALL)
_RANGE = re.compile(
    r"eval(?:_(\w+))?\s+range\s+from\s+(\S+)\s+to\s+(\S+)\s+step\s+(\S+)\s+(.+)\Z", re.DOTALL
)


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
    for at, lines in _blocks(text):
        head = lines[0]
        if head.startswith("clear"):
            yield Clear()
        elif head.startswith("load"):
            yield _load(head, lines[1:])
        elif head.startswith("eval"):
            yield _eval(at, lines)
        else:
            raise Unreadable(f"line {at}: {head}")


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Commands with the indented lines below them."""
    held: list[str] = []
    start = 0
    for at, raw in enumerate(text.splitlines(), start=1):
        line = raw.rstrip()
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0] in " \t" and held:
            held.append(line.strip())
            continue
        if held:
            yield start, held
        held, start = [line.strip()], at
    if held:
        yield start, held


def _load(head: str, lines: Sequence[str]) -> Load:
    words = head.split()
    series, histograms = [], set()
    for line in lines:
        metric, told = split(line)
        name = metric.partition("{")[0].strip()
        if words[0] == "load_with_nhcb":
            histograms.add(name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum"))
        if "{{" in told:
            histograms.add(name)
        elif not told.startswith("@"):
            series.append(_series(line))
    return Load(span(words[1]), tuple(series), frozenset(histograms))


def _eval(at_line: int, lines: Sequence[str]) -> Eval:
    head = lines[0]
    found = _INSTANT.match(head)
    if found is not None:
        mode, at, query = found.groups()
        case = Eval(at_line, query, span(at), span(at), 0, "instant")
    else:
        ranged = _RANGE.match(head)
        if ranged is None:
            raise Unreadable(f"line {at_line}: {head}")
        mode, start, end, step, query = ranged.groups()
        case = Eval(at_line, query, span(start), span(end), span(step), "range")
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
        case.scalar = number(line)
    except ValueError:
        case.series.append(_series(line))


def _series(line: str) -> Series:
    metric, told = split(line)
    return Series(labels_of(metric), tuple(points(told)))
