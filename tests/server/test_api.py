"""The HTTP API over a real service: trainers in, people out."""

from __future__ import annotations

import json
import re
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradwarden import wire
from tests.server.traffic import (
    LAYERS,
    LAYOUT,
    batch,
    beat,
    begin,
    frame,
    problem,
    send,
    start_body,
)
from tests.service import Service


def heatmap(service: Service, run: str, **query: Any) -> tuple[dict[str, Any], bytes]:
    """The header and cells of a run's heatmap."""
    answer = service.call("GET", f"/v1/runs/{run}/heatmap", params=query)
    assert answer.headers["content-type"] == "application/octet-stream"
    (length,) = struct.unpack_from("<I", answer.content)
    header: dict[str, Any] = json.loads(answer.content[4 : 4 + length])
    return header, answer.content[4 + length :]


def judged(service: Service, run: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """A run of the list once the evaluator got as far as ``wanted`` says."""
    deadline = time.monotonic() + 30
    while True:
        found: dict[str, Any] = next(r for r in service.get("/v1/runs")["items"] if r["run"] == run)
        if wanted(found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def test_a_run_is_started_fed_and_read_back(service: Service) -> None:
    started = begin(service, "walk", config={"lr": 0.1}, world_size=1)
    assert (started["attempt"], started["ordinal"], started["commands"]) == ("a1", 1, [])
    assert started["url"].endswith("/runs/walk")
    answer = send(service, batch("walk", [frame(i) for i in range(1, 11)]))
    assert answer.json() == {"stored": 10, "duplicate": 0, "commands": []}

    listed = judged(service, "walk", lambda run: run["loss"] == pytest.approx(0.2))
    assert (listed["status"], listed["health"], listed["step"]) == ("running", "ok", 9)
    assert 0 < len(listed["spark"]) <= 48

    run = service.get("/v1/runs/walk")
    assert run["config"] == {"lr": 0.1}
    assert run["steps"] == [0, 9]
    assert [layer["name"] for layer in run["layers"]] == [p.name for p in LAYOUT.parameters]
    assert run["layers"][1] == {
        "i": 1, "name": "blocks.0.bias", "layer": "blocks.0", "block": "blocks.0",
        "kind": "matrix", "params": 16, "dtype": "float32",
    }  # fmt: skip
    assert run["attempts"][0]["last_step"] == 9
    assert (run["ranks"][0]["host"], run["ranks"][0]["ended"]) == ("node-1", False)

    header, cells = heatmap(service, "walk")
    assert (header["rows"], header["cols"]) == (LAYERS, 10)
    assert len(cells) == LAYERS * 10
    assert min(cells) > 0

    series = service.get("/v1/runs/walk/series", params={"keys": "loss,grad_norm,layer:2:l2"})
    assert series["step"] == list(range(10))
    assert series["keys"]["loss"]["last"][0] == pytest.approx(2.0)
    assert series["keys"]["layer:2:l2"]["max"][3] == pytest.approx(0.25)
    assert series["keys"]["grad_norm"]["last"][0] == pytest.approx(LAYERS**0.5)


def test_a_nan_is_a_mark_in_the_heatmap_and_never_breaks_the_json(service: Service) -> None:
    begin(service, "ill")
    frames = [frame(1), frame(2, bad_row=3, scalars={"loss": float("nan")})]
    assert send(service, batch("ill", frames)).status_code == 200
    header, cells = heatmap(service, "ill")
    assert cells[3 * header["cols"] + 1] == 255
    assert [3, 1, 16, 0] in header["nonfinite"]
    series = service.get("/v1/runs/ill/series", params={"keys": "loss"})["keys"]["loss"]
    assert series["nonfinite"] == [0, 1]
    assert series["last"][1] is None
    assert judged(service, "ill", lambda run: run["loss"] == "NaN")["spark"][-1] is None


def test_the_plain_json_form_is_the_same_batch(service: Service) -> None:
    begin(service, "plain")
    sent = batch("plain", [frame(1), frame(2, bad_row=0)])
    answer = service.call("POST", "/v1/ingest", json=wire.to_json(sent))
    assert answer.json()["stored"] == 2
    assert send(service, sent).json() == {"stored": 0, "duplicate": 2, "commands": []}
    header, _ = heatmap(service, "plain")
    assert [0, 1, 16, 0] in header["nonfinite"]


def test_a_start_may_be_repeated_and_an_unknown_member_is_ignored(service: Service) -> None:
    first = begin(service, "again")
    second = service.call("POST", "/v1/start", json=start_body("again", from_the_future=1))
    assert second.json() == first


def test_a_second_live_process_is_told_who_holds_the_rank(service: Service) -> None:
    begin(service, "held")
    assert beat(service, "held").status_code == 200
    other = start_body("held", nonce="n2", host="node-2", pid=200)
    refusal = problem(service.call("POST", "/v1/start", json=other), 409, "run-already-live")
    assert refusal["held_by"] == {"host": "node-1", "pid": 100, "nonce": "n1"}
    assert 0 <= refusal["live_seconds"] < 30
    assert "node-1" in refusal["detail"]
    taken = service.call("POST", "/v1/start", json=other | {"takeover": True})
    assert taken.status_code == 200
    refusal = problem(send(service, batch("held", [frame(1)])), 409, "run-already-live")
    assert refusal["held_by"]["nonce"] == "n2"


def test_commands_ride_on_answers_until_they_are_acked(service: Service) -> None:
    begin(service, "ordered")
    asked = {"rank": 0, "kind": "speak", "args": {"on": True}}
    issued = service.call("POST", "/v1/runs/ordered/commands", json=asked)
    assert issued.status_code == 201
    again = service.call("POST", "/v1/runs/ordered/commands", json=asked)
    assert again.json() == issued.json(), "the same command, still open, is not repeated"
    command = {"id": issued.json()["id"], "kind": "speak", "args": {"on": True}}
    assert send(service, batch("ordered", [frame(1)])).json()["commands"] == [command]
    who = {"run": "ordered", "attempt": "a1", "rank": 0, "nonce": "n1"}
    assert beat(service, "ordered").json() == {"commands": [command]}
    for _ in range(2):
        acked = service.call("POST", f"/v1/commands/{command['id']}/ack", json=who)
        assert acked.status_code == 204
    assert beat(service, "ordered").json() == {"commands": []}
    stranger = service.call("POST", f"/v1/commands/{command['id']}/ack", json=who | {"rank": 1})
    problem(stranger, 404, "not-found")
    problem(service.call("POST", "/v1/runs/none/commands", json=asked), 404, "not-found")


def test_events_are_told_in_words_and_a_finish_ends_the_run(service: Service) -> None:
    begin(service, "told")
    frames = [
        frame(1, events=({"kind": "checkpoint", "path": "ckpt/1", "ok": True, "bytes": 9},)),
        frame(2, events=({"kind": "mark", "name": "data", "value": "shard 7"},)),
        frame(3, events=({"kind": "finish", "status": "failed", "error": "OOM: 3 GiB"},)),
    ]
    assert send(service, batch("told", frames)).status_code == 200
    events = service.get("/v1/runs/told/events")["items"]
    assert [(e["kind"], e["text"]) for e in events] == [
        ("checkpoint", "ckpt/1"),
        ("mark", "data = shard 7"),
        ("finish", "failed: OOM: 3 GiB"),
    ]
    assert events[0]["data"]["bytes"] == 9
    later = service.get("/v1/runs/told/events", params={"from": 2})["items"]
    assert [e["step"] for e in later] == [2]
    assert service.get("/v1/runs/told")["status"] == "failed"


def test_lists_page_filter_and_stay_within_their_project(service: Service) -> None:
    mine = {"Gradwarden-Project": "paging"}
    for i in range(5):
        body = start_body(f"p{i}", owner="ana" if i % 2 else "tom")
        assert service.call("POST", "/v1/start", json=body, headers=mine).status_code == 200
    seen, cursor = [], None
    while True:
        query = {"project": "paging", "limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = service.get("/v1/runs", params=query)
        seen += [item["run"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ["p4", "p3", "p2", "p1", "p0"]
    of_ana = service.get("/v1/runs", params={"project": "paging", "q": "ana"})["items"]
    assert [item["run"] for item in of_ana] == ["p3", "p1"]
    ended = service.get("/v1/runs", params={"project": "paging", "state": "finished"})
    assert ended["items"] == []
    problem(service.call("GET", "/v1/runs/p1"), 404, "not-found")
    assert "paging" in service.get("/v1/session")["projects"]


def test_a_run_without_data_has_empty_pictures(service: Service) -> None:
    service.call("POST", "/v1/start", json=start_body("empty"))
    header, cells = heatmap(service, "empty")
    assert (header["rows"], header["cols"], cells) == (0, 0, b"")
    assert service.get("/v1/runs/empty/series")["step"] == []
    run = service.get("/v1/runs/empty")
    assert (run["layers"], run["steps"], run["loss"]) == ([], None, None)


def test_acked_frames_survive_a_kill_and_a_retry_is_a_duplicate(tmp_path: Path) -> None:
    service = Service(tmp_path)
    try:
        begin(service, "killed")
        sent = batch("killed", [frame(1), frame(2)])
        assert send(service, sent).json()["stored"] == 2
        service.restart()
        assert send(service, sent).json() == {"stored": 0, "duplicate": 2, "commands": []}
        more = send(service, batch("killed", [frame(2), frame(3)]))
        assert more.json() == {"stored": 1, "duplicate": 1, "commands": []}
        assert service.get("/v1/runs/killed")["steps"] == [0, 2]
        assert service.stop() == 0
    finally:
        service.close()


def test_probes_answer_and_every_answer_carries_its_request_id(service: Service) -> None:
    assert service.get("/-/healthy") == {"status": "ok"}
    assert service.get("/-/ready") == {"status": "ok"}
    named = service.call("GET", "/-/healthy", headers={"X-Request-Id": "mine-1"})
    assert named.headers["x-request-id"] == "mine-1"
    forged = service.call("GET", "/-/healthy", headers={"X-Request-Id": "a b<script>"})
    assert len(forged.headers["x-request-id"]) == 16
    assert named.headers["content-security-policy"].startswith("default-src 'self';")
    assert named.headers["x-content-type-options"] == "nosniff"
    assert "server" not in named.headers


def test_the_dashboard_is_served_under_its_routes_and_never_over_the_api(service: Service) -> None:
    page = service.call("GET", "/runs/some-run?x=step")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    problem(service.call("GET", "/v1/nothing"), 404, "not-found")
    problem(service.call("GET", "/api/v1/nothing"), 404, "not-found")
    for path in ("/assets/../index.html", "/assets/%2e%2e/%2e%2e/package.json", "/assets/%00"):
        answer = service.call("GET", path)
        assert b"dependencies" not in answer.content
        assert answer.status_code in (200, 404)
    problem(service.call("DELETE", "/v1/runs"), 405, "method-not-allowed")
    for path in ("/", "/runs/some-run", "/docs", "/runbooks/Watchdog", "/-/healthy"):
        asked, looked = service.call("GET", path), service.call("HEAD", path)
        assert (looked.status_code, looked.content) == (asked.status_code, b"")
        assert looked.headers["content-type"] == asked.headers["content-type"]
    assert service.call("HEAD", "/v1/runs").status_code == 405


def test_runbooks_are_pages_and_their_text_is_never_markup(service: Service) -> None:
    page = service.call("GET", "/runbooks/Watchdog")
    assert page.status_code == 200
    assert page.text.count("<h1>") == 1
    assert "<strong>Check first" in page.text
    assert "**" not in page.text
    linked = re.findall(r'href="(\w+\.md)"', page.text)
    assert linked
    assert all(service.call("GET", f"/runbooks/{link}").status_code == 200 for link in linked)
    source = service.call("GET", "/runbooks/Watchdog", headers={"Accept": "text/markdown"})
    assert source.headers["content-type"].startswith("text/markdown")
    for slug in ("nothing", "..%2f..%2fREADME", "%00"):
        problem(service.call("GET", f"/runbooks/{slug}"), 404, "not-found")


def test_the_openapi_document_is_complete(service: Service) -> None:
    document = service.get("/openapi.json")
    paths = document["paths"]
    for path in ("/v1/start", "/v1/ingest", "/v1/runs/{run}/heatmap", "/v1/alerts", "/metrics"):
        assert path in paths
    for path, operations in paths.items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            assert operation["description"], where
            assert "application/problem+json" in operation["responses"]["default"]["content"], where
            assert "422" not in operation["responses"], where
            if path.startswith("/v1/"):
                assert operation["security"], where
    bodies = paths["/v1/ingest"]["post"]["requestBody"]["content"]
    assert set(bodies) == {wire.MEDIA_TYPE, "application/json"}
    assert "POST /v1/ingest" in service.call("GET", "/docs").text


def test_frames_out_of_order_fill_their_places(service: Service) -> None:
    begin(service, "shuffled")
    order = [(7, 9), (1, 3), (4, 8), (1, 9)]
    answers = [
        send(service, batch("shuffled", [frame(i) for i in range(first, last + 1)])).json()
        for first, last in order
    ]
    assert [(a["stored"], a["duplicate"]) for a in answers] == [(3, 0), (3, 0), (3, 2), (0, 9)]
    series = service.get("/v1/runs/shuffled/series", params={"keys": "loss"})
    assert series["step"] == list(range(9))
    assert None not in series["keys"]["loss"]["last"]


def test_a_batch_from_the_future_is_stored_at_its_receipt_and_flagged(service: Service) -> None:
    begin(service, "early")
    ahead = time.time_ns() + 86_400 * 10**9
    sent = batch("early", [replace(frame(1), time_ns=ahead)])
    assert send(service, sent).json()["stored"] == 1
    (stored_ns,) = service.get("/v1/runs/early/series", params={"keys": "loss"})["time_ns"]
    assert stored_ns < time.time_ns()
    (event,) = service.get("/v1/runs/early/events")["items"]
    assert event["kind"] == "clock"
    assert "ahead" in event["text"]
