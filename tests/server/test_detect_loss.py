"""Losses that spike, diverge or stand still, and the many healthy ways in which a loss rises."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden_server.detect.engine import RunDetectors, Verdict
from gradwarden_server.detect.steps import Step
from tests.server.detection import (
    LAYOUTS,
    RULES,
    carrier,
    engine,
    held,
    layout,
    spoken,
    step,
    urgent,
)

SPIKE, DIVERGENCE, PLATEAU = "LossSpike", "LossDivergence", "LossPlateau"
Numbers = np.ndarray[Any, Any]
COUNT, WHEN = 1600, 800
SEEDS = range(2)


def curve(count: int = COUNT, start: float = 2.3, end: float = 0.3, tau: float = 250.0) -> Numbers:
    return end + (start - end) * np.exp(-np.arange(count) / tau)


def noisy(losses: Numbers, seed: int = 0, sigma: float = 0.05) -> Numbers:
    """Batch noise with heavy tails, in proportion, as cross-entropy has it."""
    tails = np.random.default_rng(seed).standard_t(4, len(losses))
    return np.asarray(losses * np.exp(sigma * tails))


def steps_of(
    losses: Iterable[float],
    lr: Numbers | float = 1e-3,
    norms: Numbers | float = 1.0,
    **more: Any,
) -> list[Step]:
    values = list(losses)
    lrs, sizes = np.broadcast_to(lr, (len(values),)), np.broadcast_to(norms, (len(values),))
    return [
        step(n, float(sizes[n]), loss=float(v), lr=float(lrs[n]), **more)
        for n, v in enumerate(values)
    ]


def judged(steps: list[Step], *alerts: str) -> list[Verdict]:
    return engine(alerts or (SPIKE, DIVERGENCE)).advance(steps)


def rates(count: int = COUNT, when: int = WHEN, factor: float = 100.0) -> Numbers:
    """A learning rate that is multiplied once."""
    return np.where(np.arange(count) >= when, factor * 1e-3, 1e-3)


# -- sick -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_learning_rate_a_hundred_times_too_large_is_a_ticket_then_a_page(seed: int) -> None:
    losses = curve()
    losses[WHEN + 1 :] = 2.3
    verdicts = judged(steps_of(noisy(losses, seed), rates()), DIVERGENCE)
    first = spoken(verdicts)
    assert WHEN + 100 <= first[DIVERGENCE, "ticket"] <= WHEN + 130
    assert first[DIVERGENCE, "page"] - first[DIVERGENCE, "ticket"] in range(290, 310)
    (page,) = held(verdicts).values()
    assert WHEN <= int(page.annotations["step"]) <= WHEN + 2
    assert "learning rate from 0.001 to 0.1" in page.annotations["changed_before"]
    assert "checkpoint before step" in page.annotations["first_action"]


def test_a_loss_worse_than_at_the_start_pages_after_fifty_steps() -> None:
    losses = curve()
    losses[WHEN + 1 :] = 20.0
    first = spoken(judged(steps_of(noisy(losses), rates()), DIVERGENCE))
    assert WHEN + 50 <= first[DIVERGENCE, "page"] <= WHEN + 75


def test_a_bad_batch_from_which_weights_do_not_recover_names_its_gradient() -> None:
    losses, norms = curve(), np.ones(COUNT)
    losses[WHEN:] = 2.0
    norms[WHEN] = 50.0
    verdicts = judged(steps_of(noisy(losses), norms=norms), DIVERGENCE)
    assert (DIVERGENCE, "page") in spoken(verdicts)
    (page,) = held(verdicts).values()
    assert f"gradient norm 50x its median at step {WHEN}" in page.annotations["changed_before"]


def test_a_slow_rise_is_a_ticket_and_says_that_nothing_changed() -> None:
    losses = curve()
    losses[WHEN:] += np.minimum(np.arange(COUNT - WHEN) / 300, 1.5)
    verdicts = judged(steps_of(noisy(losses)), DIVERGENCE)
    assert urgent(spoken(verdicts)) == {DIVERGENCE}
    (page,) = held(verdicts).values()
    assert "nothing that is watched changed" in page.annotations["changed_before"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_loss_that_swings_after_a_larger_rate_is_a_ticket_though_it_dips(seed: int) -> None:
    losses = curve(end=0.25)
    high = np.arange(COUNT - WHEN - 1)
    losses[WHEN + 1 :] = 0.9 + 0.5 * np.cos(high / 8)  # down to 0.4 every fifty steps
    losses[WHEN + 180 :] = 0.25  # and back in the end
    first = spoken(judged(steps_of(noisy(losses, seed, 0.08), rates()), DIVERGENCE))
    assert WHEN + 100 <= first[DIVERGENCE, "ticket"] <= WHEN + 150


@pytest.mark.parametrize("growth", [60.0, 120.0])
def test_a_loss_that_grows_with_its_noise_is_a_ticket_whatever_it_grows_to(growth: float) -> None:
    since = np.maximum(0, np.arange(COUNT) - WHEN)
    losses = curve(start=1.0, end=0.35) * np.exp(since / growth)
    swings = noisy(losses, sigma=0.25)
    verdicts = judged(steps_of(swings, rates(factor=1.9)), DIVERGENCE)
    first = min(at for (_, severity), at in spoken(verdicts).items() if severity != "note")
    assert WHEN < first < WHEN + 400


def test_a_loss_that_is_logged_every_tenth_step_is_judged_by_what_was_logged() -> None:
    losses = curve(6000, tau=2000)
    losses[3001:] = 2.3
    lrs = rates(6000, 3000)
    steps = steps_of(noisy(losses), lrs)
    sparse = [s if s.step % 10 == 0 else step(s.step, loss=None, lr=lrs[s.step]) for s in steps]
    first = spoken(judged(sparse, DIVERGENCE))
    assert first[DIVERGENCE, "ticket"] in range(4000, 4400)


def test_one_loss_far_above_its_noise_is_a_note_that_closes() -> None:
    losses = noisy(curve(), sigma=0.02)
    losses[WHEN] *= 5
    verdicts = judged(steps_of(losses), SPIKE)
    (first,) = {v.step: c for v in verdicts for c in v.conditions if c.active}.items()
    assert first[0] == WHEN
    assert first[1].severity == "note"
    assert f"at step {WHEN}, usually 0.3" in first[1].annotations["summary"]
    assert held(verdicts[: WHEN + 20])
    assert held(verdicts) == {}


def test_a_loss_within_its_noise_is_no_spike() -> None:
    rng = np.random.default_rng(1)
    losses = curve() * np.exp(rng.uniform(-0.1, 0.1, COUNT))
    losses[WHEN] *= 1.1
    assert spoken(judged(steps_of(losses), SPIKE)) == {}


def test_divergence_that_heals_closes() -> None:
    losses = curve()
    losses[WHEN : WHEN + 250] = 1.5
    steps = steps_of(noisy(losses), norms=np.where(np.arange(COUNT) == WHEN, 50.0, 1.0))
    verdicts = judged(steps, DIVERGENCE)
    assert spoken(verdicts)[DIVERGENCE, "ticket"] < WHEN + 150
    assert held(verdicts) == {}


def test_where_it_came_back_from_once_it_may_go_again() -> None:
    losses, norms = curve(2400), np.ones(2400)
    for at in (600, 1500):
        losses[at : at + 250] = 1.5
        norms[at] = 50.0
    verdicts = judged(steps_of(noisy(losses), norms=norms), DIVERGENCE)
    sick = {v.step for v in verdicts for c in v.conditions if c.active}
    assert min(sick) < 750
    assert max(sick) < 1500


# -- healthy --------------------------------------------------------------------------------


def warm_restarts(seed: int) -> list[Step]:
    at = np.arange(COUNT)
    lr = 1e-3 * (0.5 + 0.5 * np.cos(np.pi * (at % 400) / 400)) + 1e-6
    return steps_of(noisy(curve(tau=400) + 0.5 * lr / 1e-3, seed, 0.02), lr)


def other_data(seed: int) -> list[Step]:
    """Harder from one step to the next; half the difference is learned, slowly."""
    losses = curve()
    losses[WHEN:] += 0.6 + 0.6 * np.exp(-np.arange(COUNT - WHEN) / 1500)
    return steps_of(noisy(losses, seed))


def longer_sequences(seed: int) -> list[Step]:
    """A loss that is summed over twice the length."""
    losses = curve()
    losses[WHEN:] *= 12
    return steps_of(noisy(losses, seed))


def smaller_batches(seed: int) -> list[Step]:
    losses = noisy(curve(), seed, 0.03)
    losses[WHEN:] = noisy(curve(), seed + 9, 0.12)[WHEN:]
    return steps_of(losses)


def far_smaller_batches(seed: int) -> list[Step]:
    """From some step on the loss is far noisier, and as much higher as its noise keeps it."""
    losses = curve(start=2.3, end=0.02)
    losses[WHEN:] += 0.4 * (1 - np.exp(-np.arange(COUNT - WHEN) / 30))
    wild = np.random.default_rng(seed).lognormal(-0.5, 1.0, COUNT - WHEN)
    losses = noisy(losses, seed, 0.3)
    losses[WHEN:] *= wild
    return steps_of(losses)


def spikes_that_heal(seed: int) -> list[Step]:
    losses = curve()
    for at in (500, 760, 1100):
        losses[at : at + 40] += 4 * np.exp(-np.arange(40) / 15)
    losses[900] = 1e6
    norms = np.ones(COUNT)
    norms[[499, 759, 900, 1099]] = 80.0
    return steps_of(noisy(losses, seed), norms=norms)


def unfreezing(seed: int) -> list[Step]:
    """Other parameters join at two steps; the loss rises for a while and falls lower."""
    more = layout(blocks=8, dtype="float64")
    LAYOUTS[more.hash] = more
    losses = curve(end=0.6)
    losses[WHEN:] += 0.5 * np.exp(-np.arange(COUNT - WHEN) / 60)
    steps = steps_of(noisy(losses, seed), lr=np.where(np.arange(COUNT) < WHEN, 1e-3, 3e-3))
    return [s if s.step < WHEN else _relaid(s, more.hash) for s in steps]


def _relaid(made: Step, key: str) -> Step:
    return replace(made, groups={0: replace(made.groups[0], layout=key)})


def game(seed: int) -> list[Step]:
    """A discriminator's loss: it wins at first, then the generator catches up."""
    at = np.arange(COUNT)
    losses = 1.38 - 1.1 * np.exp(-(((at - 300) / 200) ** 2)) + 0.1 * np.sin(at / 40)
    steps = steps_of(noisy(losses, seed))
    told = {"kind": "manner", "autocast": "", "alternating": True}
    return [carrier(2, told, 2.5), *steps]


