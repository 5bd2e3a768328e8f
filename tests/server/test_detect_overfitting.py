"""Validation losses that rise while the training loss falls, and those that only seem to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden_server.detect.engine import RunDetectors, Verdict
from gradwarden_server.detect.overfitting import is_validation_loss
from gradwarden_server.detect.steps import Step
from tests.server.detection import carrier, engine, held, spoken, step

ALERT = "Overfitting"
Numbers = np.ndarray[Any, Any]
COUNT, EVERY = 1500, 25
BEST = 500
SEEDS = range(4)


def falling(count: int = COUNT, end: float = 0.05, tau: float = 400.0) -> Numbers:
    return end + (2.3 - end) * np.exp(-np.arange(count) / tau)


def rising_after(best: int = BEST, count: int = COUNT, slope: float = 0.4) -> Numbers:
    """A validation loss that falls to its best and rises again."""
    at = np.arange(count)
    lowest = 0.8 + 1.5 * np.exp(-best / 200)
    falls = 0.8 + 1.5 * np.exp(-at / 200)
    return np.where(at < best, falls, lowest + slope * (at - best) / 1000)


def run(
    validation: Numbers,
    train: Numbers | None = None,
    name: str = "val_loss",
    noise: float = 0.0,
    seed: int = 0,
    attempt: int = 1,
    first: int = 0,
    **more: Any,
) -> list[Step]:
    rng = np.random.default_rng(seed)
    losses = falling(len(validation)) if train is None else train
    steps = []
    for n, loss in enumerate(losses):
        own = dict(more)
        if n % EVERY == 0:
            own[name] = float(validation[n] * np.exp(noise * rng.standard_t(4)))
        noisy = float(loss * np.exp(0.1 * rng.standard_t(4)))
        steps.append(step(first + n, loss=noisy, attempt=attempt, **own))
    return steps


def judged(steps: list[Step]) -> list[Verdict]:
    return engine([ALERT]).advance(steps)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_validation_loss_that_rises_is_a_ticket_with_the_best_step(seed: int) -> None:
    verdicts = judged(run(rising_after(), noise=0.005, seed=seed))
    first = spoken(verdicts)
    assert list(first) == [(ALERT, "ticket")]
    assert BEST + 5 * EVERY <= first[ALERT, "ticket"] <= BEST + 16 * EVERY
    (ticket,) = held(verdicts).values()
    assert abs(int(ticket.annotations["best_step"]) - BEST) <= 5 * EVERY
    assert ticket.annotations["set"] == "val_loss"
    assert f"step {ticket.annotations['best_step']}" in ticket.annotations["first_action"]


@pytest.mark.parametrize(("epoch", "severity"), [(2.0, "note"), (3.0, "ticket")])
def test_before_the_third_epoch_it_is_a_note(epoch: float, severity: str) -> None:
    assert set(spoken(judged(run(rising_after(), epoch=epoch)))) == {(ALERT, severity)}


@pytest.mark.parametrize(("loaders", "severity"), [(2, "note"), (3, "ticket")])
def test_epochs_are_counted_by_loaders_that_begin_anew(loaders: int, severity: str) -> None:
    steps = run(rising_after())
    for n in range(loaders):
        told = dict(steps[100 * n + 1].ranks[0].scalars) | {"data_start": 1.0}
        steps[100 * n + 1] = step(100 * n + 1, **told)  # type: ignore[arg-type]
    assert set(spoken(judged(steps))) == {(ALERT, severity)}


def test_an_evaluation_near_the_best_closes_it() -> None:
    losses = rising_after()
    losses[1200:] = 0.7
    verdicts = judged(run(losses))
    assert held(verdicts[:1200])
    assert held(verdicts) == {}


def test_one_of_several_sets_is_named() -> None:
    steps = run(rising_after(), name="code/val_loss")
    steps = [
        step(
            s.step,
            **{**s.ranks[0].scalars, "text/val_loss": 1.0 / (1 + s.step)},  # type: ignore[arg-type]
        )
        if "code/val_loss" in s.ranks[0].scalars
        else s
        for s in steps
    ]
    (ticket,) = held(judged(steps)).values()
    assert ticket.annotations["set"] == "code/val_loss"


def still(seed: int) -> list[Step]:
    """Both stand still: converged."""
    return run(np.maximum(falling(end=0.5, tau=100), 0.6), falling(end=0.5, tau=100), seed=seed)


def good(seed: int) -> list[Step]:
    return run(falling(end=0.4) + 0.1, noise=0.05, seed=seed)


def noisy_set(seed: int) -> list[Step]:
    """A small set at a large learning rate: evaluations differ by a tenth, and it stays level."""
    flat = np.maximum(falling(tau=150), 0.6)
    return run(flat, noise=0.1, seed=seed)


def rises_a_little(seed: int) -> list[Step]:
    return run(rising_after(slope=0.01), noise=0.003, seed=seed)


def both_rise(seed: int) -> list[Step]:
    """Harder data, or divergence: not what this alert is for."""
    train = falling()
    train[BEST:] = train[BEST] + 0.4 * np.arange(COUNT - BEST) / 1000
    return run(rising_after(), train, seed=seed)


def one_bump(seed: int) -> list[Step]:
    losses = falling(end=0.5)
    losses[700:800] *= 1.5
    return run(losses, seed=seed)


HEALTHY = (still, good, noisy_set, rises_a_little, both_rise, one_bump)


@pytest.mark.parametrize("made", HEALTHY, ids=lambda made: made.__name__)
def test_healthy_evaluations_raise_nothing(made: Callable[[int], list[Step]]) -> None:
    for seed in SEEDS:
        assert spoken(judged(made(seed))) == {}, seed


def test_a_mark_begins_anew() -> None:
    losses = falling(end=0.5)
    losses[BEST:] += 1.0
    losses[BEST:] -= 0.2 * np.arange(COUNT - BEST) / COUNT
    steps = run(losses)
    assert spoken(judged(steps)) != {}
    mark = {"kind": "mark", "name": "validation set", "value": 2}
    steps.insert(BEST, carrier(BEST - 1, mark, BEST - 0.5))
    assert spoken(judged(steps)) == {}


@pytest.mark.parametrize(
    "name",
    [
        "val_loss", "validation_loss", "eval_loss", "val/loss", "loss/val", "c4/val_loss",
        "eval/perplexity", "valid-nll", "Validation Loss", "val.loss.total",
    ],
)  # fmt: skip
def test_names_of_validation_losses(name: str) -> None:
    assert is_validation_loss(name)
    assert set(spoken(judged(run(rising_after(), name=name)))) == {(ALERT, "ticket")}


@pytest.mark.parametrize(
    "name", ["val_accuracy", "loss", "value_loss", "train_loss", "eval_seconds", "interval_loss"]
)
def test_other_names_are_none(name: str) -> None:
    assert not is_validation_loss(name)


def test_coverage_names_the_line_that_arms() -> None:
    def coverage(steps: list[Step]) -> tuple[str, str]:
        detectors = engine([ALERT])
        detectors.advance(steps)
        (found,) = detectors.coverage()
        return found.state, found.detail

    state, detail = coverage([step(n) for n in range(20)])
    assert (state, "monitor.log(val_loss=loss)" in detail) == ("blind", True)
    state, detail = coverage([step(n, loss=None, val_loss=1.0) for n in range(20)])
    assert (state, "monitor.log(loss=loss)" in detail) == ("blind", True)
    assert coverage(run(falling()[:100])) == ("waiting", "4 of 10 evaluations")
    assert coverage(run(falling()))[0] == "armed"


EVENTFUL = [
    *run(rising_after(), noise=0.01, epoch=7.0),
    *run(falling(200), attempt=2, first=1400),
]


def said(detectors: RunDetectors, steps: list[Step]) -> list[Any]:
    return [(v.step, v.conditions) for s in steps for v in detectors.advance([s])]


ALL = said(engine([ALERT]), EVENTFUL)


@given(st.integers(0, len(EVENTFUL) - 1))
@settings(max_examples=12, deadline=None)
def test_restored_at_any_step_it_says_the_same(at: int) -> None:
    assert any(c.active for _, found in ALL for c in found)
    before, after = engine([ALERT]), engine([ALERT])
    before.advance(EVENTFUL[:at])
    after.restore(before.state())
    assert said(after, EVENTFUL[at : at + 200]) == ALL[at : at + 200]
    before.advance(EVENTFUL[at : at + 200])
    assert after.coverage() == before.coverage()
