"""A range of time is the steps that were taken in it, by the service's clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gradwarden_server.api.series import SeriesFace
from gradwarden_server.store.reading.timespan import TimeSpans
from tests.server.test_api import heatmap
from tests.server.test_latest import store as both_stores
from tests.server.test_store import LAYOUT, NOW, PROJECT, Store, batch, frame
from tests.server.traffic import batch as sent_batch
from tests.server.traffic import begin, problem, send
from tests.server.traffic import frame as sent_frame
from tests.service import Service

SECOND = 1_000_000_000
store = both_stores


def timed(first: int, last: int, **facts: Any) -> list[Any]:
    """Frames of steps [first, last], one a second."""
    return [
        replace(frame(step + 1, step=step), time_ns=NOW + step * SECOND, **facts)
        for step in range(first, last + 1)
    ]


def test_ends_are_exact_within_a_batch(store: Store) -> None:
    store.start()
    store.runs.put_layout(PROJECT, LAYOUT).result()
    for first in range(0, 100, 10):
        store.send(batch(*timed(first, first + 9)), at=NOW + 100 * SECOND)
    spans = TimeSpans(store.database, store.log.segments)

    def between(low: float, high: float) -> tuple[int, int] | None:
        t0, t1 = (NOW + int(s * SECOND) for s in (low, high))
        return spans.steps_between(PROJECT, "r", t0, t1)

    assert between(-10, 1000) == (0, 99)
    assert between(13, 57) == (13, 57)
    assert between(12.5, 57.5) == (13, 57)
    assert between(20, 29) == (20, 29)
    assert between(14, 14) == (14, 14)
    assert between(14.2, 14.8) is None, "between two steps"
    assert between(-5, -1) is None
    assert between(99.5, 200) is None
    assert spans.steps_between(PROJECT, "nobody", NOW, NOW + SECOND) is None
    assert spans.steps_between("speech", "r", NOW, NOW + SECOND) is None


def test_a_host_whose_clock_is_wrong_is_found_at_the_right_time(store: Store) -> None:
    store.start()
    store.runs.put_layout(PROJECT, LAYOUT).result()
    hour = 3600 * SECOND
    store.beat("a1", at=NOW, sent=NOW - hour)
    late = [replace(f, time_ns=f.time_ns - hour) for f in timed(0, 9)]
    store.send(batch(*late), at=NOW + 20 * SECOND)
    spans = TimeSpans(store.database, store.log.segments)
    found = spans.steps_between(PROJECT, "r", NOW + 3 * SECOND, NOW + 5 * SECOND)
    assert found == (3, 5)
    assert spans.steps_between(PROJECT, "r", NOW - hour, NOW - 1) is None


def test_every_read_takes_a_time(service: Service) -> None:
    begin(service, "timed")
    start = 1_700_000_000 * SECOND  # 2023-11-14T22:13:20Z
    frames = [
        sent_frame(
            seq,
            time_ns=start + (seq - 1) * SECOND,
            scalars={"loss": 1.0, "allreduce_seconds": 0.1},
            events=({"kind": "mark", "name": "epoch", "value": seq},),
        )
        for seq in range(1, 61)
    ]
    assert send(service, sent_batch("timed", frames)).json()["stored"] == 60
    ten = {"from_time": "2023-11-14T22:13:30Z", "to_time": str(start + 19 * SECOND)}
    header, _ = heatmap(service, "timed", **ten)
    assert (header["step"][0], header["step_last"][-1]) == (10, 19)
    series = service.get("/v1/runs/timed/series", params=ten)
    assert series["step"] == list(range(10, 20))
    assert SeriesFace.model_validate(series).model_dump() == series, "the schema tells all"
    offset = {"from_time": "2023-11-15T00:14:18.5+02:00"}
    assert service.get("/v1/runs/timed/series", params=offset)["step"] == [59]
    told = service.get("/v1/runs/timed/communication", params=ten)
    assert (told["first_step"], told["last_step"]) == (10, 19)
    assert service.get("/v1/runs/timed/compare", params=ten)["step"] == 19
    events = service.get("/v1/runs/timed/events", params=ten)["items"]
    assert [e["step"] for e in events] == list(range(10, 20))
    samples = service.call("GET", "/v1/runs/timed/samples", params=ten | {"keys": "loss"})
    assert len(samples.text.splitlines()) == 10

    never = {"to_time": "2001-01-01T00:00:00Z"}
    assert heatmap(service, "timed", **never)[0]["cols"] == 0
    series = service.get("/v1/runs/timed/series", params=never | {"keys": "loss"})
    assert (series["step"], series["keys"]["loss"]["last"]) == ([], [])
    assert service.get("/v1/runs/timed/communication", params=never)["joined_steps"] == 0
    assert service.get("/v1/runs/timed/compare", params=never)["step"] is None
    assert service.get("/v1/runs/timed/events", params=never)["items"] == []
    samples = service.call("GET", "/v1/runs/timed/samples", params=never | {"keys": "loss"})
    assert (samples.status_code, samples.text) == (200, "")


@pytest.mark.parametrize("path", ["heatmap", "series", "samples", "events"])
def test_steps_and_times_together_are_refused(service: Service, path: str) -> None:
    begin(service, "both")
    query = {"from": 1, "to_time": "5", "keys": "loss"}
    answer = service.call("GET", f"/v1/runs/both/{path}", params=query)
    assert problem(answer, 400, "malformed")["fields"] == ["from", "to_time"]


def test_a_time_that_cannot_be_read_is_refused_by_name(service: Service) -> None:
    begin(service, "odd")
    both = {"from_step": 1, "from_time": "5"}
    answer = service.call("GET", "/v1/runs/odd/communication", params=both)
    assert problem(answer, 400, "malformed")["fields"] == ["from_step", "from_time"]
    for query, field in (
        ({"from_time": "yesterday"}, "from_time"),
        ({"to_time": "2026-01-01T00:00:00"}, "to_time"),
        ({"to_time": "-5"}, "to_time"),
        ({"from_time": "9", "to_time": "8"}, "from_time"),
    ):
        answer = service.call("GET", "/v1/runs/odd/series", params=query)
        assert problem(answer, 400, "malformed")["field"] == field
