"""How far steps go: update ratios out of their band, and clipping that decides everything."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden_server.detect.engine import RunDetectors
from gradwarden_server.detect.steps import Step
from tests.server.detection import LAYOUTS, ROWS, engine, held, layout, noise, spoken, step
from tests.server.test_detect_weights import NOTHING, in_turn, measured

RATIO, CLIP = "UpdateRatioOutOfBand", "ClipSaturation"
Numbers = np.ndarray[Any, Any]
SEEDS = range(3)
MATRIX = 6
"""The row of blocks.3.fc.weight."""
WEIGHTS = np.sqrt([4096.0, 64.0] * 8 + [640.0]) * 0.02


def moving(
    ratios: Callable[[int], Numbers | float] | float,
    count: int = 800,
    weights: Callable[[int], Numbers] | Numbers = WEIGHTS,
    lr: Callable[[int], float] | float = 1e-3,
    **more: Any,
) -> list[Step]:
    """Weights are measured at the first twenty captures, then with the ratios in their turn."""
    steps = []
    for n in range(count):
        ratio = in_turn(ratios(n) if callable(ratios) else ratios, n)
        norms = weights(n) if callable(weights) else weights
        made = step(n, lr=lr(n) if callable(lr) else lr, **more)
        weighed = norms if n < 20 else np.where(np.isnan(ratio), np.nan, norms)
        steps.append(measured(made, weight_l2=weighed, update_ratio=ratio))
    return steps


# -- update ratios --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "word", "action"),
    [(0.2, "more than 0.1", "Lower"), (1e-9, "less than 1e-07", "Raise"), (0.0, "less", "Raise")],
)
def test_updates_out_of_the_band_for_two_hundred_steps_are_a_ticket(
    ratio: float, word: str, action: str
) -> None:
    verdicts = engine([RATIO]).advance(moving(ratio))
    first = spoken(verdicts)
    assert list(first) == [(RATIO, "ticket")]
    assert 200 <= first[RATIO, "ticket"] <= 280
    (ticket,) = held(verdicts).values()
    assert word in ticket.annotations["summary"]
    assert ticket.annotations["first_action"].startswith(action)
    assert ticket.annotations["learning_rate"] == "0.001"


def test_one_matrix_alone_is_named() -> None:
    ratios = np.full(ROWS, 1e-3)
    ratios[MATRIX] = 0.5
    (ticket,) = held(engine([RATIO]).advance(moving(lambda n: ratios))).values()
    assert (ticket.annotations["layer"], ticket.annotations["layers"]) == (
        "blocks.3.fc",
        "blocks.3.fc",
    )


def test_updates_back_in_the_band_close_the_ticket() -> None:
    verdicts = engine([RATIO]).advance(moving(lambda n: 0.3 if n < 500 else 1e-3))
    assert held(verdicts[:500])
    assert held(verdicts) == {}


@pytest.mark.parametrize("ratio", [0.09, 2e-7, 1e-3])
def test_updates_within_the_band_are_fine(ratio: float) -> None:
    assert spoken(engine([RATIO]).advance(moving(ratio))) == {}


def noisy(seed: int) -> list[Step]:
    rng = np.random.default_rng(seed)
    return moving(lambda n: 3e-3 * np.exp(rng.standard_t(3, ROWS)))


def warm_up(seed: int) -> list[Step]:
    """SGD at a learning rate from almost nothing."""
    return moving(lambda n: 1e-9 * (n + 1) / 4, 400, lr=lambda n: 1e-6 * (n + 1))


def decayed(seed: int) -> list[Step]:
    return moving(lambda n: 1e-3 if n < 300 else 1e-9, lr=lambda n: 1e-3 if n < 300 else 0.9e-4)


def lora(seed: int) -> list[Step]:
    """B begins at zero: nothing to measure it by, then large updates of what is small."""
    adapters = layout(kind="adapter")
    LAYOUTS[adapters.hash] = adapters

    def weights(n: int) -> Numbers:
        return WEIGHTS * (0.0 if n < 3 else 0.01 * np.sqrt(n))

    def ratios(n: int) -> Numbers | float:
        return NOTHING if n < 3 else 2 / np.sqrt(n)

    return moving(ratios, 1500, weights, layout=adapters.hash)


def frozen_by_rate(seed: int) -> list[Step]:
    """Gradual unfreezing by parameter groups whose rate is zero at first."""

    def ratios(n: int) -> Numbers:
        return np.where(np.arange(ROWS) < (8 if n < 500 else 0), 0.0, 1e-3)

    return moving(ratios)


def skipped(seed: int) -> list[Step]:
    return moving(0.0, stepped=False)


def biases_and_norms(seed: int) -> list[Step]:
    return moving(lambda n: np.where(np.arange(ROWS) % 2 == 1, 0.4, 1e-3))


def no_gradient(seed: int) -> list[Step]:
    """LoRA's A while B is zero, a head that is not used."""
    norms = np.ones(ROWS)
    norms[MATRIX] = 0.0
    ratios = np.full(ROWS, 1e-3)
    ratios[MATRIX] = 0.0
    return moving(lambda n: ratios, norms=norms)


