"""Which steps are captured and what of them: presets, every n, early, demand, throttle."""

from __future__ import annotations

import pytest

from gradwarden import wire
from gradwarden.schedule import PRESETS, Schedule
from gradwarden.throttle import BUDGET_SECONDS, MOST, WARM_UP, WINDOW, Throttle


def captured(schedule: Schedule, steps: int) -> list[int]:
    return [s for s in range(steps) if schedule.plan(s).capture]


def test_every_n_and_all_of_the_first() -> None:
    assert captured(Schedule(), 5) == [0, 1, 2, 3, 4]
    assert captured(Schedule(every=4), 10) == [0, 4, 8]
    assert captured(Schedule(every=4, early=3), 10) == [0, 1, 2, 4, 8]
    late = Schedule(every=10, early=3, first_step=100)
    assert [s for s in range(100, 125) if late.plan(s).capture] == [100, 101, 102, 110, 120]


def test_what_a_slower_rank_captures_the_others_have_captured_too() -> None:
    for every in (1, 3, 10):
        before = set(range(2000))
        for exponent in range(5):
            schedule = Schedule(every=every)
            schedule.exponent = exponent
            now = set(captured(schedule, 2000))
            assert now < before if exponent else now <= before
            before = now


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_differ_in_what_they_take(preset: str) -> None:
    schedule = Schedule(preset)
    plans = [schedule.plan(s) for s in range(40)]
    histograms = [s for s, plan in enumerate(plans) if plan.histogram]
    expected = {"light": [], "standard": [0, 10, 20, 30], "full": list(range(40))}
    assert histograms == expected[preset]
    moved = [(s, plan.moves) for s, plan in enumerate(plans) if plan.moves is not None]
    every = {"light": 100, "standard": 4, "full": 1}[preset]
    assert moved == [(s, s // every % 16) for s in range(0, 40, every) if preset != "light"]


@pytest.mark.parametrize(("every", "exponent"), [(1, 0), (10, 0), (1, 4), (7, 2)])
def test_replicas_compare_every_slice_of_the_weights_in_turn(every: int, exponent: int) -> None:
    schedule = Schedule("light", every=every)
    schedule.exponent = exponent
    steps = captured(schedule, wire.SLICES * (every << exponent))
    assert {schedule.plan(s).compares for s in steps} == {None}
    schedule.replicas = True
    assert [schedule.plan(s).compares for s in steps] == list(range(wire.SLICES))


def test_a_demand_holds_from_the_next_step_planned() -> None:
    schedule = Schedule(every=100)
    assert not schedule.plan(41).capture
    schedule.demand(3)
    plans = {s: schedule.plan(s) for s in range(42, 48)}
    assert [s for s, plan in plans.items() if plan.capture] == [42, 43, 44]
    assert not any(plan.checksums for plan in plans.values())
    schedule.demand(2, checksums=True)
    assert [schedule.plan(s).checksums for s in range(48, 52)] == [True, True, False, False]


def test_the_service_changes_what_it_names_and_nothing_else() -> None:
    schedule = Schedule("standard", every=5)
    schedule.change(preset="full")
    assert (schedule.preset, schedule.every) == ("full", 5)
    schedule.change(preset="bogus", every=0, early=-1)
    assert (schedule.preset, schedule.every) == ("full", 5)
    schedule.change(every=2)
    assert captured(schedule, 7) == [0, 2, 4, 6]


def run(throttle: Throttle, steps: int, step: float, cost: float, idle: float = 0.0) -> None:
    """So many steps whose capture costs ``cost`` and whose look alone costs ``idle`` seconds."""
    for number in range(steps):
        taken = number % (1 << throttle.exponent) == 0
        throttle.step(step, cost if taken else idle, taken)


def test_a_capture_within_the_budget_is_left_alone() -> None:
    throttle = Throttle()
    run(throttle, 1000, step=1.0, cost=0.009)
    assert throttle.exponent == 0
    run(throttle, 1000, step=1e-3, cost=BUDGET_SECONDS)  # one percent would be less
    assert throttle.exponent == 0


def test_a_dear_capture_is_taken_less_often_until_it_fits() -> None:
    throttle = Throttle()
    run(throttle, 2000, step=0.1, cost=0.0075, idle=2e-5)
    assert throttle.exponent == 3
    assert throttle.cost <= throttle.budget == pytest.approx(1e-3)


def test_it_eases_when_captures_become_cheap_again() -> None:
    throttle = Throttle()
    run(throttle, 2000, step=0.1, cost=0.0075, idle=1e-4)
    run(throttle, 4000, step=0.1, cost=0.0002, idle=1e-4)
    assert throttle.exponent == 0


def test_the_first_steps_do_not_count() -> None:
    throttle = Throttle()
    run(throttle, WARM_UP, step=0.1, cost=5.0)
    run(throttle, 4 * WINDOW, step=0.1, cost=1e-4)
    assert throttle.exponent == 0


def test_where_the_look_alone_is_dear_captures_are_not_given_up_in_vain() -> None:
    throttle = Throttle()
    run(throttle, 4000, step=1e-3, cost=1.1e-3, idle=1e-3)
    assert throttle.exponent == 0
    dear = Throttle()
    run(dear, 20000, step=1e-3, cost=1.0, idle=2e-4)
    assert dear.exponent == MOST


def test_it_does_not_swing_at_the_edge() -> None:
    throttle, changes = Throttle(), 0
    for number in range(20_000):
        taken = number % (1 << throttle.exponent) == 0
        wobble = 1.0 + 0.1 * ((number // WINDOW) % 2)
        changes += throttle.step(0.1, 1e-3 * wobble if taken else 1e-5, taken)
    assert changes <= 2
