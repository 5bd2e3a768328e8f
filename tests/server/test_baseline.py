"""The baseline against its slow, obvious twin, and its restarts."""

from __future__ import annotations

import numpy as np
import pytest

from gradwarden_server.detect.baseline import Baseline, Restarts, settings_from
from gradwarden_server.detect.single import SingleBaseline
from gradwarden_server.detect.state import pack, unpack
from tests.server.detection import RULES

EXACT = settings_from({**RULES.baseline, "refresh_steps": 1})


def test_it_is_the_median_and_mad_of_the_last_two_hundred_steps() -> None:
    rng = np.random.default_rng(0)
    x = rng.lognormal(0, 0.5, (350, 3))
    x[rng.random(x.shape) < 0.1] = 0  # zeros are observed, but have no logarithm
    baseline = Baseline(3, EXACT)
    for at, row in enumerate(x):
        judged = baseline.judge(row, True)
        window = x[max(0, at - 200) : at]
        for series in range(3):
            y = np.log10(window[:, series][window[:, series] > 0])
            if len(y) < 100 or row[series] == 0:
                assert np.isnan(judged.z[series])
                continue
            median = np.median(y)
            spread = max(1.4826 * np.median(np.abs(y - median)), 0.10)
            z = (np.log10(row[series]) - median) / spread
            assert judged.z[series] == pytest.approx(z, rel=1e-4, abs=1e-4)


def test_a_quiet_series_is_not_alarmed_by_a_factor_of_two() -> None:
    baseline = Baseline(1, EXACT)
    for _ in range(150):
        baseline.judge([1.0], True)
    assert baseline.judge([2.0], True).z[0] == pytest.approx(3.01, abs=0.01)


def test_nothing_is_armed_before_the_run_is_past_its_warm_up() -> None:
    baseline = Baseline(1, EXACT)
    for _ in range(150):
        assert not baseline.judge([1.0], False).armed[0]
    assert baseline.judge([1.0], True).armed[0]


def test_far_steps_stay_out_and_after_a_hundred_are_the_new_level_once() -> None:
    baseline = Baseline(2, EXACT)
    for _ in range(200):
        baseline.judge([1.0, 1.0], True)
    for at in range(100):
        judged = baseline.judge([100.0, 1.0], True)
        assert judged.ratio[0] == pytest.approx(100)
        assert judged.releveled.tolist() == [at == 99, False]
    judged = baseline.judge([100.0, 1.0], True)
    assert judged.armed[0]
    assert judged.z[0] == pytest.approx(0)
    assert not judged.releveled.any()


def test_a_series_that_is_seldom_positive_is_not_judged_by_itself() -> None:
    baseline = Baseline(1, EXACT)
    for at in range(400):
        baseline.judge([1.0 if at % 3 == 0 else 0.0], True)
    assert baseline.sparse[0]
    assert np.isnan(baseline.judge([1e6], True).z[0])


def test_unobserved_steps_neither_fill_nor_age_it() -> None:
    baseline = Baseline(1, EXACT)
    for _ in range(120):
        baseline.judge([1.0], True)
    for _ in range(500):
        baseline.judge([np.nan], True)
    assert baseline.judge([100.0], True).ratio[0] == pytest.approx(100)


def test_it_goes_on_from_its_state_as_if_never_stopped() -> None:
    x = np.random.default_rng(1).lognormal(0, 1, (300, 4))
    settings = settings_from(RULES.baseline)
    one, other = Baseline(4, settings), Baseline(4, settings)
    for at, row in enumerate(x):
        if at % 37 == 5:
            state = unpack(pack(other.state()))
            other = Baseline(4, settings)
            other.restore(state)
        np.testing.assert_array_equal(one.judge(row, True).z, other.judge(row, True).z)


@pytest.mark.parametrize("seed", range(3))
def test_a_single_series_is_judged_as_one_of_many_and_kept_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.lognormal(0, 0.3, 900) * np.repeat([1, 1e4, 1e-3], 300)  # two levels that come to stay
    x[:250][rng.random(250) < 0.1] = 0
    x[rng.random(len(x)) < 0.05] = np.nan
    settings = settings_from(RULES.baseline)
    many, one = Baseline(1, settings), SingleBaseline(settings)
    releveled = 0
    for at, value in enumerate(x):
        if at % 97 == 5:
            state = unpack(pack(one.state()))
            for name, held in many.state().items():
                np.testing.assert_array_equal(state[name], held)
            one = SingleBaseline(settings)
            one.restore(state)
        if at == 650:
            many.restart()
            one.restart()
        open_ = at % 250 > 5
        theirs, ours = many.judge([value], open_), one.judge(float(value), open_)
        for name in ("z", "ratio", "armed", "releveled"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert (one.known, one.sparse) == (many.known, many.sparse[0])
        releveled += int(ours.releveled[0])
    assert releveled


@pytest.mark.parametrize(
    ("sentence", "lrs", "restarts"),
    [
        ("a constant rate begins nothing anew", [1.0] * 50, []),
        ("a rise to more than double does", [1.0] * 20 + [2.1] * 20, [20]),
        ("exactly double does not", [1.0] * 20 + [2.0] * 20, []),
        ("a slow decay does not", [0.99**n for n in range(50)], []),
        ("a fall to less than half does", [1.0] * 20 + [0.4] * 20, [20]),
    ],
)
def test_the_learning_rate(sentence: str, lrs: list[float], restarts: list[int]) -> None:
    judge = Restarts(EXACT)
    assert [n for n, lr in enumerate(lrs) if judge.observe(lr, None, False)] == restarts, sentence


def test_it_opens_when_the_rate_first_stops_rising() -> None:
    judge = Restarts(EXACT)
    opened = []
    for n in range(200):
        judge.observe(min(1.0, (n + 1) / 150), None, False)
        opened.append(judge.open)
    assert opened.index(True) == 150


def test_it_opens_by_step_five_hundred_where_no_rate_is_known() -> None:
    judge = Restarts(EXACT)
    opened = []
    for _ in range(510):
        judge.observe(None, None, False)
        opened.append(judge.open)
    assert opened.index(True) == 499


def test_tokens_that_vary_from_step_to_step_begin_nothing_but_a_new_level_does() -> None:
    judge = Restarts(EXACT)
    rng = np.random.default_rng(0)
    varied = [judge.observe(1.0, float(t), False) for t in rng.uniform(500, 2000, 300)]
    assert sum(varied) <= 1
    raised = [judge.observe(1.0, 4000.0, False) for _ in range(30)]
    assert sum(raised) == 1
