"""Mistakes of the training loop that the SDK tells in events, and stale gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition
from tests.server.detection import carrier, engine, held, spoken, step

LOOP = ["NoGradient", "GradientsNotZeroed", "TrainingInEvalMode"]
START = {"kind": "start", "instruments": {"zeroing": "on", "eval mode": "on"}}


def told(at: Mapping[int, Mapping[str, Any]], count: int = 100) -> list[Step]:
    """Healthy steps with events inside some of them; the first one has the run's start."""
    events: dict[int, list[Mapping[str, Any]]] = {0: [START]}
    for number, event in at.items():
        events.setdefault(number, []).append(event)
    return [step(n, events=events.get(n, ())) for n in range(count)]


def unseen(steps: int, *names: str, declared: bool = False, number: int = 0) -> dict[str, Any]:
    return {
        "kind": "no_gradient",
        "optimizer": "AdamW",
        "number": number,
        "steps": steps,
        "count": len(names),
        "parameters": list(names),
        "declared": declared,
    }


def kept(steps: int, number: int = 0) -> dict[str, Any]:
    return {"kind": "gradients_kept", "optimizer": "SGD", "number": number, "steps": steps}


def modes(*modules: str) -> dict[str, Any]:
    return {"kind": "eval_mode", "modules": list(modules)}


def annotations(verdicts: Iterable[Any]) -> Mapping[str, str]:
    (condition,) = held(verdicts).values()
    assert isinstance(condition, Condition)
    return condition.annotations


def test_one_ticket_names_all_parameters_without_a_gradient() -> None:
    steps = told({50: unseen(50, "a.weight", "a.bias"), 60: unseen(50, "b.weight", number=1)})
    verdicts = engine(LOOP).advance(steps)
    assert spoken(verdicts) == {("NoGradient", "ticket"): 50}
    words = annotations(verdicts)
    assert words["parameters"] == "a.weight, a.bias"
    assert (words["layer"], words["optimizer"]) == ("a", "AdamW")


@pytest.mark.parametrize(
    ("event", "first"),
    [
        (unseen(50, "a.weight"), 80),
        (unseen(49, "a.weight"), None),
        (unseen(50), None),
        (unseen(50, "a.weight", declared=True), None),
        (unseen(999, "a.weight", declared=True), None),
        (unseen(1000, "a.weight", declared=True), 80),
        ({"kind": "no_gradient", "parameters": "all", "steps": "many"}, None),
    ],
)
def test_enough_steps_of_its_own_optimizer_must_pass(
    event: dict[str, Any], first: int | None
) -> None:
    assert spoken(engine(LOOP).advance(told({80: event}))).get(("NoGradient", "ticket")) == first


def test_a_branch_that_wakes_up_resolves_it_and_another_optimizers_does_not() -> None:
    steps = told({50: unseen(50, "a.weight"), 55: unseen(50, number=1), 60: unseen(60, number=0)})
    verdicts = engine(LOOP).advance(steps)
    active = [(v.step, c.active) for v in verdicts for c in v.conditions if c.alertname == LOOP[0]]
    assert active == [(50, True), (60, False)]


def test_gradients_that_were_not_zeroed_are_a_ticket_until_they_are() -> None:
    verdicts = engine(LOOP).advance(told({7: kept(3), 40: kept(0)}))
    assert spoken(verdicts) == {("GradientsNotZeroed", "ticket"): 7}
    assert held(verdicts) == {}
    words = annotations(verdicts[:30])
    assert words["optimizer"] == "SGD (number 0)"
    assert "zero_grad()" in words["first_action"]


def test_one_optimizer_that_clears_again_does_not_speak_for_the_other() -> None:
    verdicts = engine(LOOP).advance(told({7: kept(3), 9: kept(3, 1), 40: kept(0)}))
    assert held(verdicts)
    assert not held(engine(LOOP).advance(told({7: kept(3), 9: kept(0), 40: kept(0, 1)})))


def test_eval_mode_is_a_note_that_names_the_modules_and_ends() -> None:
    verdicts = engine(LOOP).advance(told({0: modes("ResNet"), 50: modes()}))
    assert spoken(verdicts) == {("TrainingInEvalMode", "note"): 0}
    assert annotations(verdicts[:40])["modules"] == "ResNet"
    assert held(verdicts) == {}


def test_events_that_travel_alone_are_heard_too() -> None:
    steps = [*told({}, 10), carrier(9, kept(3), 9.5), *told({}, 20)[11:]]
    assert spoken(engine(LOOP).advance(steps)) == {("GradientsNotZeroed", "ticket"): 9}


