"""Checkpoints that take too long, do not come, or are not what was saved; and full GPUs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from gradwarden_server.detect.steps import Step
from tests.server.detection import carrier
from tests.server.timed import Told, same_after_a_restart, spent, timed

GIB = 2.0**30


def saved(step: int, seconds: float = 20.0, **more: Any) -> dict[str, Any]:
    """The event of one save."""
    event = {"kind": "checkpoint", "path": f"/ck/{step}.pt", "saved_step": step, "ok": True}
    event |= {"seconds": seconds, "bytes": 1000, "sha256": "a" * 64, "finite": True}
    return event | more


def saving(times: Iterable[float], every: int = 100, **more: Any) -> list[Step]:
    """A run of one-second steps that saves every so many; each save takes its time."""
    steps, now, number = [], 0.0, 0
    for seconds in times:
        for _ in range(every):
            now += 1
            steps.append(timed(number, spent(1.0), at=now))
            number += 1
        now += seconds
        steps.append(carrier(number - 1, saved(number - 1, seconds, **more), now))
    return steps


# -- CheckpointSlow ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sentence", "times", "raised"),
    [
        ("four times the usual and over a minute", [20, 20, 20, 80], True),
        ("not three times", [30, 30, 30, 80], False),
        ("three times, but under a minute", [5, 5, 5, 50], False),
        ("the third has no two before it to compare with", [20, 20, 80], False),
    ],
)
def test_a_save_that_takes_too_long(sentence: str, times: list[float], raised: bool) -> None:
    found = Told("CheckpointSlow").run(saving(times, every=1000))
    assert (found is not None) == raised, sentence
    if found is not None:
        assert found.severity == "ticket"
        assert found.annotations["path"] == "/ck/3999.pt"
        assert found.annotations["bytes"] == "1000"
        assert found.annotations["last_good_checkpoint"] == "/ck/3999.pt (step 3999)"


def test_it_ends_with_a_save_that_is_as_fast_as_usual() -> None:
    told = Told("CheckpointSlow")
    steps = saving([20, 20, 20, 80, 20], every=1000)
    assert told.run(steps[:-1001]) is not None
    assert told.run(steps[-1001:]) is None


def test_sizes_are_compared_with_their_like() -> None:
    told = Told("CheckpointSlow")
    small = saving([2, 2, 2, 2, 2], every=400)
    at = small[-1].time_ns / 1e9
    assert told.silent([*small, carrier(2001, saved(2001, 90, bytes=10**6), at + 100)])


@pytest.mark.parametrize(("seconds", "raised"), [(33.0, True), (27.0, False)])
def test_saves_may_take_a_twentieth_of_two_hours(seconds: float, raised: bool) -> None:
    found = Told("CheckpointSlow").run(saving([seconds] * 14, every=600 - round(seconds)))
    assert (found is not None) == raised


def test_one_long_save_in_two_hours_is_no_share_of_the_time() -> None:
    assert Told("CheckpointSlow").silent(saving([400.0] * 4, every=9000))


def test_a_save_is_timed_by_torch_save_where_nothing_else_tells() -> None:
    steps = [
        timed(n, spent(1 + pause, checkpoint=pause) if pause else spent(1.0), at=1500.0 * n)
        for n, pause in enumerate([0, 20, 0, 20, 0, 20, 0, 90, 0])
    ]
    assert Told("CheckpointSlow").run(steps) is not None


def test_ranks_that_save_side_by_side_block_the_run_once() -> None:
    told = Told("CheckpointSlow", 8)
    for n in range(12):
        for rank in range(8):
            told.run([carrier(100 * n, saved(100 * n, 25), 600 * n, rank)])
    assert told.first is None


@pytest.mark.parametrize("at", [2500, 4003])
def test_slow_saves_are_judged_as_if_never_stopped(at: int) -> None:
    steps = saving([20, 20, 20, 80, 20], every=1000)
    assert same_after_a_restart("CheckpointSlow", steps, at)


# -- CheckpointStale --------------------------------------------------------------------------


def plain(begin: int, count: int, at: float, wall: float = 1.0, attempt: int = 1) -> list[Step]:
    return [
        timed(begin + n, spent(wall), at=at + wall * (n + 1), attempt=attempt) for n in range(count)
    ]


@pytest.mark.parametrize(("more", "raised"), [(1700, True), (1550, False)])
def test_four_intervals_without_a_checkpoint(more: int, raised: bool) -> None:
    told = Told("CheckpointStale")
    steps = saving([1.0] * 5, every=400)
    found = told.run([*steps, *plain(2000, more, steps[-1].time_ns / 1e9)])
    assert (found is not None) == raised
    if found is not None:
        assert told.first == 1999 + 1605
        assert found.annotations["last_good_checkpoint"] == "/ck/1999.pt (step 1999)"


def test_it_ends_with_the_next_checkpoint_and_a_failed_save_is_told_as_the_cause() -> None:
    told = Told("CheckpointStale")
    steps = saving([1.0] * 5, every=400)
    at = steps[-1].time_ns / 1e9
    failed = saved(2400, ok=False, error="OSError: no space left on device")
    found = told.run([*steps, carrier(2400, failed, at + 1), *plain(2000, 1700, at)])
    assert found is not None
    assert "no space left" in found.annotations["cause"]
    at += 1701
    assert told.run([carrier(3700, saved(3700), at), *plain(3701, 3, at)]) is None


def test_a_declared_interval_counts_from_the_first_step() -> None:
    steps = [
        timed(n, {**spent(1.0), **({"checkpoint_interval_seconds": 900.0} if n < 5 else {})})
        for n in range(1900)
    ]
    told = Told("CheckpointStale")
    assert told.run(steps[:1790]) is None
    assert told.run(steps[1790:]) is not None


@pytest.mark.parametrize(
    ("sentence", "times", "rest"),
    [
        ("a run that never saves", [], plain(0, 9000, 0)),
        ("a short run that saved by epochs", [0.1] * 5, plain(20, 400, 25)),
    ],
)
def test_stale_is_silent(sentence: str, times: list[float], rest: list[Step]) -> None:
    assert Told("CheckpointStale").silent([*saving(times, every=4), *rest]), sentence


def test_slower_steps_and_long_evaluations_are_no_missing_checkpoint() -> None:
    steps = saving([1.0] * 5, every=400)
    at = steps[-1].time_ns / 1e9
    slower = plain(2000, 390, at, wall=8.0)
    assert Told("CheckpointStale").silent([*steps, *slower])


def test_saving_what_is_best_has_no_interval_but_its_longest() -> None:
    told = Told("CheckpointStale")
    steps: list[Step] = []
    number = 0
    for interval in (100, 100, 100, 550, 1500):
        at = steps[-1].time_ns / 1e9 if steps else 0.0
        steps += plain(number, interval, at)
        number += interval
        steps.append(carrier(number - 1, saved(number - 1, 1), steps[-1].time_ns / 1e9))
    assert told.silent([*steps, *plain(number, 5500, steps[-1].time_ns / 1e9)])


def test_a_resumed_run_has_its_own_clock() -> None:
    told = Told("CheckpointStale")
    steps = saving([1.0] * 5, every=400)
    at = steps[-1].time_ns / 1e9 + 1e6
    assert told.silent([*steps, *plain(2000, 1500, at, attempt=2)])


@pytest.mark.parametrize("at", [900, 3500, 3700])
def test_stale_is_judged_as_if_never_stopped(at: int) -> None:
    steps = saving([1.0] * 5, every=400)
    rest = plain(2000, 1800, steps[-1].time_ns / 1e9)
    assert same_after_a_restart("CheckpointStale", [*steps, *rest], at)


# -- CheckpointCorrupt ------------------------------------------------------------------------


def looked(path: str, verified: bool | None, **more: Any) -> Step:
    """A look at a file; ``verified`` is None where the process knows nothing to compare with."""
    event = {"kind": "checkpoint", "path": path, "ok": verified is not False}
    event |= {"verified": verified, "bytes": 1000, "sha256": "a" * 64, "modified_ns": 5}
    return carrier(500, event | more, 500.0)


def recorded() -> list[Step]:
    return [
        carrier(100, saved(100, modified_ns=5), 100.0),
        carrier(200, saved(200, modified_ns=5), 200.0),
    ]


@pytest.mark.parametrize(
    ("sentence", "look", "raised"),
    [
        ("the process that saved it says so", {"verified": False, "error": "it is cut off"}, True),
        ("all is as recorded", {"verified": True}, False),
        ("another process: as recorded", {"verified": None}, False),
        ("another process: another checksum", {"verified": None, "sha256": "b" * 64}, True),
        (
            "written again since: nothing to compare with",
            {"verified": None, "sha256": "b" * 64, "modified_ns": 9, "bytes": 990},
            False,
        ),
        (
            "written again since, smaller, and whole",
            {
                "verified": None,
                "sha256": "b" * 64,
                "modified_ns": 9,
                "bytes": 500,
                "whole": True,
            },
            False,
        ),
        (
            "written again since and cut off",
            {"verified": None, "sha256": "b" * 64, "modified_ns": 9, "bytes": 500},
            True,
        ),
    ],
)
def test_a_checkpoint_that_is_not_what_was_saved(
    sentence: str, look: dict[str, Any], raised: bool
) -> None:
    told = Told("CheckpointCorrupt")
    found = told.run([*recorded(), looked("/ck/200.pt", **look)])
    assert (found is not None) == raised, sentence
    if found is not None:
        assert found.severity == "page"
        assert found.annotations["path"] == "/ck/200.pt"
        assert found.annotations["bytes"] == str(look.get("bytes", 1000))
        assert found.annotations["last_good_checkpoint"] == "/ck/100.pt (step 100)"


def test_a_file_that_nobody_recorded_is_not_judged() -> None:
    told = Told("CheckpointCorrupt")
    assert told.silent([*recorded(), looked("/other/9.pt", None, sha256="c" * 64)])


def test_it_ends_when_a_newer_one_is_there() -> None:
    told = Told("CheckpointCorrupt")
    assert told.run([*recorded(), looked("/ck/200.pt", False)]) is not None
    assert told.run([carrier(150, saved(150), 600.0)]) is not None
    assert told.run([carrier(600, saved(600), 600.0)]) is None


def test_it_says_what_to_call() -> None:
    told = Told("CheckpointCorrupt")
    assert told.state == "waiting"
    told.run(recorded())
    assert told.state == "armed"
    assert "monitor.verify_checkpoint(path)" in told.detail


@pytest.mark.parametrize("at", [1, 2, 3])
def test_corrupt_is_judged_as_if_never_stopped(at: int) -> None:
    steps = [*recorded(), looked("/ck/200.pt", False), carrier(600, saved(600), 600.0)]
    assert same_after_a_restart("CheckpointCorrupt", steps, at)


# -- GpuMemoryPressure ------------------------------------------------------------------------


def memory(
    steps: int,
    allocated: Any = lambda n: 40 * GIB,
    *,
    peak: Any = lambda n: 60 * GIB,
    retries: Any = lambda n: 0.0,
    begin: int = 0,
) -> list[Step]:
    """Every eighth step has what the allocator says."""
    made = []
    for n in range(begin, begin + steps):
        scalars = spent(1.0)
        if n % 8 == 1:
            scalars |= {"gpu_memory_allocated_bytes": allocated(n), "gpu_memory_ooms": 0.0}
            scalars |= {"gpu_memory_peak_bytes": peak(n), "gpu_memory_retries": retries(n)}
            scalars |= {"gpu_memory_total_bytes": 80 * GIB}
        made.append(timed(n, {0: spent(1.0), 1: scalars}))
    return made


@pytest.mark.parametrize(
    ("sentence", "steps", "raised"),
    [
        ("retries in three windows", memory(400, retries=lambda n: n // 40), True),
        ("retries in two windows", memory(600, retries=lambda n: min(n, 220) // 40), False),
        ("many retries at the start", memory(600, retries=lambda n: min(n, 60)), False),
        ("a peak of 98 %", memory(400, peak=lambda n: (78.5 if n > 200 else 60) * GIB), True),
        ("a peak of 96 %", memory(400, peak=lambda n: 76.8 * GIB), False),
        ("two per cent more every 500", memory(3200, lambda n: 40 * GIB * 1.02 ** (n / 500)), True),
        ("half of that", memory(6000, lambda n: 40 * GIB * 1.009 ** (n / 500)), False),
        (
            "lengths that vary",
            memory(6000, lambda n: (40 + (n * 7919 % 13) + (n > 3000)) * GIB),
            False,
        ),
    ],
)
def test_a_gpu_that_fills_up(sentence: str, steps: list[Step], raised: bool) -> None:
    told = Told("GpuMemoryPressure", 2)
    told.run([carrier(0, {"kind": "start", "place": {"node": "n1", "gpu": "3"}}, 0, rank=1)])
    found = told.run(steps)
    assert (found is not None) == raised, sentence
    if found is not None:
        assert (found.annotations["rank"], found.annotations["node"]) == ("1", "n1")
        assert int(found.annotations["bytes"]) > 39 * GIB


def test_layers_that_begin_to_train_are_no_leak() -> None:
    told = Told("GpuMemoryPressure", 2)
    for epoch in range(8):
        told.run([carrier(500 * epoch, {"kind": "mark", "name": "unfreeze"}, 500 * epoch)])
        told.run(memory(500, lambda n, e=epoch: (40 + e) * GIB, begin=500 * epoch))
    assert told.first is None


def test_it_ends_after_a_thousand_steps_without_another_sign() -> None:
    told = Told("GpuMemoryPressure", 2)
    assert told.run(memory(300, peak=lambda n: 79 * GIB)) is not None
    assert told.run(memory(800, peak=lambda n: 79 * GIB, begin=300)) is None


@pytest.mark.parametrize("at", [150, 310, 1300])
def test_memory_is_judged_as_if_never_stopped(at: int) -> None:
    steps = memory(1500, retries=lambda n: min(n, 400) // 40)
    assert same_after_a_restart("GpuMemoryPressure", steps, at, 2)
