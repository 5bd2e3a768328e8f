"""Slow ranks and slow networks: who is waited for, and when nobody is to blame."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from gradwarden_server.detect.steps import Step
from tests.server.detection import carrier
from tests.server.timed import Told, jitter, same_after_a_restart, spent, timed

WORLD = 4
PLACES = [
    carrier(
        0,
        {"kind": "start", "place": {"node": f"node{rank // 2}", "gpu": f"{rank % 2}"}},
        0,
        rank,
    )
    for rank in range(WORLD)
]


def together(
    number: int,
    own: Mapping[int, Mapping[str, float]],
    *,
    transfer: float = 0.01,
    heard: bool = True,
    at: float | None = None,
    **more: Mapping[int, float],
) -> Step:
    """A step of ranks with their own seconds by phase: the fast ones wait for the slowest."""
    works = {rank: sum(phases.values()) for rank, phases in own.items()}
    wall = max(works.values()) + transfer
    ranks = {}
    for rank, phases in own.items():
        took = wall - works[rank]
        backward = phases.get("backward", 0.0) + took
        told = {k: v for k, v in phases.items() if k != "other"} | {"backward": backward}
        scalars = spent(wall, **told)
        if heard:
            scalars["allreduce_exposed_seconds"] = took
            scalars["allreduce_seconds"] = took
            scalars["allreduce_bytes"] = 4e6
        ranks[rank] = scalars | {name: by[rank] for name, by in more.items() if rank in by}
    return timed(number, ranks, at=at)


def usual(rank: int = 0, **extra: float) -> dict[str, float]:
    phases = {"data": 0.01, "forward": 0.03, "backward": 0.05, "optimizer": 0.01}
    return {name: phases.get(name, 0.0) + extra.get(name, 0.0) for name in {*phases, *extra}}


def straggling(
    steps: int, slow: Callable[[int], Mapping[int, Mapping[str, float]]], **more: bool
) -> list[Step]:
    """``slow`` says which rank takes how much longer in which phase of a step."""
    made = []
    for n in range(steps):
        extra = slow(n)
        own = {rank: usual(**extra.get(rank, {})) for rank in range(WORLD)}
        made.append(together(n, own, **more))  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("phase", ["data", "forward", "backward", "optimizer", "other"])
def test_the_rank_the_node_and_the_phase_that_others_wait_for(phase: str) -> None:
    told = Told("Straggler", WORLD)
    told.run(PLACES)
    found = told.run(straggling(220, lambda n: {2: {phase: 0.06}}))
    assert found is not None
    assert (told.first, found.severity) == (199, "ticket")
    assert found.annotations["rank"] == "2"
    assert found.annotations["node"] == "node1"
    assert found.annotations["gpu"] == "0"
    assert found.annotations["phase"] == phase


@pytest.mark.parametrize(("extra", "raised"), [(0.026, True), (0.018, False)])
def test_a_fifth_more_than_the_others(extra: float, raised: bool) -> None:
    found = Told("Straggler", WORLD).run(straggling(220, lambda n: {1: {"forward": extra}}))
    assert (found is not None) == raised


def test_where_no_collective_is_timed_forward_and_data_are_compared() -> None:
    told = Told("Straggler", WORLD)
    found = told.run(straggling(220, lambda n: {3: {"forward": 0.06}}, heard=False))
    assert found is not None
    assert found.annotations["rank"] == "3"
    assert "comm" in told.detail


def test_it_ends_when_the_rank_keeps_up() -> None:
    told = Told("Straggler", WORLD)
    steps = straggling(500, lambda n: {2: {"forward": 0.06}} if n < 240 else {})
    assert told.run(steps[:240]) is not None
    assert told.run(steps[240:]) is None


NOISE = [jitter(600, seed=rank, sigma=0.15) for rank in range(WORLD)]


def by_turns(n: int) -> dict[int, dict[str, float]]:
    return {n % WORLD: {"forward": 0.1}}


def noisy(n: int) -> dict[int, dict[str, float]]:
    return {rank: {"forward": 0.1 * NOISE[rank][n] - 0.1} for rank in range(WORLD)}


def now_and_then(n: int) -> dict[int, dict[str, float]]:
    return {0: {"other": 3.0}} if n % 10 == 0 else {}


@pytest.mark.parametrize("slow", [by_turns, noisy, now_and_then])
def test_nobody_is_a_straggler_by_chance(
    slow: Callable[[int], Mapping[int, Mapping[str, float]]],
) -> None:
    told = Told("Straggler", WORLD)
    assert told.silent(straggling(600, slow))
    assert told.state == "armed"


def test_an_evaluation_of_rank_0_alone_is_no_straggler() -> None:
    steps = []
    for n in range(400):
        own = {rank: usual(**({"evaluation": 0.5} if rank == 0 else {})) for rank in range(WORLD)}
        plain = {rank: usual() for rank in range(WORLD)}
        steps.append(together(n, own if n % 2 else plain))
    assert Told("Straggler", WORLD).silent(steps)


def test_the_rank_that_is_watched_more_closely_is_no_straggler() -> None:
    cost = {0: 0.03, 1: 0.001, 2: 0.001, 3: 0.001}
    steps = [
        together(
            n,
            {rank: usual(other=cost[rank]) for rank in range(WORLD)},
            overhead_seconds=cost,
        )
        for n in range(300)
    ]
    assert Told("Straggler", WORLD).silent(steps)


def test_a_rank_with_more_tokens_is_no_straggler() -> None:
    tokens = {0: 1000.0, 1: 1000.0, 2: 2000.0, 3: 1000.0}
    own = {rank: {"forward": 1e-4 * tokens[rank]} for rank in range(WORLD)}
    steps = [together(n, own, tokens=tokens) for n in range(300)]
    assert Told("Straggler", WORLD).silent(steps)
    assert Told("Straggler", WORLD).run(together(n, own) for n in range(300)) is not None


def test_stages_of_a_pipeline_are_compared_with_their_own() -> None:
    def stages(slow: float) -> list[Step]:
        roles = {rank: f"stage{rank // 2}" for rank in range(WORLD)}
        starts = [
            carrier(0, {"kind": "start", "place": {"role": role}}, 0, rank)
            for rank, role in roles.items()
        ]
        walls = {rank: {"forward": 0.05 if rank < 2 else 0.2, "data": 0.0} for rank in roles}
        walls[1]["forward"] += slow
        made = []
        for n in range(300):
            ranks = {
                rank: spent(0.3, **own)
                | {"allreduce_exposed_seconds": 0.01 + (slow if rank == 0 else 0.0)}
                for rank, own in walls.items()
            }
            made.append(timed(n, ranks))
        return [*starts, *made]

    assert Told("Straggler", WORLD).silent(stages(0.0))
    found = Told("Straggler", WORLD).run(stages(0.12))
    assert found is not None
    assert found.annotations["rank"] == "1"


def test_a_rank_that_is_not_heard_may_be_the_slow_one() -> None:
    told = Told("Straggler", WORLD)
    own = {rank: usual(**({"forward": 0.06} if rank == 2 else {})) for rank in range(3)}
    for n in range(300):
        step = together(n, own)
        told.run([timed(n, {r: s.scalars for r, s in step.ranks.items()}, missing=(3,))])
    assert told.first is None
    assert (told.state, "rank 3" in told.detail) == ("blind", True)


@pytest.mark.parametrize("at", [30, 199, 230])
def test_a_straggler_is_judged_as_if_never_stopped(at: int) -> None:
    steps = [*PLACES, *straggling(330, lambda n: {2: {"data": 0.06}} if n < 240 else {})]
    assert same_after_a_restart("Straggler", steps, at, WORLD)


# -- AllReduceSlow ----------------------------------------------------------------------------


def reduced(
    count: int, transfer: float, *, begin: int = 0, at: float = 0.0, slower: float = 1.0
) -> list[Step]:
    """One-second steps with this transfer time, some waiting on two ranks beside it."""
    made = []
    for n, factor in enumerate(jitter(count, seed=begin)):
        own = {rank: {"forward": slower * (0.9 + 0.02 * (rank % 2))} for rank in range(WORLD)}
        at += max(sum(o.values()) for o in own.values()) + transfer * factor
        made.append(together(begin + n, own, transfer=transfer * factor, at=at))
    return made


def congested(seconds: int, ratio: float, usual: float = 0.05, slower: float = 1.0) -> list[Step]:
    good = reduced(300, usual)
    at = good[-1].time_ns / 1e9
    count = round(seconds / (0.92 * slower + usual * ratio))
    return [*good, *reduced(count, usual * ratio, begin=300, at=at, slower=slower)]


@pytest.mark.parametrize(
    ("sentence", "seconds", "ratio", "usual", "raised"),
    [
        ("four times for six minutes", 400, 4.0, 0.05, True),
        ("four times for four minutes is a burst", 240, 4.0, 0.05, False),
        ("twice as long", 900, 2.0, 0.05, False),
        ("four times of nearly nothing", 900, 4.0, 0.005, False),
    ],
)
def test_a_network_that_became_slow(
    sentence: str, seconds: int, ratio: float, usual: float, raised: bool
) -> None:
    told = Told("AllReduceSlow", WORLD)
    told.run(PLACES)
    found = told.run(congested(seconds, ratio, usual))
    assert (found is not None) == raised, sentence
    if found is not None:
        assert found.annotations["collective"] == "all-reduce"
        assert found.annotations["bytes"] == "4000000"
        assert found.annotations["rank"] == "0, 1, 2, 3"
        assert found.annotations["node"] == "node0, node1"


def test_it_ends_with_the_congestion() -> None:
    told = Told("AllReduceSlow", WORLD)
    sick = congested(400, 4.0)
    assert told.run(sick) is not None
    at = sick[-1].time_ns / 1e9
    assert told.run(reduced(80, 0.05, begin=len(sick), at=at)) is None


def test_waiting_for_one_rank_is_no_slow_network() -> None:
    good = reduced(300, 0.05)
    at = good[-1].time_ns / 1e9
    late = straggling(600, lambda n: {1: {"forward": 1.0}})
    later = [
        timed(300 + n, {r: s.scalars for r, s in step.ranks.items()}, at=at + n)
        for n, step in enumerate(late)
    ]
    assert Told("AllReduceSlow", WORLD).silent([*good, *later])


def test_a_machine_on_which_everything_is_slower_is_no_slow_network() -> None:
    assert Told("AllReduceSlow", WORLD).silent(congested(2000, 4.0, slower=4.0))


def test_other_sizes_are_other_collectives() -> None:
    good = reduced(300, 0.05)
    at = good[-1].time_ns / 1e9
    larger = []
    for n, step in enumerate(reduced(700, 0.4, begin=300, at=at)):
        ranks = {r: {**s.scalars, "allreduce_bytes": 64e6} for r, s in step.ranks.items()}
        larger.append(timed(300 + n, ranks, at=step.time_ns / 1e9))
    assert Told("AllReduceSlow", WORLD).silent([*good, *larger])


def test_the_network_says_whether_it_is_watched() -> None:
    told = Told("AllReduceSlow", WORLD)
    told.run(reduced(40, 0.05))
    assert told.state == "waiting"
    told.run(reduced(300, 0.05, begin=40, at=40))
    assert told.state == "armed"
    alone = Told("AllReduceSlow")
    assert (alone.state, alone.detail) == ("armed", "one rank has nobody to reduce with")


@pytest.mark.parametrize("at", [100, 500, 690])
def test_the_network_is_judged_as_if_never_stopped(at: int) -> None:
    assert same_after_a_restart("AllReduceSlow", congested(420, 4.0), at, WORLD)
