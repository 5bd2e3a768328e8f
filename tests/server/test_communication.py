"""Waiting apart from own work, and the rank that the others wait for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gradwarden import wire
from gradwarden_server.detect import communication
from gradwarden_server.detect.steps import RankStep, Step
from tests.server.detection import engine, held, step
from tests.server.traffic import batch, begin, frame, problem, send
from tests.service import Service

STEPS = 20


def durations(delays: list[float], noise: float = 0.0) -> np.ndarray[Any, Any]:
    """Ranks that arrive late by so many seconds at a collective of 5 ms, step by step."""
    rng = np.random.default_rng(0)
    late = np.asarray(delays) + rng.exponential(noise, (50, len(delays)))
    return np.asarray(late.max(axis=1, keepdims=True) - late + 0.005)


def test_a_duration_is_waiting_plus_own_work() -> None:
    parts = communication.separate({0: 0.027, 1: 0.007, 2: 0.017})
    assert [p.wait for p in parts.values()] == pytest.approx([0.02, 0.0, 0.01])
    assert [p.own for p in parts.values()] == [0.007] * 3
    assert [p.duration for p in parts.values()] == [0.027, 0.007, 0.017]
    assert communication.separate({}) == {}


@pytest.mark.parametrize("ranks", [2, 3, 4, 7, 8])
def test_the_late_rank_is_the_cause_wherever_it_sits(ranks: int) -> None:
    for slow in range(ranks):
        table = durations([0.02 * (rank == slow) for rank in range(ranks)], noise=0.001)
        (cause,) = communication.causes(range(ranks), table, 0.1)
        assert cause.rank == slow
        assert cause.lost_seconds == pytest.approx(0.02, abs=0.002)
        assert cause.lost_share == pytest.approx(0.2, abs=0.02)


def test_two_of_four_that_are_late_are_both_named_the_later_first() -> None:
    causes = communication.causes([0, 1, 2, 3], durations([0.0, 0.02, 0.03, 0.0]), 0.1)
    assert [c.rank for c in causes] == [2, 1]


def test_nobody_is_named_without_a_reason() -> None:
    by_turns = durations([0.0, 0.0, 0.0], noise=0.03)
    assert communication.causes([0, 1, 2], by_turns, 0.1) == ()
    late = durations([0.0, 0.02])
    assert communication.causes([0, 1], late, 1.0) == ()  # 2 % of a long step
    assert communication.causes([0, 1], late[:9], 0.1) == ()  # too few steps
    assert communication.causes([0, 1], late, 0.0) == ()
    assert communication.causes([0], durations([0.0]), 0.1) == ()


def test_an_offset_of_clocks_cannot_change_the_answer() -> None:
    """Durations are all that is compared: the others wait as long wherever their clocks stand."""
    begun, end = np.array([0.0, 0.02, 0.0]), 0.025
    offsets = np.array([3600.0, -17.0, 0.5])
    table = np.tile((end + offsets) - (begun + offsets), (STEPS, 1))
    (cause,) = communication.causes([0, 1, 2], table, 0.1)
    assert cause.rank == 1


# -- the first bad rank ------------------------------------------------------------------------


def sick(told: dict[int, float | None], event: int | None = None, world: int = 3) -> str:
    """The rank that the alert names after a bad step of which each rank says so much."""
    healthy = step(0, loss=dict.fromkeys(range(world), 1.0))
    bad = step(1, nan=[0], loss=dict.fromkeys(range(world), 1.0))
    ranks = {
        rank: RankStep(
            group=0,
            time_ns=said.time_ns,
            scalars=dict(said.scalars)
            | ({} if told.get(rank) is None else {"local_nonfinite_buckets": told[rank] or 0.0}),
            stepped=True,
            capture="pre_clip",
        )
        for rank, said in bad.ranks.items()
    }
    events: tuple[tuple[int, wire.Event], ...] = ()
    if event is not None:
        events = ((event, {"kind": "local_nonfinite", "buckets": [0], "parameters": ["a"]}),)
    joined = Step(1, 1, bad.time_ns, bad.first_received_ns, bad.groups, ranks, events)
    verdicts = engine(["NonFiniteGradient"], world_size=world).advance([healthy, joined])
    (condition,) = held(verdicts).values()
    return condition.annotations["rank"]


def test_the_alert_names_the_rank_whose_own_gradients_were_bad() -> None:
    assert sick({0: 0.0, 1: 2.0, 2: 0.0}) == "1"
    assert sick({}, event=2) == "2"
    assert sick({0: 1.0, 1: 0.0, 2: 0.0}, event=2) == "0, 2"


def test_the_alert_says_why_no_rank_is_named() -> None:
    assert sick({}) == "rank unknown: local attribution off"
    assert sick({0: 0.0, 1: None, 2: 0.0}) == "rank unknown: local attribution off"
    assert sick({0: 1.0, 1: 1.0, 2: 3.0}) == (
        "rank unknown: the gradients are non-finite on every rank"
    )
    assert sick({0: 0.0, 1: 0.0, 2: 0.0}) == (
        "no rank: finite on each of them, and too large when they were summed"
    )


# -- over HTTP ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(tmp_path_factory.mktemp("communication"))
    yield made
    made.close()


def report(service: Service, run: str, by_rank: dict[int, dict[str, float]], world: int) -> None:
    """Ranks that say the same of each of their steps; their clocks are an hour apart."""
    for rank, scalars in by_rank.items():
        begin(service, run, rank=rank, nonce=f"n{rank}", world_size=world)
        frames = [
            frame(
                seq,
                scalars=scalars,
                time_ns=time.time_ns() - rank * 3600 * 10**9 - (STEPS - seq) * 10**8,
                values=b"",
            )
            for seq in range(1, STEPS + 1)
        ]
        answer = send(service, batch(run, frames, rank=rank, nonce=f"n{rank}"))
        assert answer.json()["stored"] == STEPS


def read(service: Service, run: str, **query: Any) -> dict[str, Any]:
    answer: dict[str, Any] = service.get(f"/v1/runs/{run}/communication", params=query)
    return answer


def said(first: float, exposed: float | None = None, **more: float) -> dict[str, float]:
    found = {"allreduce_seconds": first, "step_seconds": 0.1} | more
    return found if exposed is None else found | {"allreduce_exposed_seconds": exposed}


def test_the_victims_are_told_from_the_cause(service: Service) -> None:
    ranks = {0: said(0.006, 0.05), 1: said(0.006, 0.01), 2: said(0.005, 0.05), 3: said(0.007, 0.06)}
    report(service, "slow", ranks, 4)
    answer = read(service, "slow")
    (cause,) = answer["causes"]
    assert cause["rank"] == 1
    assert cause["lost_seconds"] == pytest.approx(0.04)
    assert cause["lost_share"] == pytest.approx(0.4)
    assert [r["wait_seconds"] for r in answer["ranks"]] == pytest.approx([0.04, 0.0, 0.04, 0.05])
    assert [r["wait_share"] for r in answer["ranks"]] == pytest.approx([0.4, 0.0, 0.4, 0.5])
    assert [r["seconds"] for r in answer["ranks"]] == pytest.approx([0.05, 0.01, 0.05, 0.06])
    assert answer["transfer_seconds"] == pytest.approx(0.005)
    assert answer["measure"] == "all-reduce, from the last hand-over"
    assert (answer["first_step"], answer["last_step"], answer["joined_steps"]) == (0, 19, 20)
    assert answer["reason"] is None
    assert read(service, "slow", from_step=5, to_step=9)["joined_steps"] == 5


def test_what_a_rank_did_not_measure_is_unknown_with_its_reason(service: Service) -> None:
    report(service, "half", {0: said(0.05), 1: {"loss": 1.0}}, 2)
    answer = read(service, "half")
    assert answer["causes"] == []
    assert answer["reason"] == "not measured on 1 of 2 ranks: 1"
    assert answer["ranks"][0]["measured_steps"] == STEPS
    assert answer["ranks"][1] == {
        "rank": 1,
        "seconds": None,
        "wait_seconds": None,
        "wait_share": None,
        "measured_steps": 0,
    }
    report(service, "none", {0: {"loss": 1.0}, 1: {"loss": 1.0}}, 2)
    answer = read(service, "none")
    assert answer["measure"] is None
    assert answer["transfer_seconds"] is None
    assert answer["reason"].startswith("no rank measured a collective")
    report(service, "single", {0: said(0.05)}, 1)
    assert read(service, "single")["reason"] == "one rank waits for nobody"


def test_without_a_measured_step_its_time_is_that_between_a_rank_s_own_frames(
    service: Service,
) -> None:
    report(service, "timed", {0: {"allreduce_seconds": 0.05}, 1: {"allreduce_seconds": 0.01}}, 2)
    answer = read(service, "timed")
    assert answer["step_seconds"] == pytest.approx(0.1, rel=0.05)
    assert [c["rank"] for c in answer["causes"]] == [1]


def test_sharded_ranks_wait_in_every_collective(service: Service) -> None:
    def shard(gather: float, scatter: float) -> dict[str, float]:
        seconds = {"all_gather_seconds": gather, "reduce_scatter_seconds": scatter}
        return {"step_seconds": 0.1} | seconds

    report(service, "sharded", {0: shard(0.01, 0.04), 1: shard(0.005, 0.005)}, 2)
    answer = read(service, "sharded")
    assert answer["measure"] == "reduce-scatter and all-gather"
    assert [c["rank"] for c in answer["causes"]] == [1]
    assert answer["causes"][0]["lost_seconds"] == pytest.approx(0.04)


def test_a_request_that_cannot_be_answered_is_a_problem(service: Service) -> None:
    report(service, "wide", {0: said(0.05)}, 1)
    for query in ({"from_step": 9, "to_step": 8}, {"from_step": 0, "to_step": 5000}):
        answer = service.call("GET", "/v1/runs/wide/communication", params=query)
        assert "from_step" in problem(answer, 400, "malformed")["detail"]
    assert service.call("GET", "/v1/runs/nobody/communication").status_code == 404
