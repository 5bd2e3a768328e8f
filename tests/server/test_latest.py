"""Many runs at a glance: the list and the newest values, in as many statements as for one run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event, update

from gradwarden_server.api.schemas import RunList
from gradwarden_server.api.summary import MOST_WITH_SPARKS, Summaries
from gradwarden_server.store import tables as t
from gradwarden_server.store.fleet import Fleet
from tests.server.test_store import LAYOUT, NOW, PROJECT, Store, batch, frame
from tests.server.traffic import batch as sent_batch
from tests.server.traffic import begin, problem, send, start_body
from tests.server.traffic import frame as sent_frame
from tests.service import Service

LOSS, NORM = "gradwarden_loss", "gradwarden_gradient_norm"


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    made = Store(store_url)
    yield made
    made.database.close()


def derive(
    store: Store, run: str, name: str, values: list[float], attempt: int = 1, group: int = 0
) -> None:
    """Derived series as the evaluator writes them, one point a commit."""
    found = store.runs.get(PROJECT, run)
    assert found is not None
    labels = {"attempt": str(attempt), "group": str(group)}
    for i, value in enumerate(values):
        point = [(attempt * 1000 + i, value)]
        store.database.write(
            lambda c, point=point: store.recorded.append(PROJECT, c, found.id, name, labels, point)
        ).result()


def tell(store: Store, run: str, **columns: Any) -> None:
    """Set columns of a run's row."""
    statement = update(t.run).where(t.run.c.run == run).values(**columns)
    store.database.write(lambda c: c.execute(statement)).result()


def fill(store: Store, runs: int) -> None:
    """So many more runs with two steps, a loss and two norms each."""
    store.runs.put_layout(PROJECT, LAYOUT).result()
    first = len(Fleet(store.database).page(PROJECT, limit=1000).items)
    for i in range(first, first + runs):
        store.start(f"r{i}")
        sent = batch(frame(1), frame(2))
        store.send(replace(sent, stream=replace(sent.stream, run=f"r{i}")))
        derive(store, f"r{i}", LOSS, [0.5])
        derive(store, f"r{i}", NORM, [1.0, 2.0])


def statements(store: Store) -> int:
    """How many statements a list of all runs costs a service that was just started."""
    told: list[str] = []

    def count(*arguments: Any) -> None:
        if not arguments[2].startswith(("BEGIN", "PRAGMA")):
            told.append(arguments[2])

    fleet = Fleet(store.database)
    event.listen(store.database.engine, "before_cursor_execute", count)
    try:
        page = fleet.page(PROJECT, limit=MOST_WITH_SPARKS)
        lines = Summaries(fleet).lines(PROJECT, page.items, NOW)
    finally:
        event.remove(store.database.engine, "before_cursor_execute", count)
    assert [line["loss"] for line in lines] == [0.5] * len(lines)
    assert [line["spark"] for line in lines] == [[1.0, 2.0]] * len(lines)
    assert [line["attempt"] for line in lines] == [1] * len(lines)
    return len(told)


def test_a_list_costs_as_many_statements_for_twenty_runs_as_for_two(store: Store) -> None:
    fill(store, 2)
    few = statements(store)
    fill(store, 18)
    assert statements(store) == few <= 4


def test_values_told_by_the_evaluator_win_over_derived_series(store: Store) -> None:
    fill(store, 2)
    tell(store, "r0", latest={"loss": "NaN", "grad_norm": 7.0})
    fleet = Fleet(store.database)
    page = fleet.page(PROJECT)
    values = fleet.newest_values(PROJECT, page.items)
    row = {run.run: run.id for run in page.items}
    assert values[row["r0"]] == {"loss": "NaN", "grad_norm": 7.0}
    assert values[row["r1"]] == {"loss": 0.5, "grad_norm": 2.0}
    lines = {x["run"]: x for x in Summaries(fleet).lines(PROJECT, page.items, NOW)}
    assert (lines["r0"]["loss"], lines["r1"]["loss"]) == ("NaN", 0.5)


def test_the_newest_attempt_and_the_first_group_speak_for_a_run(store: Store) -> None:
    fill(store, 1)
    derive(store, "r0", NORM, [9.0], attempt=2, group=4)
    derive(store, "r0", NORM, [3.0, 4.0, 5.0], attempt=2)
    fleet = Fleet(store.database)
    page = fleet.page(PROJECT)
    (row,) = (run.id for run in page.items)
    assert fleet.newest_values(PROJECT, page.items)[row] == {"loss": 0.5, "grad_norm": 5.0}
    assert fleet.recent_norms(PROJECT, [row], 2) == {row: [4.0, 5.0]}
    assert fleet.recent_norms(PROJECT, [row], 240) == {row: [3.0, 4.0, 5.0]}


def test_a_deleted_run_and_those_of_others_are_in_no_list(store: Store) -> None:
    fill(store, 2)
    tell(store, "r1", deleted_ns=NOW)
    fleet = Fleet(store.database)
    assert [run.run for run in fleet.page(PROJECT).items] == ["r0"]
    assert fleet.one(PROJECT, "r1") is None
    assert fleet.page("speech").items == []
    assert fleet.one("speech", "r0") is None


def test_newest_values_of_all_runs_come_as_columns(service: Service) -> None:
    begin(service, "told")
    begin(service, "silent")
    service.call("POST", "/v1/start", json=start_body("ended"))
    bad = sent_frame(11, bad_row=2, scalars={"loss": float("inf")})
    send(service, sent_batch("told", [*(sent_frame(i) for i in range(1, 11)), bad]))
    done = sent_frame(1, events=({"kind": "finish", "data": {"status": "finished"}},))
    assert send(service, sent_batch("ended", [done])).status_code == 200
    deadline = time.monotonic() + 30
    while True:
        latest = service.get("/v1/latest", params={"keys": "loss,nobody"})
        at = dict(zip(latest["run"], range(len(latest["run"])), strict=True))
        if latest["keys"]["loss"][at["told"]] == "Infinity":
            break
        assert time.monotonic() < deadline, latest
        time.sleep(0.05)
    assert latest["run"][:3] == ["ended", "silent", "told"]
    assert latest["keys"]["loss"][at["silent"]] is None
    assert latest["keys"]["nobody"] == [None] * len(latest["run"])
    assert latest["step"][at["told"]] == 10
    assert latest["complete"] is True
    assert {len(latest[name]) for name in ("run", "name", "status", "last_seen_ns")} == {len(at)}
    ended = service.get("/v1/latest", params={"status": "finished"})
    assert (ended["run"], ended["status"]) == (["ended"], ["finished"])

    listed = service.call("GET", "/v1/runs", params={"limit": 1000})
    page = RunList.model_validate_json(listed.content, strict=True)
    assert [run.run for run in page.items] == latest["run"]
    assert page.model_dump() == listed.json(), "the schema tells every field"


def test_what_cannot_be_listed_is_refused_by_name(service: Service) -> None:
    refused = problem(service.call("GET", "/v1/latest?status=asleep"), 400, "malformed")
    assert refused["field"] == "status"
    refused = problem(service.call("GET", "/v1/latest?keys="), 400, "malformed")
    assert refused["field"] == "keys"
    refused = problem(service.call("GET", "/v1/runs?limit=1001"), 400, "malformed")
    assert refused["field"] == "limit"
