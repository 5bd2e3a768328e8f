"""A run that sent something not finite is judged first; what is done now and then is spread."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from gradwarden import wire
from gradwarden_server.alerting.evaluator import Evaluator
from gradwarden_server.alerting.hurry import SELDOM_NS, Hurry
from gradwarden_server.alerting.rhythm import last_due_ms
from gradwarden_server.alerting.watch import RunWatch
from gradwarden_server.app import create_app
from gradwarden_server.model import DEFAULT_PROJECT
from gradwarden_server.settings import Settings
from tests.server.test_evaluator import SICK, Bench
from tests.server.test_store import NOW, PROJECT
from tests.server.traffic import FRAMES, LAYOUT, batch, frame, start_body

FLEET = tuple(f"run-{n:02}" for n in range(24))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    for run in FLEET:
        made.store.start(run)
    yield made
    made.store.database.close()


def watched(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs whose frames are judged, in their order."""
    order: list[str] = []
    evaluate = RunWatch.evaluate

    def noted(self: RunWatch, run: Any, entries: Any, *rest: Any) -> Any:
        if entries:
            order.append(run.run.run)
        return evaluate(self, run, entries, *rest)

    monkeypatch.setattr(RunWatch, "evaluate", noted)
    return order


def firing(bench: Bench) -> list[tuple[str | None, str]]:
    items = bench.ledger.list(PROJECT, ("firing",), severity="page").items
    return [(alert.run, alert.alertname) for alert in items]


@pytest.mark.parametrize("sick", [FLEET[0], FLEET[-1]], ids=["judged already", "still to come"])
def test_in_the_middle_of_a_round_a_nan_is_judged_before_the_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, sick: str
) -> None:
    for run in FLEET:
        bench.send(0, SICK - 1, run=run)
    bench.round()
    order = watched(bench, monkeypatch)
    for run in FLEET:
        bench.send(SICK, SICK, run=run)
    noted = RunWatch.evaluate

    def struck(*args: Any) -> Any:
        found = noted(*args)
        if len(order) == 5:
            monkeypatch.setattr(RunWatch, "evaluate", noted)
            bench.send(SICK + 1, SICK + 1, sick=(SICK + 1,), run=sick)
            bench.evaluator.hurry(PROJECT, sick)
        return found

    monkeypatch.setattr(RunWatch, "evaluate", struck)
    bench.round()
    assert order[5] == sick, "the sixth of them all"
    assert set(order) == set(FLEET), "nobody is left out"
    assert firing(bench) == [(sick, "NonFiniteGradient")]
    seen = dict(order=len(order), **Counter(order))
    bench.round()
    assert dict(order=len(order), **Counter(order)) == seen, "and nothing is judged twice"


def test_a_run_that_nobody_watches_yet_is_taken_up_and_judged_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = watched(bench, monkeypatch)
    for run in FLEET:
        bench.send(0, 3, run=run)
    bench.send(4, SICK, sick=(SICK,), run=FLEET[-1])
    bench.evaluator.hurry(PROJECT, FLEET[-1])
    bench.round()
    assert order[0] == FLEET[-1]
    assert sorted(set(order)) == sorted(FLEET)
    assert firing(bench) == [(FLEET[-1], "NonFiniteGradient")]


def test_a_hurry_for_a_run_of_another_process_changes_nothing(bench: Bench) -> None:
    bench.send(0, SICK, sick=(SICK,))
    bench.round()
    second = bench.process()
    second.hurry(PROJECT, "r")
    second.hurry(PROJECT, "nobody")
    second.hurry("no project", "r")
    second.round(bench.now)
    assert second.errors == 0
    assert firing(bench) == [("r", "NonFiniteGradient")]


def test_whoever_was_let_past_waits_like_the_others_for_a_while() -> None:
    now = NOW
    hurry = Hurry(lambda: now)
    assert hurry.tell("p", "a")
    assert hurry.tell("p", "b")
    assert not hurry.tell("p", "a"), "it is let past once"
    assert hurry.take() == {"p": {"a", "b"}}
    assert not hurry.tell("p", "a"), "and has just been"
    assert not hurry.waiting
    now += SELDOM_NS
    assert hurry.tell("p", "a")
    assert hurry.waiting


def test_where_everybody_hurries_all_take_their_turn() -> None:
    hurry = Hurry(lambda: NOW)
    passed = [hurry.tell("p", f"run-{n}") for n in range(10_000)]
    assert 0 < sum(passed) < 1000
    assert len(hurry.take()["p"]) == sum(passed)


def test_only_frames_that_are_not_finite_hurry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurried: list[tuple[str, str]] = []
    monkeypatch.setattr(Evaluator, "hurry", lambda _, project, run: hurried.append((project, run)))
    settings = Settings(db=f"sqlite:///{tmp_path}/gw.sqlite", evaluate=False)
    with TestClient(create_app(settings), "http://127.0.0.1") as client:

        def told(run: str, *frames: wire.Frame) -> list[tuple[str, str]]:
            assert client.post("/v1/start", json=start_body(run)).status_code == 200
            body = wire.encode(batch(run, frames))
            assert client.post("/v1/ingest", content=body, headers=FRAMES).status_code == 200
            found = list(hurried)
            hurried.clear()
            return found

        assert client.post("/v1/layouts", json=LAYOUT.to_json()).status_code == 200
        assert told("well", frame(1), frame(2)) == []
        assert told("sick", frame(1), frame(2, bad_row=3)) == [(DEFAULT_PROJECT, "sick")]
        lost = replace(frame(2), scalars={"loss": math.inf, "lr": 0.1})
        assert told("lost", frame(1), lost) == [(DEFAULT_PROJECT, "lost")]


def test_states_of_a_fleet_that_restarted_at_once_are_kept_at_many_moments(bench: Bench) -> None:
    for run in FLEET:
        bench.send(0, 3, run=run)
    bench.round()
    assert kept(bench) == dict.fromkeys(FLEET, 1), "a new run's at once: others may ask for it"
    bench.crash()
    together = []
    before = kept(bench)
    for step in range(4, 36):
        for run in FLEET:
            bench.send(step, step, run=run)
        bench.round()
        after = kept(bench)
        together.append(sum(after[run] != before[run] for run in FLEET))
        before = after
    assert sum(together) >= len(FLEET), "each of them within half a minute"
    assert max(together) <= len(FLEET) // 4


def kept(bench: Bench) -> dict[str, int]:
    """The log position that the kept state of each run's detectors stands for."""
    with bench.store.database.read() as connection:
        rows = connection.exec_driver_sql(
            "SELECT run.run, detector_state.position FROM detector_state "
            "JOIN run ON run.id = detector_state.run_id WHERE run.run LIKE 'run-%'"
        ).all()
    return {row[0]: row[1] for row in rows}


def test_what_is_due_once_in_an_interval_is_due_once_and_not_at_one_moment() -> None:
    names = [f"run-{n}" for n in range(1000)]
    for name in names[:20]:
        moments = {last_due_ms(name, 1000, now_ms) for now_ms in range(5000, 8000)}
        assert len(moments) in (3, 4)
        assert max(now_ms - last_due_ms(name, 1000, now_ms) for now_ms in range(5000, 8000)) == 999
    seconds = Counter(last_due_ms(name, 30_000, NOW // 10**6) // 1000 for name in names)
    assert len(seconds) >= 30
    assert max(seconds.values()) < 70
