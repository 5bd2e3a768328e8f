"""Runs scripts in Prometheus's own ``.test`` format against our PromQL, and prints a table.

    python -m tests.promql.run DIRECTORY
    python -m tests.promql.run DIRECTORY --failures    # tell each failed case

Skipped is what we do not have by decision; each reason is told with its number of cases.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gradwarden_server.promql.engine import Answer, Engine
from gradwarden_server.promql.errors import ExecutionError, QueryError
from gradwarden_server.promql.vector import Key, key
from tests.promql.memory import Memory, close
from tests.promql.script import Clear, Eval, Load, Series, Unreadable, read

UNKNOWN = {
    "anchored": re.compile(r"\banchored\b|\bsmoothed\b"),
    "durations that are computed": re.compile(
        r"\[[^\]]*(?:step\(|range\(|min\(|max\(|[-+*/%^(]).*\]|offset\s*-?\(?[^ ]*[*/(]"
    ),
    "native histograms": re.compile(
        r"\{\{|</|>/|histogram_(?:avg|count|sum|stddev|stdvar)\b|start_timestamp"
    ),
    "info()": re.compile(r"\binfo\s*\("),
    "limit_ratio": re.compile(r"\blimit_ratio\b"),
}


_WORD = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


@dataclass(slots=True)
class Score:
    """How one script went."""

    passed: int = 0
    failed: list[tuple[Eval, str]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def run(text: str) -> Score:
    """Run one script."""
    score, memory = Score(), Memory()
    histograms: set[str] = set()
    for command in read(text):
        if isinstance(command, Clear):
            memory.clear()
            histograms.clear()
        elif isinstance(command, Load):
            memory.load(command)
            histograms |= command.histograms
        else:
            native = histograms & set(_WORD.findall(command.query))
            reason = (
                command.skip or skipped(command.query) or ("native histograms" if native else "")
            )
            if reason:
                score.skipped[reason] += 1
                continue
            wrong = judge(command, memory)
            if wrong:
                score.failed.append((command, wrong))
            else:
                score.passed += 1
    return score


def skipped(query: str) -> str:
    """Why a query is not for us, if it is not."""
    return next((name for name, pattern in UNKNOWN.items() if pattern.search(query)), "")


def judge(case: Eval, memory: Memory) -> str:
    """What is wrong with our answer; nothing where it is as expected."""
    engine = Engine(memory)
    try:
        if case.kind == "instant":
            answer = engine.instant(case.query, case.start_ms)
        else:
            answer = engine.range(case.query, case.start_ms, case.end_ms, case.step_ms)
    except (QueryError, ExecutionError) as error:
        if not case.fails:
            return f"fails: {error}"
        return ""
    except Exception as error:  # a script must find what is broken, not stop at it
        return f"breaks: {type(error).__name__}: {error}"
    if case.fails:
        return "answers where it must fail"
    return _compared(case, answer)


def _compared(case: Eval, answer: Answer) -> str:
    if case.text is not None:
        return "" if answer.text == case.text else f"text {answer.text!r}"
    if case.scalar is not None:
        assert answer.vector is not None
        value = float(answer.vector.values[0, 0])
        return "" if close(value, case.scalar) else f"{value} in place of {case.scalar}"
    wanted = {key(series.labels): _expected(case, series) for series in case.series}
    found = _found(answer)
    if answer.kind == "scalar":
        return "a scalar in place of series" if wanted else ""
    for identity in wanted.keys() - found.keys():
        return f"lacks {dict(identity)}"
    for identity in found.keys() - wanted.keys():
        return f"has {dict(identity)} {found[identity]}"
    for identity, points in wanted.items():
        ours = found[identity]
        if ours.keys() != points.keys():
            return f"{dict(identity)} at {sorted(ours)} in place of {sorted(points)}"
        for at, value in points.items():
            if not close(ours[at], value):
                return f"{dict(identity)} at {at} ms: {ours[at]} in place of {value}"
    if case.ordered and case.kind == "instant" and list(found) != list(wanted):
        return f"in the order {[dict(k) for k in found]}"
    return ""


def _expected(case: Eval, series: Series) -> dict[int, float]:
    start, step = (case.start_ms, case.step_ms) if case.raw is None else (case.raw[0], case.raw[2])
    return {start + i * step: value for i, value in enumerate(series.points) if value is not None}


def _found(answer: Answer) -> dict[Key, dict[int, float]]:
    found: dict[Key, dict[int, float]] = {}
    for block in answer.blocks:
        for labels, row in zip(block.labels, block.values, strict=True):
            held = found.setdefault(key(labels), {})
            held.update(zip(block.times.tolist(), row.tolist(), strict=True))
    vector = answer.vector
    for row, labels in enumerate(vector.labels if vector is not None else ()):
        assert vector is not None
        found[key(labels)] = {
            int(at): float(vector.values[row, column])
            for column, at in enumerate(answer.times)
            if vector.present[row, column]
        }
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a directory of scripts."""
    parser = argparse.ArgumentParser(prog="python -m tests.promql.run", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("directory", type=Path)
    parser.add_argument("--failures", action="store_true", help="tell each failed case")
    options = parser.parse_args(arguments)
    scripts = sorted(options.directory.glob("*.test"))
    if not scripts:
        print(f"no *.test in {options.directory}", file=sys.stderr)
        return 2
    passed, failed, reasons = 0, 0, Counter[str]()
    print(f"{'script':32} {'passed':>7} {'failed':>7} {'skipped':>8}")
    for path in scripts:
        try:
            score = run(path.read_text(encoding="utf-8"))
        except Unreadable as error:
            print(f"{path.stem:32} unreadable: {error}")
            failed += 1
            continue
        skips = sum(score.skipped.values())
        print(f"{path.stem:32} {score.passed:7} {len(score.failed):7} {skips:8}")
        if options.failures:
            for case, wrong in score.failed:
                print(f"    {path.name}:{case.line}: {case.query}\n        {wrong}")
        passed += score.passed
        failed += len(score.failed)
        reasons += score.skipped
    for reason, count in reasons.most_common():
        print(f"skipped {count:5}: {reason}")
    asked = passed + failed
    figures = {"passed": passed, "failed": failed, "skipped": reasons.total()}
    figures["passed_ratio"] = round(passed / asked, 4) if asked else 0.0
    print(json.dumps({"name": "promql conformance", **figures}))
    return 0 if not failed else 1


if __name__ == "__main__":
    sys.exit(main())
