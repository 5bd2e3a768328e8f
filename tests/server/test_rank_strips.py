"""Ranks side by side: whom a large world shows, what a window must not change, who drifted."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from gradwarden import wire
from gradwarden_server.api.drift import drifted
from gradwarden_server.model import Alert
from tests.server.fleet import Fleet, since
from tests.server.test_replicas import MISMATCH, NEVER, ROW, judge
from tests.server.traffic import begin, frame, send, start_body
from tests.service import Service

WORLD, STEPS = 512, 40
TOLD = range(4, WORLD, 8)
SICK, FIRST_SICK, SLOW, SLOWER = 300, 20, 508, 404


@pytest.fixture(scope="module")
def large(service: Service) -> Service:
    """One in eight ranks tells: rank 300 falls ill at 20, rank 4 at 30, two are slow."""
    paces = {SLOW: 0.13, SLOWER: 0.15}
    onsets = {SICK: FIRST_SICK, TOLD[0]: 30}
    begin(service, "large", rank=TOLD[0], nonce=f"n{TOLD[0]}", world_size=WORLD)
    for rank in TOLD:
        facts = {"rank": rank, "nonce": f"n{rank}", "world_size": WORLD}
        if rank != TOLD[0]:
            answer = service.call("POST", "/v1/start", json=start_body("large", **facts))
            assert answer.status_code == 200, answer.text
        frames = []
        for seq in range(1, STEPS + 1):
            sick = seq - 1 >= onsets.get(rank, STEPS)
            scalars = {"loss": math.nan if sick else 2.0, "step_seconds": paces.get(rank, 0.1)}
            frames.append(replace(frame(seq, scalars=scalars), values=b""))
        key = wire.StreamKey("large", "a1", rank, f"n{rank}")
        answer = send(service, wire.Batch(key, tuple(frames), "", 0, sent_ns=1))
        assert answer.status_code == 200, answer.text
    return service


def test_ranks_that_never_came_hide_nobody_who_is_sick_or_slow(large: Service) -> None:
    found = large.get("/v1/runs/large/ranks")
    shown = {line["rank"]: line for line in found["ranks"]}
    assert found["counts"]["missing"] == WORLD - len(TOLD)
    assert {SICK, SLOW, SLOWER, TOLD[0]} <= set(shown)
    assert len(shown) == 64
    assert found["left_out"] == WORLD - 64
    assert found["left_out_odd"] == WORLD - len(TOLD) - 60, "of the missing 60 are shown"


def test_columns_are_compared_over_all_ranks_shown_or_not(large: Service) -> None:
    found = large.get("/v1/runs/large/ranks")
    assert set(found["usual"]) == {0.1}
    assert set(found["slowest"]) == {SLOWER}
    assert set(found["longest"]) == {0.15}


@pytest.mark.parametrize("asked", ["", "?from=30&to=35", "?from=0&to=5", "?to_time=1"])
def test_who_was_sick_first_is_of_the_whole_run_whatever_is_looked_at(
    large: Service, asked: str
) -> None:
    found = large.get(f"/v1/runs/large/ranks{asked}")
    assert (found["first_bad"], found["first_bad_step"]) == ([SICK], FIRST_SICK)
    onsets = {line["rank"]: line["first_bad_step"] for line in found["ranks"]}
    assert (onsets[SICK], onsets[TOLD[0]]) == (FIRST_SICK, 30)


def raised(fleet: Fleet, name: str, **more: str) -> Alert:
    """The alert with the words that the detector says."""
    said = [c for v in judge(fleet) for c in v.conditions if c.active and c.alertname == name]
    return alert(**dict(said[0].annotations) | more)


def alert(state: str = "firing", **words: str) -> Alert:
    return Alert(
        id=1, project="default", run="r", labels={}, annotations={"attempt": "1"} | words,
        state=state, active_ns=1, fired_ns=1, resolved_ns=None, reason="",
    )  # fmt: skip


def test_who_drifted_is_read_from_what_the_detectors_say() -> None:
    every = {(rank, row): since(0) for rank in range(1, 4) for row in range(17)}
    never = raised(Fleet(weights=every), NEVER)
    assert set(drifted([never], 1)) == {0, 1, 2, 3}
    tie = raised(Fleet(ranks=2, weights={(1, ROW): since(200)}), MISMATCH)
    assert drifted([tie], 1) == {0: 213, 1: 213}
    many = {(rank, ROW): since(200) for rank in range(9)}
    some = raised(Fleet(ranks=24, weights=many), MISMATCH)
    assert some.annotations["rank"].endswith("and 1 more")
    assert set(drifted([some], 1)) == set(range(8))


def test_a_drift_that_is_over_counts_in_its_own_attempt_alone() -> None:
    over = alert("resolved", rank="3", step="90")
    assert drifted([over], 1) == {3: 90}
    assert drifted([over], 2) == {}
    assert drifted([alert("firing", rank="3", step="90")], 2) == {3: 90}
