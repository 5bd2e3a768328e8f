"""What budgets are counted by over a death of the service: nothing that was judged is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gradwarden_server.slo.tally import DELAYS, NAMES, NONFINITE, STEPS, Tally
from tests.server.pager import eventually
from tests.server.test_evaluator import Bench
from tests.server.test_store import PROJECT
from tests.server.traffic import batch, begin, frame, send
from tests.service import Service


@pytest.fixture
def bench(tmp_path: Path, store_url: str) -> Iterator[Bench]:
    made = Bench(tmp_path, store_url)
    yield made
    made.store.database.close()


def counters(bench: Bench) -> dict[str, float]:
    """As they were written last, those of one name together."""
    run = bench.store.runs.get(PROJECT, "r")
    assert run is not None
    found: dict[str, float] = {}
    for one in bench.store.recorded.newest(PROJECT, run.id, NAMES, 1):
        found[one.name] = found.get(one.name, 0.0) + one.points[-1][1]
    return found


def test_steps_that_were_judged_are_counted_again_after_a_crash(bench: Bench) -> None:
    """Some are written, some lie behind them in a snapshot, and some behind that."""
    bench.send(0, 49, sick=(30,))
    bench.round()
    bench.send(50, 349)  # a snapshot is taken after 256 steps
    bench.round()
    bench.send(350, 399)
    bench.round()
    assert counters(bench)[STEPS] == 50, "the minute is not over, so only the first are written"
    for _ in range(3):
        bench.crash()
        bench.round()
        assert counters(bench)[STEPS] == 400
        assert counters(bench)[NONFINITE] == 1


def test_a_detection_is_counted_with_the_alert_that_it_is_about(bench: Bench) -> None:
    bench.send(0, 9)
    bench.round()
    assert DELAYS[1] not in counters(bench)
    bench.send(10, 19, sick=(15,))
    bench.round()
    assert [a.alertname for a in bench.ledger.list(PROJECT, ("firing",)).items] == [
        "NonFiniteGradient"
    ]
    assert counters(bench)[DELAYS[1]] == 1
    bench.crash()
    bench.round()
    assert counters(bench)[DELAYS[1]] == 1


def test_a_kill_loses_no_step_of_a_budget(tmp_path: Path) -> None:
    service = Service(tmp_path)
    try:
        begin(service, "r1")
        for first, last in ((0, 39), (40, 359), (360, 399)):  # a snapshot is taken on the way
            frames = [frame(n + 1, bad_row=1 if n == 50 else None) for n in range(first, last + 1)]
            assert send(service, batch("r1", frames)).status_code == 200
            eventually(lambda: service.get("/v1/runs/r1")["unjudged"] == 0)
        service.restart()

        def counted(name: str) -> float:
            told = service.get("/api/v1/query", params={"query": f"sum({name})"})
            return sum(float(one["value"][1]) for one in told["data"]["result"])

        eventually(lambda: counted("gradwarden_steps_total") == 400)
        assert counted("gradwarden_nonfinite_steps_total") == 1
        assert counted("gradwarden_detection_delay_seconds_count") == 1
    finally:
        service.close()


def test_a_snapshot_without_counters_goes_on_from_what_was_written() -> None:
    """Of an older version: the steps up to the written ones are in the counters already."""
    tally = Tally([(STEPS, {}, 10.0)], 0)
    tally.recall(None, {1: 9})
    for step in (8, 9, 10, 11):
        tally.step(1, step, True, {})
    tally.caught_up()
    assert {count.name: count.value for count in tally.counts(1)}[STEPS] == 12
