"""float16: gradients that are too small for it, and loss scales that find their level or do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden import wire
from gradwarden_server.detect.engine import RunDetectors, Verdict
from gradwarden_server.detect.steps import Step
from tests.server.detection import (
    LAYOUTS,
    ROWS,
    carrier,
    engine,
    held,
    layout,
    noise,
    spoken,
    step,
)
from tests.server.test_detect_weights import measured

UNDERFLOW, COLLAPSE = "GradientUnderflow", "LossScaleCollapse"
SCALE = 65536.0
Numbers = np.ndarray[Any, Any]
HALF = layout(dtype="float16")
LAYOUTS[HALF.hash] = HALF


def histogram(centres: Numbers | float, seed: int = 0, spread: float = 3.0) -> dict[str, Numbers]:
    """Counts by bin of 4,096 values a row, normal in log2 about these centres, by row."""
    middles = np.broadcast_to(np.asarray(centres, np.float64), (ROWS,))
    values = np.random.default_rng(seed).normal(middles[:, None], spread, (ROWS, 4096))
    edges = [-np.inf, *np.log2(wire.histogram_edges()), np.inf]
    counts = np.array([np.histogram(row, edges)[0] for row in values], np.float64)
    return {name: counts[:, k] for k, name in enumerate(wire.HISTOGRAM)}


SMALL, LARGE = histogram(-20.0), histogram(-10.0)
"""Below float16's normal numbers where nothing is scaled; well above them."""
NOT_TAKEN = {name: np.full(ROWS, np.nan) for name in wire.HISTOGRAM}


def binned(count: int, bins: dict[str, Numbers], first: int = 0, **more: Any) -> list[Step]:
    """Steps of which every tenth has a histogram."""
    return [
        measured(step(n, 1.0, **more), **(bins if n % 10 == 0 else NOT_TAKEN))
        for n in range(first, first + count)
    ]


AUTOCAST = {"kind": "manner", "autocast": "float16", "alternating": False}


# -- underflow ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["by its type", "by autocast"])
def test_float16_without_a_scale_underflows_at_the_sixth_histogram(how: str) -> None:
    steps = binned(120, SMALL, **({"layout": HALF.hash} if how == "by its type" else {}))
    if how == "by autocast":
        steps.insert(1, carrier(0, AUTOCAST, 0.5))
    verdicts = engine([UNDERFLOW]).advance(steps)
    assert spoken(verdicts) in ({(UNDERFLOW, "ticket"): 50}, {(UNDERFLOW, "ticket"): 60})
    (ticket,) = held(verdicts).values()
    assert ticket.annotations["layer"].startswith("blocks.")
    assert "no loss scale is used" in ticket.annotations["cause"]
    assert "torch.amp.GradScaler()" in ticket.annotations["first_action"]


def test_the_advised_scale_lifts_nine_tenths_over_the_limit() -> None:
    steps = binned(80, histogram(-27.5), layout=HALF.hash, loss_scale=256.0)
    (ticket,) = held(engine([UNDERFLOW]).advance(steps)).values()
    words = ticket.annotations["first_action"]
    assert words.startswith("Raise the loss scale from 256 to about ")
    # Nine tenths of these values lie above 2^-31.3; bins are four octaves wide.
    assert 2**17 <= float(words.split("about ")[1].split()[0]) <= 2**19


def test_only_the_layers_that_underflow_are_named() -> None:
    centres = np.full(ROWS, -8.0)
    centres[[4, 6]] = -22.0  # blocks.2.fc.weight and blocks.3.fc.weight
    steps = binned(80, histogram(centres), layout=HALF.hash)
    (ticket,) = held(engine([UNDERFLOW]).advance(steps)).values()
    assert set(ticket.annotations["layers"].split(", ")) == {"blocks.2.fc", "blocks.3.fc"}


def test_underflow_that_ends_closes() -> None:
    steps = binned(80, SMALL, layout=HALF.hash) + binned(40, LARGE, 80, layout=HALF.hash)
    verdicts = engine([UNDERFLOW]).advance(steps)
    assert held(verdicts[:79])
    assert held(verdicts) == {}


