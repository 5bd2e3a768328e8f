"""The same service on a real PostgreSQL: what the dialects could tell apart."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradwarden import wire
from tests.server.traffic import batch, beat, begin, frame, problem, send, start_body
from tests.service import Service, gradwarden


@pytest.fixture
def pair(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Service]]:
    """Two processes that share one database."""
    running: list[Service] = []
    for name in ("one", "two"):
        running.append(Service(tmp_path_factory.mktemp(name), db=postgres_url))
    yield running[0], running[1]
    for service in running:
        service.close()


def test_two_processes_share_runs_frames_and_commands(pair: tuple[Service, Service]) -> None:
    one, two = pair
    begin(one, "shared")
    text = json.dumps(start_body("bare", config={"n": float("inf"), "nul": "a\x00b"}))
    headers = {"Content-Type": "application/json"}
    assert one.call("POST", "/v1/start", content=text, headers=headers).status_code == 200
    assert two.get("/v1/runs/bare")["config"] == {"n": "Infinity", "nul": "ab"}
    assert send(one, batch("shared", [frame(1), frame(2)])).json()["stored"] == 2
    again = send(two, batch("shared", [frame(2), frame(3, bad_row=1)]))
    assert again.json() == {"stored": 1, "duplicate": 1, "commands": []}
    assert two.get("/v1/runs/shared")["steps"] == [0, 2]
    asked = {"rank": 0, "kind": "pause", "args": {}}
    issued = one.call("POST", "/v1/runs/shared/commands", json=asked).json()
    deadline = time.monotonic() + 20
    while [c["id"] for c in beat(two, "shared").json()["commands"]] != [issued["id"]]:
        assert time.monotonic() < deadline
    deadline = time.monotonic() + 20
    while not (alerts := one.get("/v1/alerts")["items"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert alerts[0]["alertname"] == "NonFiniteGradient"
    assert two.get(f"/v1/alerts/{alerts[0]['id']}")["timeline"]
    assert "gradwarden_run_last_step" in two.call("GET", "/metrics").text


def test_tokens_are_made_beside_a_running_service(pair: tuple[Service, Service]) -> None:
    one, two = pair
    made = gradwarden("token", "create", "--name", "x", "--scope", "read", "--db", one.db)
    assert made.returncode == 0, made.stderr
    bearer = {"Authorization": f"Bearer {made.stdout.strip()}"}
    for service in (one, two):
        assert service.call("GET", "/v1/runs", headers=bearer).status_code == 200
    (token,) = one.get("/v1/tokens")["items"]
    assert one.call("DELETE", f"/v1/tokens/{token['id']}").status_code == 204
    problem(one.call("GET", "/v1/runs", headers=bearer), 401, "unauthenticated")


def test_hostile_text_is_kept_harmless(pair: tuple[Service, Service]) -> None:
    service = pair[0]
    begin(service, "odd")
    event = {"kind": "note\x00", "text": "\ud800 \x00", "huge": "HUGE", "status": "x" * 500}
    message = wire.encode(batch("odd", [frame(1)]))
    length = int.from_bytes(message[4:8], "little")
    header, payload = json.loads(message[8 : 8 + length]), message[8 + length :]
    events = [[0, event], [0, event | {"kind": "finish"}]]
    header |= {"events": events, "crc32": zlib.crc32(payload)}
    text = json.dumps(header).replace('"HUGE"', "1e999").encode()
    body = wire.MAGIC + len(text).to_bytes(4, "little") + text + payload
    answer = send(service, body)
    assert answer.status_code == 200, answer.text
    told = service.get("/v1/runs/odd/events")["items"]
    assert [e["kind"] for e in told] == ["note", "finish"]
    assert told[0]["data"]["huge"] == "Infinity"
    assert service.get("/v1/runs/odd")["status"] == "failed"
    far = start_body("far", rank=10_000_000, pid=2**62, first_step=2**62, started_ns=2**62)
    assert service.call("POST", "/v1/start", json=far).status_code == 200
    wrong = start_body("far", rank=10_000_001)
    problem(service.call("POST", "/v1/start", json=wrong), 400, "malformed")
    assert "unhandled error" not in service.log_text()


def test_a_database_that_is_away_is_told_as_unavailable(tmp_path: Path) -> None:
    gone = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    refused = gradwarden("serve", "--port", "0", "--db", gone)
    assert refused.returncode == 3
    assert "Traceback" not in refused.stderr