def policy(seed: int) -> list[Step]:
    """A surrogate of either sign, then a value loss that grows with the rewards."""
    at = np.arange(COUNT)
    rng = np.random.default_rng(seed)
    return steps_of(rng.standard_t(3, COUNT) * 0.05 + 0.3 * at / COUNT - 0.1)


def log_likelihood(seed: int) -> list[Step]:
    at = np.arange(COUNT)
    losses = 2 - 4 * (1 - np.exp(-at / 200)) + np.where(at > WHEN, 1.0 * (at - WHEN) / 300, 0)
    return steps_of(losses + 0.05 * np.random.default_rng(seed).standard_t(4, COUNT))


def lognormal(seed: int) -> list[Step]:
    return steps_of(curve() * np.exp(np.random.default_rng(seed).normal(0, 1, COUNT)))


def slow_waves(seed: int) -> list[Step]:
    """Shards of differing difficulty, some dozens of steps each."""
    rng = np.random.default_rng(seed)
    shards = np.repeat(rng.normal(0, 0.08, COUNT // 40), 40)
    return steps_of(noisy(curve(end=1.0) + shards, seed, 0.03))


def small_gain(seed: int) -> list[Step]:
    """Fine-tuning: little is gained over the noise."""
    return steps_of(noisy(curve(start=1.3, end=1.1), seed, 0.15))


def memorised(seed: int) -> list[Step]:
    losses = noisy(curve(start=2.3, end=1e-5, tau=60), seed, 0.3)
    losses[np.random.default_rng(seed).integers(900, COUNT, 20)] = 0.01
    return steps_of(losses)


def warm_up(seed: int) -> list[Step]:
    lr = 1e-3 * np.minimum(1.0, (np.arange(COUNT) + 1) / 600)
    return steps_of(noisy(curve(start=11, end=3, tau=400), seed, 0.02), lr)


HEALTHY = (
    warm_restarts, other_data, longer_sequences, smaller_batches, spikes_that_heal, unfreezing,
    game, policy, log_likelihood, lognormal, slow_waves, small_gain, memorised, warm_up,
    far_smaller_batches,
)  # fmt: skip


@pytest.mark.parametrize("run", HEALTHY, ids=lambda run: run.__name__)
def test_a_healthy_loss_reaches_nobody(run: Any) -> None:
    for seed in SEEDS:
        assert urgent(spoken(judged(run(seed)))) == set(), seed


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.3, 0.8])
def test_noise_with_heavy_tails_reaches_nobody(sigma: float) -> None:
    for seed in SEEDS:
        losses = noisy(curve(1500), 10 + seed, sigma)
        assert urgent(spoken(judged(steps_of(losses)))) == set(), seed


