"""PromQL: our scripts, and functions of ranges against the obvious way to compute them."""

from __future__ import annotations

import itertools
import math
import os
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden_server.promql import aggregate, binary, elementwise, functions, ranges
from gradwarden_server.promql.engine import Engine, Limits
from gradwarden_server.promql.errors import LimitExceeded, QueryError
from gradwarden_server.promql.vector import NAME
from tests.promql.memory import Memory, close
from tests.promql.run import main, run

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.test"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_our_scripts(script: Path) -> None:
    score = run(script.read_text(encoding="utf-8"))
    assert not [f"{case.line}: {case.query}: {wrong}" for case, wrong in score.failed]
    assert not score.skipped
    assert score.passed


def test_every_function_and_operator_has_a_case() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    names = {*ranges.RANGE_FUNCTIONS, *functions.FUNCTIONS}
    names |= {*elementwise.ELEMENTWISE, *elementwise.CALENDAR}
    names |= {*aggregate.AGGREGATES, *aggregate.CHOICES, "count_values"}
    missing = {name for name in names if not re.search(rf"\b{name}\b *(?:\(|by|without)", text)}
    signs = {*binary.ARITHMETIC, *binary.COMPARISONS, *binary.SETS}
    missing |= {sign for sign in signs if f" {sign} " not in text}
    assert not missing


def test_the_runner_says_what_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = "load 1m\n  x 1 2\n\neval instant at 1m x\n  x 3\n\neval instant at 1m x\n  x 2\n"
    (tmp_path / "wrong.test").write_text(script)
    assert main([str(tmp_path), "--failures"]) == 1
    told = capsys.readouterr().out
    assert "wrong.test:4: x" in told
    assert '"passed": 1, "failed": 1' in told


@pytest.mark.skipif(
    "PROMQL_TESTDATA" not in os.environ,
    reason="set PROMQL_TESTDATA to promql/promqltest/testdata of a checkout of Prometheus",
)
def test_prometheus_own_scripts() -> None:
    passed, failed = 0, 0
    for path in sorted(Path(os.environ["PROMQL_TESTDATA"]).glob("*.test")):
        if path.stem == "start_timestamps":  # an extension of the format
            continue
        score = run(path.read_text(encoding="utf-8"))
        passed, failed = passed + score.passed, failed + len(score.failed)
    assert passed
    assert passed / (passed + failed) >= 0.98


def _quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    rank = q * (len(ordered) - 1)
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] * (1 - rank + low) + ordered[high] * (rank - low)


NAIVE: dict[str, Callable[[Sequence[float]], float]] = {
    "avg_over_time(x[{w}])": lambda v: math.fsum(v) / len(v),
    "changes(x[{w}])": lambda v: sum(a != b for a, b in itertools.pairwise(v)),
    "count_over_time(x[{w}])": len,
    "max_over_time(x[{w}])": max,
    "min_over_time(x[{w}])": min,
    "quantile_over_time(0.3, x[{w}])": lambda v: _quantile(v, 0.3),
    "resets(x[{w}])": lambda v: sum(b < a for a, b in itertools.pairwise(v)),
    "stddev_over_time(x[{w}])": statistics.pstdev,
    "sum_over_time(x[{w}])": math.fsum,
}


@settings(max_examples=60, deadline=None)
@given(
    points=st.dictionaries(
        st.integers(0, 120), st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), min_size=1
    ),
    width=st.integers(1, 60),
    query=st.sampled_from(sorted(NAIVE)),
)
def test_ranges_are_what_their_samples_say(
    points: dict[int, float], width: int, query: str
) -> None:
    memory = Memory()
    memory.add({NAME: "x"}, [(second * 1000, value) for second, value in points.items()])
    answer = Engine(memory).range(query.format(w=f"{width}s"), 0, 130_000, 7_000)
    assert answer.vector is not None
    for column, at in enumerate(range(0, 131, 7)):
        held = [points[s] for s in sorted(points) if at - width < s <= at]
        there = len(answer.vector) > 0 and bool(answer.vector.present[0, column])
        assert there == bool(held)
        if held:
            ours = float(answer.vector.values[0, column])
            naive = float(NAIVE[query](held))
            assert close(ours, naive) or abs(ours - naive) <= 1e-7 * max(map(abs, held))


def test_series_of_one_block_and_series_apart_answer_alike() -> None:
    rng = np.random.default_rng(1)
    together, apart = Memory(), Memory()
    for layer in range(6):
        values = rng.lognormal(size=50)
        labels = {NAME: "x", "layer": str(layer)}
        together.add(labels, [(i * 1000, float(v)) for i, v in enumerate(values)])
        points = [(i * 1000, float(v)) for i, v in enumerate(values)]
        apart.add(labels, points)
        apart.add(labels, [(100_000 + layer, 1.0)])  # beyond what is asked: another block
    for query in ("rate(x[10s])", "max(x)", "quantile_over_time(0.9, x[20s])", "topk(2, x)"):
        answers = [Engine(m).range(query, 10_000, 45_000, 5_000).vector for m in (together, apart)]
        one, other = answers
        assert one is not None
        assert other is not None
        assert one.labels == other.labels
        assert np.array_equal(one.present, other.present)
        assert np.allclose(one.values[one.present], other.values[other.present], rtol=1e-12)


def test_a_query_may_not_take_the_service() -> None:
    memory = Memory()
    memory.add({NAME: "x"}, [(i * 1000, 1.0) for i in range(1000)])
    with pytest.raises(LimitExceeded, match="too many samples"):
        Engine(memory, Limits(samples=500)).range("rate(x[10m])", 0, 999_000, 1000)
    with pytest.raises(LimitExceeded, match="11,000 points"):
        Engine(memory).range("x", 0, 12_000_000, 1000)
    with pytest.raises(LimitExceeded, match="timed out"):
        Engine(memory, expired=lambda: True).instant("sum(x)", 1000)
    with pytest.raises(QueryError, match="zero or negative"):
        Engine(memory).range("x", 0, 1000, 0)
