"""What weights and their updates add to an exploding and a vanishing gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gradwarden import wire
from gradwarden_server.detect.steps import Step
from tests.server.detection import (
    BLOCKS,
    LAYOUTS,
    ROWS,
    engine,
    held,
    layout,
    noise,
    spoken,
    step,
)

Numbers = np.ndarray[Any, Any]
NOTHING = np.full(ROWS, np.nan)


def measured(held: Step, **columns: Numbers | float) -> Step:
    """The step with more columns, such as ``weight_l2``."""
    group = held.groups[0]
    more = [np.broadcast_to(np.asarray(c, np.float32), (ROWS,)) for c in columns.values()]
    values = np.column_stack([group.values, *more])
    quantities = (*group.quantities, *columns)
    return replace(held, groups={0: replace(group, values=values, quantities=quantities)})


def in_turn(ratios: Numbers | float, number: int) -> Numbers:
    """Update ratios as they come: a sixteenth of the rows, every fourth step."""
    if number % 4:
        return NOTHING
    whole = np.broadcast_to(np.asarray(ratios, np.float64), (ROWS,))
    mine = np.arange(ROWS) % wire.SLICES == number // 4 % wire.SLICES
    return np.where(mine, whole, np.nan)


def explosion(count: int, ratio: Callable[[int], float], **changed: Any) -> list[Step]:
    """Norms sixty times too large from step 300 on, a flat loss, and these update ratios."""
    rows = noise(count)
    rows[300:] *= 60
    return [
        measured(step(n, r, **changed), update_ratio=in_turn(ratio(n), n))
        for n, r in enumerate(rows)
    ]


def test_an_explosion_that_moves_the_weights_ten_times_farther_pages_without_a_loss() -> None:
    steps = explosion(400, lambda n: 1e-3 if n < 300 else 2e-2, loss=None)
    verdicts = engine(["ExplodingGradient"]).advance(steps)
    assert 319 <= spoken(verdicts)["ExplodingGradient", "page"] <= 330
    (page,) = held(verdicts).values()
    assert "updates of the weights above 10x" in page.annotations["cause"]


def test_an_explosion_that_adam_or_clipping_takes_the_force_of_is_no_page() -> None:
    steps = explosion(400, lambda n: 1e-3 if n < 300 else 5e-3)
    assert ("ExplodingGradient", "page") not in spoken(engine().advance(steps))


def test_steps_that_were_skipped_moved_nothing_and_prove_nothing() -> None:
    steps = explosion(400, lambda n: 1e-3 if n < 300 else 2e-2)
    steps = [
        s if s.step < 300 else replace(s, groups={0: replace(s.groups[0], stepped=False)})
        for s in steps
    ]
    assert ("ExplodingGradient", "page") not in spoken(engine(["ExplodingGradient"]).advance(steps))


def born(gradient: Numbers | float, weight: Callable[[int], Numbers | float]) -> list[Step]:
    return [measured(step(n, gradient), weight_l2=weight(n)) for n in range(30)]


@pytest.mark.parametrize(("times", "first"), [(101.0, 4), (99.0, None)])
def test_from_birth_the_gradient_is_compared_with_the_weights(
    times: float, first: int | None
) -> None:
    verdicts = engine(["ExplodingGradient"]).advance(born(3.0 * times, lambda n: 3.0))
    assert spoken(verdicts).get(("ExplodingGradient", "ticket")) == first


def test_a_head_that_begins_at_zero_has_no_size_to_be_compared_with() -> None:
    gradient = np.r_[np.full(ROWS - 1, 1e-3), 50.0]

    def grown(n: int) -> Numbers:
        return np.r_[np.full(ROWS - 1, 1.0), 1e-3 * n]

    assert spoken(engine(["ExplodingGradient"]).advance(born(gradient, grown))) == {}


@pytest.mark.parametrize(("steps", "told"), [(4, False), (5, True)])
def test_one_layer_alone_must_be_high_more_often_than_the_whole(steps: int, told: bool) -> None:
    """What a change of the data does to one layer of many heals within a few steps."""
    rows = noise(330, sigma=0.1)
    rows[300 : 300 + steps, 4] *= 20
    first = spoken(engine(["ExplodingGradient"]).advance(step(n, r) for n, r in enumerate(rows)))
    assert (("ExplodingGradient", "ticket") in first) == told


@pytest.mark.parametrize(("usual", "told"), [(1e-6, False), (0.1, True)])
def test_a_layer_of_rounding_noise_may_grow_as_it_likes(usual: float, told: bool) -> None:
    """A bias before batch norm has no gradient until the norm is put into eval mode."""
    rows = noise(330, sigma=0.1)
    rows[:, 4] *= usual
    rows[300:, 4] *= 30
    first = spoken(engine(["ExplodingGradient"]).advance(step(n, r) for n, r in enumerate(rows)))
    assert (("ExplodingGradient", "ticket") in first) == told


def fading(per_block: float, top: float) -> Numbers:
    """L2 norms by row, of which each block towards the input has ``per_block`` of the next."""
    rms = [top * per_block ** (BLOCKS - 1 - i) for i in range(BLOCKS)]
    return np.array([*(value for r in rms for value in (r * 64, r * 8)), top * np.sqrt(640)])


def faded(per_block: float, updates: Numbers | float, count: int = 150) -> Iterable[Step]:
    rows = noise(count, sigma=0.2) * fading(per_block, 1e-2)
    return [measured(step(n, r), update_ratio=in_turn(updates, n)) for n, r in enumerate(rows)]


LAGGING = np.array([*np.geomspace(1e-6, 1e-3, ROWS - 1), 1e-3])


def test_a_fade_under_which_the_first_weights_hardly_move_is_a_ticket() -> None:
    verdicts = engine(["VanishingGradient"]).advance(faded(0.4, LAGGING))
    assert spoken(verdicts) == {("VanishingGradient", "ticket"): 99}
    (ticket,) = held(verdicts).values()
    assert "its weights move" in ticket.annotations["cause"]


def test_a_fade_that_adam_makes_up_for_is_none() -> None:
    """The same fall, and a deeper one, while all weights move alike."""
    for per_block in (0.4, 0.25):
        assert spoken(engine(["VanishingGradient"]).advance(faded(per_block, 1e-3))) == {}


def test_a_gradient_that_is_lost_in_the_epsilon_of_adam_is_a_ticket_all_the_same() -> None:
    first = spoken(engine(["VanishingGradient"]).advance(faded(0.1, 1e-3)))
    assert first == {("VanishingGradient", "ticket"): 99}


def test_weights_that_move_unevenly_under_an_even_gradient_are_no_vanishing() -> None:
    assert spoken(engine(["VanishingGradient"]).advance(faded(0.9, LAGGING))) == {}


@pytest.mark.parametrize("at", [60, 99, 310, 325])
def test_put_aside_and_restored_it_says_the_same(at: int) -> None:
    steps = explosion(400, lambda n: 1e-3 if n < 300 else 2e-2, loss=None)
    steps[:150] = faded(0.4, LAGGING)
    whole = engine(["ExplodingGradient", "VanishingGradient"])
    said = [(v.step, v.conditions) for s in steps for v in whole.advance([s])]
    before = engine(["ExplodingGradient", "VanishingGradient"])
    before.advance(steps[:at])
    after = engine(["ExplodingGradient", "VanishingGradient"])
    after.restore(before.state())
    assert [(v.step, v.conditions) for s in steps[at:] for v in after.advance([s])] == said[at:]


def spread(top: float) -> Numbers:
    """Histograms of a thousand values a row, of which this share lies in the fifteenth bin."""
    counts = np.zeros((ROWS, len(wire.HISTOGRAM)))
    counts[:, 7], counts[:, 14] = 1000 * (1 - top), 1000 * top
    return counts


def test_a_nan_is_shown_with_the_histogram_before_it_and_its_batch() -> None:
    steps = [step(n, batch=100.0 + n) for n in range(8)]
    counted = {name: spread(0.25)[:, i] for i, name in enumerate(wire.HISTOGRAM)}
    steps[3] = measured(steps[3], **counted)
    steps.append(step(8, nan=[4], loss=np.nan, batch=108.0))
    verdicts = engine(["NonFiniteGradient", "NonFiniteLoss"]).advance(steps)
    pages = {name: c.annotations for (name, _), c in held(verdicts).items()}
    assert {words["batch"] for words in pages.values()} == {"108"}
    before = pages["NonFiniteGradient"]["values_before"]
    assert before.endswith("0.00% of its values from 2^18 up at step 3")


def test_the_top_bin_is_that_of_the_dtype() -> None:
    half = layout(dtype="float16")
    LAYOUTS[half.hash] = half
    counted = {name: spread(0.25)[:, i] for i, name in enumerate(wire.HISTOGRAM)}
    steps = [measured(step(n, layout=half.hash), **counted) for n in range(3)]
    before = engine(["NonFiniteGradient"])
    before.advance(steps)
    after = engine(["NonFiniteGradient"])
    after.restore(before.state())
    (page,) = held(after.advance([step(3, nan=[4], layout=half.hash)])).values()
    assert "25.00% of its values from 2^14 up at step 2" in page.annotations["values_before"]


def test_where_no_histogram_was_taken_none_is_shown() -> None:
    verdicts = engine(["NonFiniteGradient"]).advance([step(0), step(1, nan=[4])])
    (page,) = held(verdicts).values()
    assert page.annotations["values_before"].endswith("3.4e+38)")
    assert "batch" not in page.annotations