HEALTHY: dict[str, Callable[[], Iterable[Step]]] = {
    "float32": lambda: binned(200, SMALL),
    "half above the limit": lambda: binned(200, LARGE, layout=HALF.hash),
    "lifted by its scale": lambda: binned(200, histogram(-25.0), loss_scale=SCALE),
    "bfloat16 with a scaler left in": lambda: [
        carrier(0, AUTOCAST | {"autocast": "bfloat16"}, 0.5),
        *binned(200, histogram(-35.0), loss_scale=SCALE),
    ],
    "just under half": lambda: binned(200, histogram(-13.7), layout=HALF.hash),
    "forty steps only": lambda: [
        *binned(40, SMALL, layout=HALF.hash),
        *binned(40, LARGE, 40, layout=HALF.hash),
    ],
    "nothing left to learn": lambda: [
        *binned(60, LARGE, layout=HALF.hash, loss=2.3),
        *binned(200, SMALL, 60, layout=HALF.hash, loss=1e-3),
    ],
    "all gradients zero": lambda: binned(
        200, {name: np.zeros(ROWS) for name in wire.HISTOGRAM}, layout=HALF.hash
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_no_underflow(name: str) -> None:
    assert spoken(engine([UNDERFLOW]).advance(HEALTHY[name]())) == {}


def test_norms_and_biases_are_computed_in_float32_and_may_be_small() -> None:
    centres = np.full(ROWS, -8.0)
    centres[1:-1:2] = -30.0  # the biases
    assert spoken(engine([UNDERFLOW]).advance(binned(200, histogram(centres)))) == {}


def test_the_average_of_many_ranks_may_be_smaller_than_what_each_computed() -> None:
    steps = binned(120, histogram(-17.0), layout=HALF.hash)
    assert spoken(engine([UNDERFLOW], world_size=1).advance(steps))
    assert spoken(engine([UNDERFLOW], world_size=256).advance(steps)) == {}


def test_coverage_of_underflow() -> None:
    def coverage(steps: Iterable[Step]) -> tuple[str, str]:
        detectors = engine([UNDERFLOW])
        detectors.advance(steps)
        (found,) = detectors.coverage()
        return found.state, found.detail

    assert coverage(binned(20, LARGE, layout=HALF.hash))[0] == "armed"
    assert coverage([step(n) for n in range(20)]) == ("waiting", "20 of 50 steps")
    state, detail = coverage([step(n, loss_scale=SCALE) for n in range(60)])
    assert (state, 'preset="standard"' in detail) == ("blind", True)
    state, detail = coverage(binned(60, LARGE))
    assert (state, "nothing is computed in float16" in detail) == ("blind", True)


# -- loss scale -----------------------------------------------------------------------------


def scaled(
    skips: Iterable[int],
    count: int = 400,
    start: float = SCALE,
    interval: int = 2000,
    **bad: Any,
) -> list[Step]:
    """What torch's scaler does where these steps overflow."""
    bad = bad or {"inf": range(ROWS)}
    wanted, steps, scale, good = set(skips), [], start, 0
    rows = noise(count)
    for n in range(count):
        if n in wanted:
            steps.append(step(n, rows[n], stepped=False, loss_scale=scale, **bad))
            scale, good = scale / 2, 0
        else:
            steps.append(step(n, rows[n], loss_scale=scale))
            good += 1
            if good == interval:
                scale, good = scale * 2, 0
    return steps


def judged(steps: list[Step]) -> list[Verdict]:
    return engine([COLLAPSE, "NonFiniteGradient"]).advance(steps)


@pytest.mark.parametrize("skips", [1, 12, 32])
def test_a_scale_that_finds_its_level_raises_nothing(skips: int) -> None:
    assert spoken(judged(scaled(range(skips)))) == {}


def test_the_thirty_third_skip_before_the_first_step_pages() -> None:
    verdicts = judged(scaled(range(100), 100))
    assert spoken(verdicts) == {(COLLAPSE, "page"): 32}
    (page,) = held(verdicts).values()
    assert "65536 at 0, 32768 at 1" not in page.annotations["scale_history"]  # the newest twelve
    assert "no step was applied in the first 33" in page.annotations["summary"]


def test_ten_skips_in_a_row_page_once_and_not_twice() -> None:
    verdicts = judged(scaled(range(100, 130), 200))
    assert spoken(verdicts) == {(COLLAPSE, "page"): 109}
    (page,) = held(verdicts).values()
    assert "65536 at 0, 32768 at 101" in page.annotations["scale_history"]


def test_nine_skips_in_a_row_are_none() -> None:
    assert spoken(judged(scaled(range(100, 109)))) == {}


def test_more_than_a_twentieth_skipped_is_a_ticket() -> None:
    verdicts = judged(scaled(range(50, 400, 15), start=2.0**30))
    assert spoken(verdicts) == {(COLLAPSE, "ticket"): 50 + 10 * 15}
    assert spoken(judged(scaled(range(50, 400, 25), start=2.0**30))) == {}


def test_a_scale_that_grows_often_may_be_too_large_often() -> None:
    skips, steps, scale, good = [], [], 1024.0, 0
    for n in range(400):
        bad = scale > 1024
        skips += [n] if bad else []
        made = step(n, stepped=not bad, loss_scale=scale, inf=range(ROWS) if bad else ())
        steps.append(made)
        scale, good = (scale / 2, 0) if bad else (scale, good + 1)
        if good == 10:
            scale, good = scale * 2, 0
    assert len(skips) > 30
    assert spoken(judged(steps)) == {}


def test_a_scale_that_fell_below_one_pages() -> None:
    skips = [100 + 30 * k for k in range(3)]
    verdicts = judged(scaled(skips, start=4.0))
    assert spoken(verdicts) == {}
    verdicts = judged(scaled([*skips, 190], start=4.0))
    assert spoken(verdicts) == {(COLLAPSE, "page"): 190}


def test_a_scale_that_found_its_level_below_one_is_none() -> None:
    assert spoken(judged(scaled([*range(20), 300]))) == {}


def test_a_scale_at_its_minimum_that_still_overflows_pages() -> None:
    steps = [step(n, loss_scale=8.0) for n in range(50)]
    scales = [8.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    steps += [
        step(50 + k, inf=range(ROWS), stepped=False, loss_scale=s) for k, s in enumerate(scales)
    ]
    assert spoken(judged(steps)) == {(COLLAPSE, "page"): 57}


def test_what_overflows_is_named_and_nan_is_told_from_inf() -> None:
    (page,) = held(judged(scaled(range(100, 115), 120, inf=range(6)))).values()
    assert page.annotations["layer"] == "blocks.2.fc"
    assert "overflow at every scale" in page.annotations["cause"]
    (page,) = held(judged(scaled(range(100, 115), 120, nan=range(ROWS)))).values()
    assert "which no scale heals" in page.annotations["cause"]


def test_a_nan_that_was_applied_pages_whatever_the_scale() -> None:
    steps = scaled([], 60)
    steps[50] = replace(step(50, nan=[3], loss_scale=SCALE))
    assert spoken(judged(steps)) == {("NonFiniteGradient", "page"): 50}


def test_the_page_closes_after_a_hundred_applied_steps() -> None:
    verdicts = judged(scaled(range(100, 112), 300))
    assert held(verdicts[:200])
    assert held(verdicts) == {}


def test_coverage_of_the_loss_scale() -> None:
    detectors = engine([COLLAPSE])
    assert detectors.coverage()[0].state == "waiting"
    detectors.advance(step(n) for n in range(5))
    (coverage,) = detectors.coverage()
    assert (coverage.state, "torch.amp.GradScaler" in coverage.detail) == ("blind", True)
    detectors.advance([step(5, loss_scale=SCALE)])
    assert detectors.coverage()[0].state == "armed"


# -- both -----------------------------------------------------------------------------------


def eventful() -> list[Step]:
    bad = scaled([*range(5), *range(100, 112), *range(160, 200, 3)], 260)
    bins = histogram(-32.0)
    steps = [measured(s, **(bins if s.step % 10 == 0 else NOT_TAKEN)) for s in bad]
    steps.insert(3, carrier(2, AUTOCAST, 2.5))
    return [*steps, *(step(n, attempt=2, loss_scale=SCALE) for n in range(250, 270))]


EVENTFUL = eventful()


def said(detectors: RunDetectors, steps: list[Step]) -> list[Any]:
    return [(v.step, v.conditions) for s in steps for v in detectors.advance([s])]


ALL = said(engine([UNDERFLOW, COLLAPSE]), EVENTFUL)


def test_annotations_hold_what_everybody_expects() -> None:
    active = [c for _, found in ALL for c in found if c.active]
    assert {(c.alertname, c.severity) for c in active} == {
        (UNDERFLOW, "ticket"),
        (COLLAPSE, "page"),
    }
    wanted = {"summary", "step", "attempt", "cause", "first_action", "layer"}
    for condition in active:
        assert wanted <= set(condition.annotations), condition.alertname


@given(st.integers(0, len(EVENTFUL) - 1))
@settings(max_examples=12, deadline=None)
def test_restored_at_any_step_it_says_the_same(at: int) -> None:
    before, after = engine([UNDERFLOW, COLLAPSE]), engine([UNDERFLOW, COLLAPSE])
    before.advance(EVENTFUL[:at])
    after.restore(before.state())
    assert said(after, EVENTFUL[at : at + 130]) == ALL[at : at + 130]
    before.advance(EVENTFUL[at : at + 130])
    assert after.coverage() == before.coverage()
