"""Norms that settle at another level, and all the courses that norms take by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.server.detection import ROWS, carrier, engine, held, noise, spoken, step

SHIFT = ["GradientShift"]
Numbers = np.ndarray[Any, Any]
AT = 500


def notes(rows: Numbers, lr: Callable[[int], float] = lambda n: 1e-3) -> list[int]:
    """The steps at which a note began."""
    verdicts = engine(SHIFT).advance(step(n, row, lr=lr(n)) for n, row in enumerate(rows))
    found = [v.step for v in verdicts for c in v.conditions if c.active]
    return [n for n, before in zip(found, [-2, *found], strict=False) if n != before + 1]


def shifted(factor: float, count: int = 700, columns: Any = slice(None)) -> Numbers:
    rows = noise(count, seed=2)
    rows[AT:, columns] *= factor
    return rows


@pytest.mark.parametrize("factor", [2.5, 0.4])
def test_another_level_is_a_note_within_fifty_steps_that_tells_when_it_began(
    factor: float,
) -> None:
    verdicts = engine(SHIFT).advance(step(n, r) for n, r in enumerate(shifted(factor, 560)))
    first = spoken(verdicts)["GradientShift", "note"]
    assert AT < first < AT + 50
    (note,) = held(verdicts).values()
    assert abs(int(note.annotations["step"]) - AT) <= 12
    assert ("rose" if factor > 1 else "fell") in note.annotations["summary"]
    assert note.annotations["mark"] == "no mark so far"


def test_it_is_told_once_and_closes() -> None:
    rows = shifted(3.0, 1000)
    verdicts = engine(SHIFT).advance(step(n, r) for n, r in enumerate(rows))
    active = [c.active for v in verdicts for c in v.conditions]
    assert active == [False, True, False]


@pytest.mark.parametrize("factor", [1.0, 1.2])
def test_a_little_more_or_less_is_none(factor: float) -> None:
    assert notes(shifted(factor, 1500)) == []


def test_a_third_of_the_layers_is_named_from_the_loss_side_on() -> None:
    rows = noise(600, seed=2, sigma=0.1)
    rows[:, ROWS - 1] *= 100  # the head carries the whole norm
    rows[AT:, :6] *= 3.0
    verdicts = engine(SHIFT).advance(step(n, r) for n, r in enumerate(rows))
    (note,) = held(verdicts).values()
    assert note.annotations["layers"] == "blocks.2.fc, blocks.1.fc, blocks.0.fc"
    assert note.annotations["layer"] == "blocks.2.fc"


def test_layers_that_move_against_each_other_are_a_shift_though_the_norm_stands_still() -> None:
    rows = noise(580, seed=2, sigma=0.3)
    rows[:, ROWS - 1] *= 100  # the head carries the whole norm
    rows[AT:, :4] *= 6.0
    rows[AT:, 4:8] /= 6.0
    verdicts = engine(SHIFT).advance(step(n, r) for n, r in enumerate(rows))
    assert AT < spoken(verdicts)["GradientShift", "note"] < AT + 50
    (note,) = held(verdicts).values()
    assert abs(int(note.annotations["step"]) - AT) <= 12
    assert "some layers the other way" in note.annotations["summary"]


def test_one_layer_alone_is_no_shift_of_the_run() -> None:
    rows = noise(700, seed=2, sigma=0.1)
    rows[:, ROWS - 1] *= 100
    rows[AT:, :2] *= 3.0
    assert notes(rows) == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0])
def test_heavy_tails_are_none(sigma: float, seed: int) -> None:
    assert notes(noise(1500, seed=seed, sigma=sigma)) == []


@pytest.mark.parametrize("span", [150.0, 400.0])
def test_norms_that_fall_as_training_goes_on_are_none(span: float) -> None:
    rows = noise(1500, seed=3)
    course = 10 * np.exp(-np.arange(1500) / span) + 0.5
    assert notes(rows * course[:, None]) == []


def test_spikes_that_heal_are_none() -> None:
    rows = noise(1000, seed=4)
    rows[[400, 401, 600, 800]] *= 100
    assert notes(rows) == []


def test_what_a_change_of_the_learning_rate_does_is_its_own_doing() -> None:
    rows = shifted(2.5)
    assert notes(rows, lambda n: 1e-3 if n < AT else 6e-4) == []
    assert notes(rows, lambda n: 1e-3 * (1 - n / 2000)), "a steady decay explains no jump"


def test_a_mark_says_that_it_was_meant() -> None:
    steps = [step(n, r) for n, r in enumerate(shifted(2.5))]
    mark = {"kind": "mark", "name": "long sequences"}
    meant = [*steps[:AT], carrier(AT - 1, mark, AT - 0.5), *steps[AT:]]
    assert spoken(engine(SHIFT).advance(meant)) == {}
    early = [*steps[:200], carrier(199, mark, 199.5), *steps[200:560]]
    (note,) = held(engine(SHIFT).advance(early)).values()
    assert note.annotations["mark"] == "mark long sequences at step 199"


def test_every_fourth_step_of_a_throttled_run_is_enough() -> None:
    rows = shifted(2.5, 900)
    verdicts = engine(SHIFT).advance(step(4 * n, r) for n, r in enumerate(rows))
    assert spoken(verdicts)["GradientShift", "note"] > 4 * AT


@pytest.mark.parametrize("at", [AT - 3, AT + 9, AT + 60])
def test_put_aside_and_restored_it_says_the_same(at: int) -> None:
    steps = [step(n, r) for n, r in enumerate(shifted(2.5))]
    whole, before, after = engine(SHIFT), engine(SHIFT), engine(SHIFT)
    said = [(v.step, v.conditions) for s in steps for v in whole.advance([s])]
    before.advance(steps[:at])
    after.restore(before.state())
    assert [(v.step, v.conditions) for s in steps[at:] for v in after.advance([s])] == said[at:]
    assert after.coverage() == whole.coverage()