def test_other_data_is_a_note_that_says_so() -> None:
    verdicts = judged(other_data(0), DIVERGENCE)
    (note,) = [c for v in verdicts for c in v.conditions if c.active]
    assert note.severity == "note"
    assert abs(int(note.annotations["step"]) - WHEN) <= 1
    assert "monitor.mark()" in note.annotations["first_action"]


def test_what_changes_beside_a_mark_is_judged_anew() -> None:
    losses = curve()
    losses[WHEN:] += np.minimum(np.arange(COUNT - WHEN) / 20, 3)
    steps = steps_of(noisy(losses))
    mark = {"kind": "mark", "name": "data", "value": "v2"}
    assert urgent(spoken(judged(steps, DIVERGENCE))) == {DIVERGENCE}
    marked = [*steps[: WHEN + 60], carrier(WHEN + 59, mark, WHEN + 59.5), *steps[WHEN + 60 :]]
    assert spoken(judged(marked, DIVERGENCE)) == {}


def test_a_new_attempt_has_its_own_best() -> None:
    first = steps_of(noisy(curve(800)))
    again = [
        step(n, loss=float(v), attempt=2) for n, v in enumerate(noisy(curve(800), 5), start=400)
    ]
    assert spoken(judged([*first, *again], DIVERGENCE)) == {}


