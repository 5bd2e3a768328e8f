"""What each answer of the service makes the SDK do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gradwarden import wire
from gradwarden.courier import Courier, Verdict
from gradwarden.errors import say
from gradwarden.outbox import Losses, Record
from gradwarden.spool import Spool
from gradwarden.sync import sync
from gradwarden.transport import Answer, HttpTransport, Unreachable
from tests.sdk.fake import FakeService, problem

LAYOUT = wire.Layout((wire.Parameter("w", (2,), "float32", "w", "matrix"),))
START = Record("start", json.dumps({"run": "r", "attempt": "a", "rank": 0, "nonce": "n"}).encode())
YES = Answer(200, {"attempt": "a", "hash": LAYOUT.hash, "stored": 1})
WHAT = Record("layout", json.dumps(LAYOUT.to_json()).encode())


def batch(first: int, count: int) -> Record:
    values = b"\0" * 4 * len(wire.QUANTITIES)
    frames = tuple(wire.Frame(first + i, i, 0, values=values) for i in range(count))
    sealed = wire.Batch(wire.StreamKey("r", "a", 0, "n"), frames, LAYOUT.hash, 1)
    return Record("batch", wire.encode(sealed), count, "a")


def courier(service: FakeService, losses: Losses | None = None, seen: Any = None) -> Courier:
    return Courier(HttpTransport(service.url), losses or Losses(), seen or (lambda _: None))


def test_a_service_that_lost_stream_and_layout_gets_them_again(service: FakeService) -> None:
    post = courier(service)
    for record in (START, WHAT, batch(1, 2)):
        assert post.deliver(record) is Verdict.ACKED
    service.frames.clear()
    service.layouts.clear()
    assert post.deliver(batch(3, 2)) is Verdict.ACKED
    assert sorted(service.frames["r", "a", 0]) == [3, 4]
    assert list(service.layouts) == [LAYOUT.hash]


@pytest.mark.parametrize(
    ("status", "slug"),
    [
        (400, "malformed"),
        (410, "run-deleted"),
        (415, "unsupported-media-type"),
        (422, "unsupported-version"),
    ],
)
def test_a_batch_refused_for_good_is_dropped_and_counted(status: int, slug: str) -> None:
    losses = Losses()
    with FakeService(lambda path, n: problem(status, slug)) as service:
        assert courier(service, losses).deliver(batch(1, 3)) is Verdict.DROPPED
    assert losses.counts() == {f"refused: {slug}": 3}


def test_a_batch_too_large_goes_in_halves(service: FakeService) -> None:
    service.script = lambda path, n: (
        problem(413, "too-large")
        if path == "/v1/ingest" and len(wire.decode(service.requests[-1][2]).frames) > 2
        else None
    )
    post = courier(service)
    post.deliver(START)
    post.deliver(WHAT)
    assert post.deliver(batch(1, 7)) is Verdict.ACKED
    assert sorted(service.frames["r", "a", 0]) == list(range(1, 8))
    service.script = lambda path, n: problem(413, "too-large")
    assert post.deliver(batch(8, 1)) is Verdict.DROPPED


def test_retry_after_is_a_lower_bound() -> None:
    with FakeService(lambda path, n: (429, {}, {"Retry-After": "7"})) as service:
        post = courier(service)
        assert post.deliver(batch(1, 1)) is Verdict.LATER
    assert post.pause >= 7


def test_backoff_grows_with_jitter_and_has_a_ceiling(service: FakeService) -> None:
    service.stop()
    post = courier(service)
    pauses = []
    for _ in range(30):
        assert post.deliver(batch(1, 1), timeout=1) is Verdict.LATER
        pauses.append(post.pause)
    assert max(pauses) <= 15
    assert max(pauses[10:]) > 1
    assert len(set(pauses)) > 20


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.mark.parametrize(
    "holder", ["dead here", "ours before", "alive here", "ours now", "elsewhere"]
)
def test_only_a_dead_holder_of_this_host_is_taken_over(
    service: FakeService, holder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_by = {
        "dead here": {"host": socket.gethostname(), "pid": dead_pid(), "nonce": "x"},
        "ours before": {"host": socket.gethostname(), "pid": os.getpid(), "nonce": "x"},
        "ours now": {"host": socket.gethostname(), "pid": os.getpid(), "nonce": "live"},
        "alive here": {"host": socket.gethostname(), "pid": os.getppid(), "nonce": "x"},
        "elsewhere": {"host": "elsewhere", "pid": 1, "nonce": "x"},
    }[holder]

    def script(path: str, n: int) -> Any:
        body = json.loads(service.requests[-1][2]) if path == "/v1/start" else {}
        if path == "/v1/start" and not body.get("takeover"):
            return problem(409, "run-already-live", held_by=held_by, live_seconds=3)
        return None

    service.script = script
    monkeypatch.setattr("gradwarden.courier.LIVE", {"live"})
    gone = holder in ("dead here", "ours before")
    post = courier(service)
    assert post.deliver(START) is (Verdict.ACKED if gone else Verdict.LATER)
    assert [s["takeover"] for s in service.starts] == ([True] if gone else [])
    if not gone:
        assert str(held_by["pid"]) in str(post.trouble)


def test_commands_ride_on_any_answer(service: FakeService) -> None:
    told: list[Any] = []
    service.commands = [{"id": "1", "kind": "pause", "args": {}}]
    courier(service, seen=told.extend).deliver(START)
    assert told == [{"id": "1", "kind": "pause", "args": {}}]


def test_headers_carry_token_and_project(service: FakeService) -> None:
    HttpTransport(service.url, "gw_abc", "vision").post("/v1/start", START.body, "a/b", 5)
    _, headers, _ = service.requests[-1]
    assert headers["Authorization"] == "Bearer gw_abc"
    assert headers["Gradwarden-Project"] == "vision"
    assert headers["Content-Type"] == "a/b"


def test_a_connection_that_went_stale_is_no_outage(service: FakeService) -> None:
    transport = HttpTransport(service.url)
    assert transport.post("/v1/start", START.body, "a/b", 5).ok
    service.stop()
    service.restart()
    assert transport._connection is not None
    assert transport._connection.sock is not None
    transport._connection.sock.shutdown(socket.SHUT_RDWR)
    assert transport.post("/v1/start", START.body, "a/b", 5).ok


def test_what_is_not_http_is_unreachable() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def noise() -> None:
        connection, _ = listener.accept()
        connection.recv(10_000)
        connection.sendall(b"SSH-2.0-nope\r\n\r\n")
        connection.close()

    threading.Thread(target=noise, daemon=True).start()
    transport = HttpTransport(f"http://127.0.0.1:{listener.getsockname()[1]}")
    with pytest.raises(Unreachable):
        transport.post("/", b"", "a/b", 2)
    listener.close()


def test_silence_ends_with_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = time.monotonic()
        with pytest.raises(Unreachable):
            HttpTransport(f"http://127.0.0.1:{listener.getsockname()[1]}").post(
                "/", b"", "a/b", 0.3
            )
        assert time.monotonic() - started < 3


class Memory:
    """A transport without a network: the seam is one method."""

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.paths = list(answers), []

    def post(self, path: str, body: bytes, media_type: str, timeout: float) -> Answer:
        self.paths.append(path)
        return self.answers.pop(0) if self.answers else YES

    def close(self) -> None:
        return


def spool_of(root: Path, *records: Record) -> Spool:
    spool = Spool(root, f"s{len(list(root.iterdir()))}", Losses())
    for record in records:
        assert spool.append(record)
    return spool


def test_sync_skips_live_spools_and_keeps_what_was_not_acked(tmp_path: Path) -> None:
    spool_of(tmp_path, START, WHAT, batch(1, 2)).close()
    live = spool_of(tmp_path, START)
    report = sync(tmp_path, "http://x", transport=Memory(YES, Answer(401)), tries=1)
    assert report.skipped == [live.directory]
    assert list(report.failed) == [tmp_path / "s0"]
    assert not report.ok
    memory = Memory()
    assert sync(tmp_path, "http://x", transport=memory).acked == 2
    assert memory.paths == ["/v1/start", "/v1/layouts", "/v1/ingest"]
    assert not (tmp_path / "s0").exists()
    live.close()


def test_sync_of_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no spool directory"):
        sync(tmp_path / "nowhere", "http://x", transport=Memory())


@pytest.mark.parametrize("status", [200, 202])
def test_a_yes_that_is_not_the_services_acks_nothing(status: int) -> None:
    with FakeService(lambda path, n: (status, {}, {})) as service:
        post = courier(service)
        for record in (START, WHAT, batch(1, 2)):
            assert post.deliver(record) is Verdict.LATER
        assert post.acked == 0
        assert "not a gradwarden service" in str(post.trouble)


def test_a_pause_for_days_is_cut_short() -> None:
    busy = FakeService(lambda path, n: (429, {}, {"Retry-After": "604800"}))
    with busy as service:
        post = courier(service)
        assert post.deliver(START) is Verdict.LATER
        assert post.pause <= 600


def test_a_disk_that_refuses_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    losses = Losses()
    spool = Spool(Path("/proc/self"), "s", losses)
    assert not spool.append(batch(1, 2))
    assert not spool.append(batch(3, 1))
    assert losses.total == 3
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("gradwarden: cannot spool to /proc/self/s (")


def test_what_a_stranger_answers_stays_on_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    say("cannot deliver (401 no\nsuch\x1b[2J token)")
    assert capfd.readouterr().err == "gradwarden: cannot deliver (401 no such [2J token)\n"