def idle_experts(seed: int) -> list[Step]:
    experts = layout(kind="expert")
    LAYOUTS[experts.hash] = experts
    ratios = np.where(np.arange(ROWS) < 8, 0.0, 1e-3)
    return moving(lambda n: ratios, layout=experts.hash)


HEALTHY = (
    noisy, warm_up, decayed, lora, frozen_by_rate, skipped, biases_and_norms, no_gradient,
    idle_experts,
)  # fmt: skip


@pytest.mark.parametrize("run", HEALTHY, ids=lambda run: run.__name__)
def test_healthy_updates_raise_nothing(run: Callable[[int], list[Step]]) -> None:
    for seed in SEEDS if run is noisy else (0,):
        assert spoken(engine([RATIO]).advance(run(seed))) == {}, seed


def test_a_matrix_that_began_at_zero_is_judged_once_it_has_grown() -> None:
    def weights(n: int) -> Numbers:
        return WEIGHTS * (0.0 if n < 3 else 1.0)

    verdicts = engine([RATIO]).advance(
        moving(lambda n: NOTHING if n < 3 else 0.5, 1200, weights=weights)
    )
    assert 700 <= spoken(verdicts)[RATIO, "ticket"] <= 800


def test_weights_too_coarse_for_their_updates_are_told_as_such() -> None:
    half = layout(dtype="bfloat16")
    LAYOUTS[half.hash] = half
    ratios = np.full(ROWS, 1e-4)
    ratios[MATRIX] = 0.0
    (ticket,) = held(engine([RATIO]).advance(moving(lambda n: ratios, layout=half.hash))).values()
    assert "smaller than what the weights' type can resolve" in ticket.annotations["cause"]


def test_coverage_of_update_ratios() -> None:
    def coverage(steps: Iterable[Step]) -> tuple[str, str]:
        detectors = engine([RATIO])
        detectors.advance(steps)
        (found,) = detectors.coverage()
        return found.state, found.detail

    assert coverage(moving(1e-3, 300))[0] == "armed"
    assert coverage(moving(1e-3, 50)) == ("waiting", "50 of 200 steps")
    assert "monitor.log(lr=lr)" in coverage(step(n, lr=None) for n in range(30))[1]
    state, detail = coverage([step(n) for n in range(220)])
    assert (state, 'preset="standard"' in detail) == ("blind", True)


# -- clipping -------------------------------------------------------------------------------


def clipped(
    norms: Iterable[float],
    most: float = 1.0,
    lr: Callable[[int], float] | float = 1e-3,
    **more: Any,
) -> list[Step]:
    return [
        step(
            n,
            lr=lr(n) if callable(lr) else lr,
            clip_norm=float(norm),
            clip_max_norm=most,
            clip_coefficient=float(np.minimum(1.0, most / (norm + 1e-6))),
            **more,
        )
        for n, norm in enumerate(norms)
    ]


def heavy(count: int, middle: float, seed: int = 0) -> Numbers:
    return middle * np.exp(np.random.default_rng(seed).standard_t(3, count) * 0.5)