@pytest.mark.parametrize("name", ["reward", "train/entropy", "loss_d", "policy_loss", "gen/loss"])
def test_a_loss_beside_names_of_games_raises_notes_only(name: str) -> None:
    losses = curve()
    losses[WHEN + 1 :] = 2.3
    detectors = engine([DIVERGENCE])
    verdicts = detectors.advance(steps_of(noisy(losses), rates(), **{name: 1.0}))
    assert set(spoken(verdicts)) == {(DIVERGENCE, "note")}
    (note,) = held(verdicts).values()
    assert name in note.annotations["note"]
    (coverage,) = detectors.coverage()
    assert (coverage.state, name in coverage.detail) == ("blind", True)


@pytest.mark.parametrize("name", ["val_loss", "cross_entropy", "gen/length", "kl"])
def test_other_names_say_nothing_of_games(name: str) -> None:
    losses = curve()
    losses[WHEN + 1 :] = 2.3
    first = spoken(judged(steps_of(noisy(losses), rates(), **{name: 1.0}), DIVERGENCE))
    assert (DIVERGENCE, "page") in first


# -- plateau --------------------------------------------------------------------------------


def plateau(window: int) -> RunDetectors:
    (rule,) = (r for r in RULES.detectors if r.alert == PLATEAU)
    own = replace(rule, params={**rule.params, "window_steps": window})
    return RunDetectors(LAYOUTS.get, [own], RULES.baseline)