def test_a_new_attempt_begins_anew() -> None:
    steps = told({7: kept(3), 8: unseen(50, "a"), 9: modes("Net")}, 30)
    detectors = engine(LOOP)
    detectors.advance(steps)
    states = {c.alert: c.state for c in detectors.coverage()}
    assert set(states.values()) == {"armed"}
    detectors.advance([step(n, attempt=2) for n in range(3)])
    assert {c.alert: c.state for c in detectors.coverage()} == dict.fromkeys(LOOP, "waiting")


def test_coverage_says_what_cannot_be_told_and_why() -> None:
    off = "off: this torch tells of no backward pass"
    start = {"kind": "start", "instruments": {"zeroing": off}}
    detectors = engine(LOOP)
    detectors.advance([step(n, events=[start] if n == 0 else ()) for n in range(60)])
    said = {c.alert: (c.state, c.detail) for c in detectors.coverage()}
    assert said["GradientsNotZeroed"][0] == "blind"
    assert "no backward pass" in said["GradientsNotZeroed"][1]
    assert said["TrainingInEvalMode"][0] == said["NoGradient"][0] == "blind"
    assert "pip install --upgrade gradwarden" in said["NoGradient"][1]


@pytest.mark.parametrize("at", [5, 8, 51, 60])
def test_put_aside_and_restored_it_says_the_same(at: int) -> None:
    steps = told({7: kept(3), 20: modes("Net"), 50: unseen(50, "a.w"), 55: kept(0), 70: unseen(70)})
    whole, before, after = engine(LOOP), engine(LOOP), engine(LOOP)
    said = [(v.step, v.conditions) for s in steps for v in whole.advance([s])]
    before.advance(steps[:at])
    after.restore(before.state())
    assert [(v.step, v.conditions) for s in steps[at:] for v in after.advance([s])] == said[at:]
    assert after.coverage() == whole.coverage()


# -- asynchronous workers -----------------------------------------------------------------

STALE = ["StaleGradients"]


def stale(
    count: int, ages: Mapping[int, float], bound: float | None = None, since: int = 0
) -> list[Step]:
    """Steps in which these ranks are so many updates behind from some step on, the others one."""
    steps = []
    for n in range(count):
        held = step(n, loss=dict.fromkeys(range(4), 1.0))
        ranks = {}
        for rank, said in held.ranks.items():
            age = ages.get(rank, 1.0) if n >= since else 1.0
            more = {} if bound is None else {"staleness_bound": bound}
            ranks[rank] = type(said)(
                group=0,
                time_ns=said.time_ns,
                scalars={**said.scalars, "staleness": age, **more},
                stepped=True,
            )
        steps.append(type(held)(**{**_fields(held), "ranks": ranks}))
    return steps


def _fields(held: Step) -> dict[str, Any]:
    return {name: getattr(held, name) for name in Step.__dataclass_fields__}


@pytest.mark.parametrize(
    ("age", "bound", "first"),
    [(9.0, None, 49), (8.0, None, None), (17.0, 16.0, 49), (16.0, 16.0, None), (9.0, 16.0, None)],
)
def test_a_worker_above_the_bound_is_named(
    age: float, bound: float | None, first: int | None
) -> None:
    detectors = engine(STALE, world_size=4)
    verdicts = detectors.advance(stale(80, {2: age}, bound, since=40))
    assert spoken(verdicts).get(("StaleGradients", "ticket")) == first
    if first is not None:
        assert annotations(verdicts)["rank"] == "2"
    assert detectors.coverage()[0].state == "armed"


def test_a_worker_that_catches_up_resolves_it() -> None:
    steps = stale(60, {2: 50.0})[:30] + stale(60, {})[30:]
    verdicts = engine(STALE, world_size=4).advance(steps)
    assert spoken(verdicts) == {("StaleGradients", "ticket"): 9}
    assert held(verdicts) == {}


def test_single_late_gradients_are_how_asynchronous_training_is() -> None:
    steps = stale(300, {2: 50.0})
    steps = [
        late if n % 3 == 0 else fine
        for n, (late, fine) in enumerate(zip(steps, stale(300, {}), strict=True))
    ]
    assert spoken(engine(STALE, world_size=4).advance(steps)) == {}


def test_synchronous_training_is_told_how_to_declare_that_it_is_not() -> None:
    detectors = engine(STALE)
    detectors.advance([step(0)])
    (coverage,) = detectors.coverage()
    assert coverage.state == "blind"
    assert "monitor.log(staleness=" in coverage.detail


@pytest.mark.parametrize("at", [45, 55, 65])
def test_staleness_is_remembered(at: int) -> None:
    steps = stale(60, {2: 50.0}, 16.0, since=40) + stale(90, {})[60:]
    whole, before, after = (engine(STALE, world_size=4) for _ in range(3))
    said = [(v.step, v.conditions) for s in steps for v in whole.advance([s])]
    before.advance(steps[:at])
    after.restore(before.state())
    assert [(v.step, v.conditions) for s in steps[at:] for v in after.advance([s])] == said[at:]