def test_a_threshold_far_below_the_norm_is_a_ticket_with_the_trend() -> None:
    norms = heavy(600, 1.0) * np.linspace(1, 4, 600)
    verdicts = engine([CLIP]).advance(clipped(norms, most=1e-3))
    first = spoken(verdicts)
    assert set(first) == {(CLIP, "ticket")}
    assert 499 <= first[CLIP, "ticket"] <= 555
    (ticket,) = held(verdicts).values()
    trend = ticket.annotations["pre_clip_trend"]
    assert trend.startswith("median norm before clipping")
    before, after = (float(part.split()[-1]) for part in trend.split(", then "))
    assert after > before
    assert "at max_norm 0.001" in ticket.annotations["cause"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_policy_that_is_always_clipped_is_a_note(seed: int) -> None:
    first = spoken(engine([CLIP]).advance(clipped(heavy(1500, 5.0, seed), most=0.5)))
    assert set(first) == {(CLIP, "note")}


@pytest.mark.parametrize("seed", SEEDS)
def test_clipping_now_and_then_is_nothing(seed: int) -> None:
    assert spoken(engine([CLIP]).advance(clipped(heavy(1500, 0.8, seed)))) == {}


def test_warm_up_is_not_counted() -> None:
    norms = np.where(np.arange(1500) < 700, 200.0, 0.5)
    steps = clipped(norms, lr=lambda n: 1e-3 * min(1.0, (n + 1) / 700))
    assert spoken(engine([CLIP]).advance(steps)) == {}


def test_clipping_before_unscaling_is_told() -> None:
    steps = clipped(heavy(600, 65536.0), loss_scale=65536.0)
    (ticket,) = held(engine([CLIP]).advance(steps)).values()
    assert "scaler.unscale_(optimizer)" in ticket.annotations["first_action"]


def test_a_ticket_becomes_a_note_and_nothing_as_the_norm_falls() -> None:
    norms = np.repeat([100.0, 5.0, 0.5], 700)
    verdicts = engine([CLIP]).advance(clipped(norms))
    assert list(held(verdicts[:700])) == [(CLIP, "ticket")]
    assert list(held(verdicts[:1400])) == [(CLIP, "note")]
    assert held(verdicts) == {}


def test_skipped_steps_and_nan_are_not_counted() -> None:
    steps = clipped([np.nan] * 300) + clipped([1e9] * 300, stepped=False)
    detectors = engine([CLIP])
    assert spoken(detectors.advance(steps)) == {}
    assert detectors.coverage()[0].detail == "0 of 500 steps"


def test_coverage_of_clipping() -> None:
    detectors = engine([CLIP])
    detectors.advance(step(n) for n in range(60))
    (coverage,) = detectors.coverage()
    assert (coverage.state, "clip_grad_norm_" in coverage.detail) == ("blind", True)
    detectors.advance(clipped([1.0] * 700)[60:])
    assert detectors.coverage()[0].state == "armed"


# -- both -----------------------------------------------------------------------------------


def eventful() -> list[Step]:
    """Updates too large, then fine; clipping that lets through ever more; a second attempt."""
    rows = noise(1200)
    steps = moving(lambda n: 0.4 if n < 500 else 1e-3, 1200)
    norms = np.repeat([300.0, 20.0], 600)
    told = clipped(norms)
    steps = [
        replace(s, ranks={0: replace(s.ranks[0], scalars=dict(t.ranks[0].scalars))})
        for s, t in zip(steps, told, strict=True)
    ]
    return [*steps, *(step(n, rows[n], attempt=2) for n in range(100))]


EVENTFUL = eventful()


def said(detectors: RunDetectors, steps: list[Step]) -> list[Any]:
    return [(v.step, v.conditions) for s in steps for v in detectors.advance([s])]


ALL = said(engine([RATIO, CLIP]), EVENTFUL)


def test_annotations_hold_what_everybody_expects() -> None:
    active = [c for _, found in ALL for c in found if c.active]
    assert {(c.alertname, c.severity) for c in active} >= {(RATIO, "ticket"), (CLIP, "ticket")}
    wanted = {"summary", "step", "attempt", "cause", "first_action"}
    for condition in active:
        assert wanted <= set(condition.annotations), condition.alertname


@given(st.integers(0, len(EVENTFUL) - 1))
@settings(max_examples=12, deadline=None)
def test_restored_at_any_step_it_says_the_same(at: int) -> None:
    before, after = engine([RATIO, CLIP]), engine([RATIO, CLIP])
    before.advance(EVENTFUL[:at])
    after.restore(before.state())
    assert said(after, EVENTFUL[at : at + 130]) == ALL[at : at + 130]
    before.advance(EVENTFUL[at : at + 130])
    assert after.coverage() == before.coverage()