def test_a_loss_that_stands_still_over_the_window_is_a_ticket_and_closes_when_it_falls() -> None:
    losses = np.concatenate([curve(600, tau=100), np.full(900, 0.3), curve(900, 0.3, 0.05, 200)])
    detectors = plateau(500)
    verdicts = detectors.advance(steps_of(noisy(losses, sigma=0.01)))
    first = spoken(verdicts)
    assert list(first) == [(PLATEAU, "ticket")]
    assert 900 <= first[PLATEAU, "ticket"] <= 1500
    assert held(verdicts[:1500])
    assert held(verdicts) == {}


def test_slow_progress_is_no_plateau() -> None:
    for seed in SEEDS:
        losses = noisy(3 - 0.3 * np.arange(3000) / 1000, seed, 0.02)
        assert spoken(plateau(1000).advance(steps_of(losses))) == {}


def test_no_plateau_without_a_window_and_the_coverage_says_how_to_set_one() -> None:
    detectors = engine([PLATEAU])
    assert spoken(detectors.advance(steps_of(np.ones(3000)))) == {}
    (coverage,) = detectors.coverage()
    assert coverage.state == "blind"
    assert "window_steps in alert_rules/loss_curves.yaml" in coverage.detail


# -- all ------------------------------------------------------------------------------------


def test_coverage_counts_and_names_the_line_that_arms() -> None:
    detectors = engine([SPIKE, DIVERGENCE])
    detectors.advance(steps_of(curve(20)))
    assert {(c.state, c.detail) for c in detectors.coverage()} == {("waiting", "20 of 50 steps")}
    detectors.advance(steps_of(curve(80))[20:])
    assert {c.state for c in detectors.coverage()} == {"armed"}
    mute = engine([SPIKE, DIVERGENCE])
    mute.advance(step(n, loss=None) for n in range(20))
    assert {c.state for c in mute.coverage()} == {"blind"}
    assert all("monitor.log(loss=loss)" in c.detail for c in mute.coverage())


def eventful() -> list[Step]:
    """A spike, a divergence that heals, other data, a mark, and a second attempt."""
    losses, norms = curve(1500), np.ones(1500)
    losses[300] = 9.0
    losses[500:700] = 1.9
    norms[500] = 60.0
    losses[1000:] += 1.5
    steps = steps_of(noisy(losses), norms=norms)
    steps.insert(400, carrier(399, {"kind": "mark", "name": "x", "value": 1}, 399.5))
    return [*steps, *(step(n, loss=float(v), attempt=2) for n, v in enumerate(curve(100), 1400))]


def restorable() -> RunDetectors:
    wanted = (SPIKE, DIVERGENCE, PLATEAU)
    rules = [r for r in RULES.detectors if r.alert in wanted]
    own = [
        replace(r, params={**r.params, "window_steps": 200}) if r.alert == PLATEAU else r
        for r in rules
    ]
    return RunDetectors(LAYOUTS.get, own, RULES.baseline)


EVENTFUL = eventful()


def said(detectors: RunDetectors, steps: list[Step]) -> list[Any]:
    return [(v.step, v.conditions) for s in steps for v in detectors.advance([s])]


ALL = said(restorable(), EVENTFUL)


def test_the_run_is_eventful() -> None:
    active = {(c.alertname, c.severity) for _, found in ALL for c in found if c.active}
    assert {(SPIKE, "note"), (DIVERGENCE, "ticket"), (PLATEAU, "ticket")} <= active


@given(st.integers(0, len(EVENTFUL) - 1))
@settings(max_examples=12, deadline=None)
def test_restored_at_any_step_it_says_the_same(at: int) -> None:
    before, after = restorable(), restorable()
    before.advance(EVENTFUL[:at])
    after.restore(before.state())
    assert said(after, EVENTFUL[at : at + 250]) == ALL[at : at + 250]
    before.advance(EVENTFUL[at : at + 250])
    assert after.coverage() == before.coverage()


def test_annotations_hold_what_everybody_expects() -> None:
    wanted = {"summary", "step", "attempt", "cause", "first_action"}
    active = [c for _, found in ALL for c in found if c.active]
    assert active
    for condition in active:
        assert wanted <= set(condition.annotations), condition.alertname
