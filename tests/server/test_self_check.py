"""What watches the watcher: its norm against clipping's, its cost, and who speaks for a cell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden_server.detect.speakers import Speakers
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
from tests.server.fleet import Fleet

CHECK, COST = "NormSelfCheckFailed", "OverheadBudgetExceeded"
TRUE_NORM = float(np.sqrt(ROWS))


def clipped(count: int, factor: Any = 1.0, **more: Any) -> list[Step]:
    factors = np.broadcast_to(factor, (count,))
    return [step(n, 1.0, clip_norm=TRUE_NORM * f, **more) for n, f in enumerate(factors)]


def test_both_norms_agree_on_a_healthy_run() -> None:
    rows = noise(200)
    steps = [step(n, r, clip_norm=float(np.sqrt(np.sum(r * r)))) for n, r in enumerate(rows)]
    detectors = engine([CHECK])
    assert spoken(detectors.advance(steps)) == {}
    assert detectors.coverage()[0].state == "armed"


@pytest.mark.parametrize("factor", [0.98, 1.02, 2.0, 0.5])
def test_the_fifth_difference_is_a_ticket_with_both_values(factor: float) -> None:
    verdicts = engine([CHECK]).advance(clipped(60, factor))
    assert spoken(verdicts) == {(CHECK, "ticket"): 4}
    (ticket,) = held(verdicts).values()
    assert float(ticket.annotations["norm_of_layers"]) == pytest.approx(TRUE_NORM)
    assert float(ticket.annotations["norm_of_clipping"]) == pytest.approx(TRUE_NORM * factor)


def test_small_or_rare_differences_are_none() -> None:
    factors = np.ones(200)
    factors[::6] = 3.0  # four of any twenty
    assert spoken(engine([CHECK]).advance(clipped(200, factors))) == {}
    assert spoken(engine([CHECK]).advance(clipped(60, 1.009))) == {}


def test_half_precision_may_differ_by_more() -> None:
    half = layout(dtype="torch.bfloat16")
    LAYOUTS[half.hash] = half
    steps = clipped(60, 1.025, layout=half.hash)
    assert spoken(engine([CHECK]).advance(steps)) == {}
    steps = clipped(60, 1.04, layout=half.hash)
    assert spoken(engine([CHECK]).advance(steps)) == {(CHECK, "ticket"): 4}


def test_clipping_of_scaled_gradients_is_told_from_a_fault() -> None:
    verdicts = engine([CHECK]).advance(clipped(20, 65536.0, loss_scale=65536.0))
    (ticket,) = held(verdicts).values()
    assert "scaler.unscale_(optimizer)" in ticket.annotations["first_action"]


@pytest.mark.parametrize(
    "steps",
    [
        [step(n) for n in range(60)],
        clipped(60, 2.0, capture="post_clip"),
        clipped(60, np.nan),
        [step(n, 0.0, clip_norm=1e-9) for n in range(60)],
        [step(n, nan=[3], clip_norm=1.0, stepped=False) for n in range(60)],
    ],
    ids=["no norm", "captured after", "norm is NaN", "no gradient", "bad gradient"],
)
def test_what_cannot_be_checked_is_not(steps: list[Step]) -> None:
    detectors = engine([CHECK])
    assert spoken(detectors.advance(steps)) == {}
    assert detectors.coverage()[0].state == "blind"
    assert "clip_grad_norm_" in detectors.coverage()[0].detail


def test_a_self_check_that_holds_again_closes() -> None:
    factors = np.ones(80)
    factors[:10] = 2.0
    verdicts = engine([CHECK]).advance(clipped(80, factors))
    assert held(verdicts[:29])
    assert held(verdicts) == {}


def throttle(stride: Any, **more: Any) -> dict[str, Any]:
    event = {"kind": "throttle", "stride": stride}
    return event | {"overhead_seconds": 0.0012, "budget_seconds": 0.0003} | more


def test_a_throttle_is_a_note_that_names_the_new_schedule() -> None:
    detectors = engine([COST])
    verdicts = detectors.advance([step(0), carrier(1, throttle(4), 1.5, rank=2), step(2)])
    assert spoken(verdicts) == {(COST, "note"): 1}
    (note,) = held(verdicts).values()
    words = note.annotations
    assert words["schedule"] == "every 4 steps"
    assert "every 4 steps, 1200 us a step, of 300 us" in words["summary"]
    assert words["rank"] == "2"


def test_the_note_closes_when_the_schedule_is_back_or_a_new_attempt_begins() -> None:
    back = engine([COST]).advance([carrier(1, throttle(2), 1), carrier(9, throttle(1), 9)])
    assert held(back) == {}
    again = engine([COST]).advance([carrier(1, throttle(2), 1), step(5, attempt=2)])
    assert held(again) == {}


def test_a_schedule_of_its_own_is_no_throttle() -> None:
    detectors = engine([COST])
    verdicts = detectors.advance([carrier(1, throttle(40, every=10), 1)])
    assert held(verdicts)
    assert held(verdicts + detectors.advance([carrier(9, throttle(10, every=10), 9)])) == {}


@pytest.mark.parametrize("stride", [None, "4", True, float("nan"), float("inf"), [4]])
def test_a_throttle_event_of_nonsense_is_ignored(stride: Any) -> None:
    assert spoken(engine([COST]).advance([carrier(1, throttle(stride), 1)])) == {}


def test_a_throttle_without_figures_names_the_schedule_all_the_same() -> None:
    bare = {"kind": "throttle", "stride": 2}
    (note,) = held(engine([COST]).advance([carrier(1, bare, 1)])).values()
    assert note.annotations["summary"] == "gradwarden now captures every 2 steps"


MUTE_FROM, BACK_AT = 20, 60


def mute(fleet: Fleet, rank: int, first: int, end: int, count: int = 100) -> list[Step]:
    """A step a second; ``rank`` sends no matrix from ``first`` until before ``end``."""
    steps = []
    for made in fleet.steps(range(count)):
        ranks = {
            r: replace(said, spoke=said.spoke and not (r == rank and first <= made.step < end))
            for r, said in made.ranks.items()
        }
        steps.append(replace(made, ranks=ranks))
    return steps


def asked(steps: Iterable[Step]) -> list[tuple[int, int, bool]]:
    speakers = Speakers()
    return [
        (s.step, r.rank, r.args["on"])
        for s in steps
        for r in speakers.observe(s)
        if r.kind == "speak"
    ]


def test_the_next_rank_speaks_after_ten_seconds_and_stops_when_the_first_is_back() -> None:
    steps = mute(Fleet(), 0, MUTE_FROM, BACK_AT)
    # The stand-in does as it was asked.
    heard = [
        replace(
            s,
            ranks={r: replace(said, spoke=said.spoke or (r == 1 and 31 <= s.step < 70))
                   for r, said in s.ranks.items()},
        )
        for s in steps
    ]  # fmt: skip
    assert asked(heard) == [(30, 1, True), (60, 1, False)]


def test_a_stand_in_that_is_mute_too_is_followed_by_the_next() -> None:
    steps = mute(Fleet(ranks=3), 0, MUTE_FROM, BACK_AT)
    assert asked(steps) == [(30, 1, True), (40, 2, True), (60, 1, False), (60, 2, False)]


def test_a_dead_speaker_is_followed_and_every_shard_has_its_own() -> None:
    fleet = Fleet(ranks=4, shards=2, reported=lambda rank, step: rank != 1 or step < MUTE_FROM)
    assert asked(fleet.steps(range(100))) == [(30, 3, True)]


@pytest.mark.parametrize(
    "fleet",
    [
        Fleet(),
        Fleet(ranks=1, reported=lambda rank, step: step < 20 or step > 80),
        Fleet(ranks=4, shards=4, reported=lambda rank, step: rank != 1 or step < 20),
        Fleet(captured=lambda rank, step: step < 20),
    ],
    ids=["all speak", "one rank alone", "a shard held once", "nothing captured"],
)
def test_nobody_is_asked_in_vain(fleet: Fleet) -> None:
    assert asked(fleet.steps(range(100))) == []


def test_captures_far_apart_are_no_silence() -> None:
    fleet = Fleet(captured=lambda rank, step: step % 25 == 0)
    assert asked(fleet.steps(range(100))) == []


@given(st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_restored_at_any_step_the_same_is_asked(at: int) -> None:
    steps = mute(Fleet(ranks=3), 0, MUTE_FROM, BACK_AT)
    one, other = Speakers(), Speakers()
    for made in steps[:at]:
        one.observe(made)
    other.restore(one.state())
    for made in steps[at:]:
        assert one.observe(made) == other.observe(made)
