"""Waiting for data, and less progress than before: raised for the sick, silent on the healthy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gradwarden_server.detect.steps import Step
from tests.server.detection import carrier, step
from tests.server.timed import Told, jitter, same_after_a_restart, spent, timed

# -- InputBound -------------------------------------------------------------------------------


def waiting(share: float, steps: int = 150, wall: float = 0.2, **more: float) -> Iterator[Step]:
    for n in range(steps):
        yield timed(n, {**spent(wall, data=share * wall, forward=0.05), **more}, at=n * wall)


@pytest.mark.parametrize(("share", "raised"), [(0.31, True), (0.29, False)])
def test_waiting_for_data_above_its_share(share: float, raised: bool) -> None:
    told = Told("InputBound")
    found = told.run(waiting(share))
    assert (found is not None) == raised
    if found is not None:
        assert told.first == 99
        assert found.annotations["share"] == "0.31"


def test_one_worker_that_every_fourth_step_waits_for_is_a_mean_not_a_median() -> None:
    steps = [
        timed(n, spent(0.5 if n % 4 == 0 else 0.1, data=0.4 * (n % 4 == 0))) for n in range(150)
    ]
    assert Told("InputBound").run(steps) is not None


def test_it_ends_when_the_loader_is_mended() -> None:
    told = Told("InputBound")
    steps = [*waiting(0.5), *(timed(n, spent(0.2, data=0.001)) for n in range(150, 400))]
    assert told.run(steps[:160]) is not None
    assert told.run(steps[160:]) is None


def epochs(length: int, starts: float) -> Iterator[Step]:
    """Each epoch begins with workers that start."""
    for n in range(400):
        first = n % length == 0
        scalars = spent(0.1 + first * starts, data=0.005 + first * starts)
        yield timed(n, {**scalars, **({"data_start": 1.0} if first else {})})


@pytest.mark.parametrize(
    ("sentence", "steps"),
    [
        ("the first of an epoch starts the workers", list(epochs(8, 2.0))),
        ("collating a toy takes its share of a millisecond", list(waiting(0.6, wall=0.004))),
        (
            "an evaluation loads its data as well",
            [timed(n, spent(1.0, data=0.6, evaluation=0.3)) for n in range(300)],
        ),
        ("no loader at all", [timed(n, spent(0.2)) for n in range(300)]),
        ("nobody measures", [timed(n, {"loss": 1.0}) for n in range(300)]),
    ],
)
def test_input_bound_is_silent(sentence: str, steps: list[Step]) -> None:
    told = Told("InputBound")
    assert told.silent(steps), sentence


def test_a_loader_that_is_made_anew_at_every_step_is_told_as_that() -> None:
    found = Told("InputBound").run(waiting(0.6, data_start=1.0))
    assert found is not None
    assert "once per epoch" in found.annotations["first_action"]


def test_small_waits_count_once_they_cost_ten_minutes() -> None:
    told = Told("InputBound")
    assert told.run(waiting(0.5, steps=1000, wall=0.0199)) is None
    assert told.run(waiting(0.5, steps=61_000, wall=0.0199)) is not None


def test_the_rank_that_waits_is_named_with_its_node() -> None:
    told = Told("InputBound", 2)
    start = {"kind": "start", "place": {"node": "n1"}}
    told.run([carrier(0, start, 0, rank=1)])
    fast, slow = spent(0.4, data=0.001), spent(0.4, data=0.3)
    found = told.run(timed(n, {0: fast, 1: slow}) for n in range(150))
    assert found is not None
    assert (found.annotations["rank"], found.annotations["node"]) == ("1", "n1")


def test_input_bound_says_whether_it_watches() -> None:
    told = Told("InputBound")
    told.run(waiting(0.1, steps=40))
    assert (told.state, told.detail) == ("waiting", "40 of 100 steps")
    told.run(waiting(0.1))
    assert told.state == "armed"
    bare = Told("InputBound")
    bare.run(step(n) for n in range(120))
    assert bare.state == "blind"
    assert "anatomy" in bare.detail


@pytest.mark.parametrize("at", [60, 120, 180])
def test_input_bound_goes_on_as_if_never_stopped(at: int) -> None:
    steps = [*waiting(0.5), *(timed(n, spent(0.2)) for n in range(150, 330))]
    assert same_after_a_restart("InputBound", steps, at)


# -- ThroughputDrop ---------------------------------------------------------------------------


def training(
    minutes: float,
    slower: float = 1.0,
    *,
    begin: int = 0,
    at: float = 0.0,
    phase: str = "forward",
    wall: float = 1.0,
    seed: int = 0,
    **more: float,
) -> list[Step]:
    """So many minutes of one-second steps, of which one phase takes longer by ``slower``."""
    base = {"data": 0.05, "forward": 0.3, "backward": 0.5, "optimizer": 0.1}
    steps, now = [], at
    noise = jitter(round(60 * minutes / wall) + 1, seed, 0.05)
    for n, factor in enumerate(noise):
        parts = {name: wall * took * factor for name, took in base.items()}
        extra = wall * factor * (slower - 1)
        if phase in parts:
            parts[phase] += extra
        total = wall * factor + extra
        now += total
        if now > at + 60 * minutes:
            break
        steps.append(timed(begin + n, {**spent(total, **parts), **more}, at=now))
    return steps


def dropped(minutes: float, slower: float, phase: str = "data", **more: float) -> list[Step]:
    """A good half hour, then slower."""
    good = training(30, **more)
    begin, at = len(good), good[-1].time_ns / 1e9
    return [*good, *training(minutes, slower, begin=begin, at=at, phase=phase, seed=1, **more)]


@pytest.mark.parametrize(
    ("sentence", "minutes", "slower", "raised"),
    [
        ("half the rate for twenty minutes", 20, 2.0, True),
        ("half the rate for ten minutes is a hiccup", 10, 2.0, False),
        ("three quarters of the rate are no alert", 60, 1.3, False),
        ("two thirds are", 20, 1.6, True),
    ],
)
def test_a_drop_lasts_a_quarter_of_an_hour(
    sentence: str, minutes: float, slower: float, raised: bool
) -> None:
    told = Told("ThroughputDrop")
    found = told.run(dropped(minutes, slower, tokens=4096.0))
    assert (found is not None) == raised, sentence
    if found is not None:
        assert (found.severity, found.annotations["phase"]) == ("ticket", "data")
        assert "tokens a second" in found.annotations["summary"]


@pytest.mark.parametrize(
    ("phase", "more", "severity"),
    [
        ("other", {}, "ticket"),
        ("forward", {}, "note"),
        ("forward", {"tokens": 4096.0}, "note"),
        ("forward", {"tokens": 4096.0, "samples": 8.0}, "ticket"),
        ("backward", {"gpu_thermal_slowdown": 1.0}, "ticket"),
    ],
)
def test_a_slower_model_is_a_note_unless_longer_sequences_are_ruled_out(
    phase: str, more: dict[str, float], severity: str
) -> None:
    found = Told("ThroughputDrop").run(dropped(25, 2.0, phase, **more))
    assert found is not None
    assert (found.severity, found.annotations["phase"]) == (severity, phase)


def test_it_ends_when_the_rate_is_back() -> None:
    told = Told("ThroughputDrop")
    sick = dropped(25, 2.0)
    assert told.run(sick) is not None
    assert told.run(training(5, begin=len(sick), at=sick[-1].time_ns / 1e9)) is None


def pauses(kind: str) -> list[Step]:
    """Every fifth minute three minutes of something else."""
    steps, now = [], 0.0
    for n in range(4000):
        pause = 180.0 if n % 300 == 299 and n > 1500 else 0.0
        now += 1 + pause
        scalars = spent(1 + pause, forward=0.4, backward=0.5)
        events = []
        if pause and kind == "named":
            events = [{"kind": "phase", "name": "sample images", "seconds": pause}]
        elif pause and kind != "unknown":
            scalars[f"{kind}_seconds"] = pause
        steps.append(timed(n, scalars, at=now, events=events))
    return steps


@pytest.mark.parametrize("kind", ["evaluation", "checkpoint", "compile", "named", "unknown"])
def test_pauses_are_no_drop(kind: str) -> None:
    told = Told("ThroughputDrop")
    assert told.silent(pauses(kind))


def test_an_evaluation_of_rank_0_alone_that_the_others_wait_for_is_no_drop() -> None:
    told = Told("ThroughputDrop", 2)
    steps, now = [], 0.0
    for n in range(3000):
        pause = 2.0 if n > 1500 else 0.0
        now += 1 + pause
        first = spent(1 + pause, forward=0.4, backward=0.5, evaluation=pause)
        other = spent(1 + pause, forward=0.4, backward=0.5 + pause)
        steps.append(timed(n, {0: first, 1: other}, at=now))
    assert told.silent(steps)


@pytest.mark.parametrize(
    ("sentence", "before", "after", "wall"),
    [
        ("twice the length at the same tokens a step", (4096.0, 8.0), (4096.0, 4.0), 2.0),
        ("twice the tokens a step, at half the rate", (4096.0, 8.0), (8192.0, 8.0), 4.0),
        ("larger batches at the same rate", (4096.0, 8.0), (12288.0, 24.0), 3.0),
    ],
)
def test_longer_sequences_and_larger_batches_are_no_drop(
    sentence: str, before: tuple[float, float], after: tuple[float, float], wall: float
) -> None:
    told = Told("ThroughputDrop")
    good = training(30, tokens=before[0], samples=before[1])
    at = good[-1].time_ns / 1e9
    rest = training(40, begin=len(good), at=at, wall=wall, tokens=after[0], samples=after[1])
    assert told.silent([*good, *rest]), sentence


def test_a_clock_that_jumps_makes_no_quarter_of_an_hour() -> None:
    told = Told("ThroughputDrop")
    good = training(30)
    steps, at = list(good), good[-1].time_ns / 1e9
    for n in range(60):
        at += 2 + (1800 if n % 20 == 10 else -1800 if n % 20 == 11 else 0)
        steps.append(timed(len(good) + n, spent(2.0, data=1.0), at=at))
    assert told.silent(steps)


def test_a_new_attempt_has_its_own_pace() -> None:
    told = Told("ThroughputDrop")
    good = training(30)
    told.run(good)
    at = good[-1].time_ns / 1e9
    slow = [timed(n, spent(3.0, data=1.0), at=at + 3 * n, attempt=2) for n in range(900)]
    assert told.run(slow) is None


def test_throughput_says_whether_it_watches() -> None:
    told = Told("ThroughputDrop")
    told.run(training(4))
    assert (told.state, told.detail) == ("waiting", "3 of 10 stretches of steps")
    told.run(training(30))
    assert told.state == "armed"
    assert "monitor.log(tokens=" in told.detail


@pytest.mark.parametrize("at", [500, 2000, 2400])
def test_throughput_goes_on_as_if_never_stopped(at: int) -> None:
    assert same_after_a_restart("ThroughputDrop", dropped(25, 2.0), at)
