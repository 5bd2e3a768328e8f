"""All ranks at one step, and single series streamed; a reader that leaves is read for no more."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import create_engine, event, text

from gradwarden_server.api.compare import compared
from gradwarden_server.store import abandon
from gradwarden_server.store.reading.compare import Comparison, Told
from gradwarden_server.store.reading.timespan import TimeSpans
from tests.server import test_compaction as compacting
from tests.server.test_latest import store as both_stores
from tests.server.test_store import LAYOUT as SMALL
from tests.server.test_store import NOW, PROJECT, Store
from tests.server.test_store import batch as stored_batch
from tests.server.test_store import frame as stored_frame
from tests.server.traffic import LAYOUT, batch, begin, frame, problem, send, start_body
from tests.service import Service

store = both_stores


def told(*values: float) -> dict[int, Told]:
    return {rank: Told(5, value) for rank, value in enumerate(values)}


def outliers(*values: float) -> list[int]:
    ranks = list(range(len(values)))
    return [v.rank for v in compared(told(*values), ranks).values if v.outlier]


def test_who_is_far_from_the_others_is_marked() -> None:
    assert outliers(1.0, 1.1, 0.9, 1.05, 9.0) == [4]
    assert outliers(1.0, 1.1, 0.9, 1.05, 1.2) == []
    assert outliers(2.0, 2.0, 2.0, 2.001) == [3], "equal ranks leave no room"
    assert outliers(2.0, 2.0, 2.0 + 1e-9) == [], "sums in another order are equal"
    assert outliers(1.0, math.nan, 1.0) == [1]
    assert outliers(math.nan, math.nan, 1.0) == [], "most are bad: nobody stands out"
    assert outliers(1.0, 9.0) == [], "of two nobody knows who is right"
    assert outliers() == []


def begin_ranks(service: Service, run: str, ranks: int) -> None:
    """Ranks of one run on two nodes, each with a loss and a step time at steps 0 to 9."""
    begin(service, run, world_size=ranks)
    for rank in range(ranks):
        facts = {"rank": rank, "nonce": f"n{rank}", "host": f"node-{rank // 2}"}
        more = {"world_size": ranks, "place": {"gpu": f"gpu-{rank}", "node": f"node-{rank // 2}"}}
        if rank:
            answer = service.call("POST", "/v1/start", json=start_body(run, **facts, **more))
            assert answer.status_code == 200, answer.text
        seconds = 0.9 if rank == 2 else 0.3 + rank / 1000
        frames = [
            frame(
                seq,
                scalars={"loss": 1.0 / seq, "step_seconds": seconds},
                values=frame(seq).values if rank < 2 and seq % 4 == 1 else b"",
            )
            for seq in range(1, 11)
        ]
        sent = batch(run, frames, rank=rank, nonce=f"n{rank}" if rank else "n1", group=rank // 2)
        assert send(service, sent).json()["stored"] == 10


def test_ranks_stand_side_by_side_with_their_places(service: Service) -> None:
    begin_ranks(service, "fleet", 4)
    keys = "loss,step_seconds,grad_norm,layer:1:l2,nobody"
    seen = service.get("/v1/runs/fleet/compare", params={"step": 7, "keys": keys})
    assert seen["step"] == 7
    assert [r["rank"] for r in seen["ranks"]] == [0, 1, 2, 3]
    assert seen["ranks"][3]["host"] == "node-1"
    assert seen["ranks"][3]["place"]["gpu"] == "gpu-3"
    seconds = seen["keys"]["step_seconds"]
    assert [v["value"] for v in seconds["values"]] == pytest.approx([0.3, 0.301, 0.9, 0.303])
    assert [v["outlier"] for v in seconds["values"]] == [False, False, True, False]
    assert {v["step"] for v in seconds["values"]} == {7}
    assert seconds["median"] == pytest.approx(0.302)
    assert seen["keys"]["loss"]["mad"] == 0
    # Matrices were captured by the speakers alone, and every fourth step.
    norm, layer = seen["keys"]["grad_norm"], seen["keys"]["layer:1:l2"]
    assert norm["told_by"] == layer["told_by"] == [0, 1]
    assert [v["step"] for v in layer["values"]] == [4, 4, None, None]
    assert [v["value"] for v in layer["values"]] == [pytest.approx(0.2)] * 2 + [None, None]
    assert norm["values"][0]["value"] == pytest.approx(0.2 * math.sqrt(len(LAYOUT.parameters)))
    assert seen["keys"]["nobody"]["told_by"] == []
    assert seen["keys"]["nobody"]["median"] is None
    newest = service.get("/v1/runs/fleet/compare")
    assert newest["step"] == 9
    assert [v["step"] for v in newest["keys"]["loss"]["values"]] == [9] * 4
    beyond = service.get("/v1/runs/fleet/compare", params={"step": 99, "keys": "layer:0:rms"})
    assert [v["step"] for v in beyond["keys"]["layer:0:rms"]["values"]] == [8, 8, None, None]


def test_what_cannot_be_compared_is_refused_by_name(service: Service) -> None:
    begin(service, "bare")
    empty = service.get("/v1/runs/bare/compare")
    assert (empty["step"], empty["keys"]["loss"]["values"][0]["value"]) == (None, None)
    problem(service.call("GET", "/v1/runs/nobody/compare"), 404, "not-found")
    for query, field in (
        ({"keys": "layer:0:l2"}, "keys"),
        ({"keys": "layer:0:shoe"}, "keys"),
        ({"keys": ","}, "keys"),
        ({"step": -1}, "step"),
        ({"step": 3, "to_time": "1"}, "step"),
    ):
        answer = service.call("GET", "/v1/runs/bare/compare", params=query)
        assert problem(answer, 400, "malformed")["field"] == field


def test_the_newest_attempt_counts_and_old_values_are_found_far_back(store: Store) -> None:
    store.runs.put_layout(PROJECT, SMALL).result()
    store.start()
    bare = [stored_frame(n, step=5000 + n, scalars={"loss": 2.0}) for n in range(4, 8)]
    store.send(
        stored_batch(
            *(stored_frame(n, value=n, scalars={"lr": n / 10}) for n in (1, 2, 3)),
            *(replace(f, values=b"") for f in bare),
        )
    )
    compare = Comparison(store.log, store.runs, store.history)
    found = compare.at(PROJECT, "r", ["loss", "lr", "layer:1:l2"], None)
    assert found is not None
    step, keys = found
    assert step == 5007
    assert keys["loss"] == {0: Told(5007, 2.0)}
    assert keys["layer:1:l2"] == {0: Told(2, 3.0)}, "thousands of steps before"
    store.start(attempt="a2", at=NOW + 1, first_step=1)
    store.send(stored_batch(stored_frame(1, step=1, value=9.0), attempt="a2"))
    found = compare.at(PROJECT, "r", ["layer:1:l2", "grad_norm"], 4000)
    assert found is not None
    assert found[1]["layer:1:l2"] == {0: Told(1, 9.0)}, "step 2 was redone"
    assert found[1]["grad_norm"][0].value == pytest.approx(9 * math.sqrt(3))


def test_compaction_changes_no_answer(store: Store) -> None:
    store.runs.put_layout(PROJECT, SMALL).result()
    for rank in (0, 1):
        compacting.send(store, 200, rank=rank)
    compare = Comparison(store.log, store.runs, store.history)
    spans = TimeSpans(store.database, store.log.segments)
    keys = ["loss", "lr", "grad_norm", "layer:1:l2", "layer:2:rms", "layer:0:update_ratio"]

    def answers() -> str:
        steps = [compare.at(PROJECT, "r", keys, step) for step in (4, 111, 112, 123, 390, 700)]
        times = [(low * 10**6, high * 10**6) for low, high in ((0, 300), (5, 69), (64, 65))]
        return repr(
            [steps, [spans.steps_between(PROJECT, "r", NOW + t0, NOW + t1) for t0, t1 in times]]
        )

    before = answers()
    assert "nan" in before, "the frames hold some"
    assert compacting.compact_all(compacting.compactor(store)) > 4
    assert answers() == before


# -- streams, and readers that leave -----------------------------------------------------------


def lines(service: Service, run: str, **query: Any) -> list[dict[str, Any]]:
    answer = service.call("GET", f"/v1/runs/{run}/samples", params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in answer.text.splitlines()]


def test_a_series_comes_whole_and_unjoined(service: Service) -> None:
    begin(service, "long")
    made = [frame(seq, scalars={"loss": 1.0 / seq}) for seq in range(1, 2501)]
    made[1499] = frame(1500, bad_row=2, scalars={"loss": math.inf})
    made[1999] = frame(2000, scalars={}, values=b"")
    for start in range(0, 2500, 500):
        send(service, batch("long", made[start : start + 500]))
    told = lines(service, "long", keys="loss,layer:2:l2")
    assert [x["step"] for x in told] == list(range(2500))
    assert told[7] == {
        "step": 7,
        "time_ns": made[7].time_ns,
        "loss": 1.0 / 8,
        "layer:2:l2": pytest.approx(1.0 / 8),
    }
    assert (told[1499]["loss"], told[1499]["layer:2:l2"]) == ("nonfinite", "nonfinite")
    assert (told[1999]["loss"], told[1999]["layer:2:l2"]) == (None, None)
    some = lines(service, "long", **{"keys": "loss", "from": 2000, "to": 2002})
    assert [x["step"] for x in some] == [2000, 2001, 2002]
    (odd,) = lines(service, "long", keys='a{b}"c', to=0)
    assert odd == {"step": 0, "time_ns": made[0].time_ns, 'a{b}"c': None}
    begin(service, "mute")
    assert lines(service, "mute", keys="loss") == []
    for query, field in (({"keys": "layer:99:l2"}, "keys"), ({}, "keys"), ({"keys": ""}, "keys")):
        answer = service.call("GET", "/v1/runs/long/samples", params=query)
        assert problem(answer, 400, "malformed")["field"] == field
    problem(service.call("GET", "/v1/runs/nobody/samples?keys=loss"), 404, "not-found")


def await_log(service: Service, words: str) -> str:
    """The first line of its log with these words."""
    deadline = time.monotonic() + 30
    while True:
        for line in service.log_text().splitlines():
            if words in line:
                return line
        assert time.monotonic() < deadline, service.log_text()[-2000:]
        time.sleep(0.05)


def ask(service: Service, path: str) -> socket.socket:
    """A reader that asked and takes nothing yet."""
    address = urlsplit(service.url)
    asking = socket.socket()
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    asking.connect((address.hostname, address.port))
    asking.sendall(f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
    return asking


def test_a_stream_that_nobody_takes_any_more_is_read_no_further(service: Service) -> None:
    begin(service, "left")
    steps = 20_000
    for start in range(0, steps, 2000):
        made = [
            frame(seq + 1, step=seq, scalars={"loss": 1.0}, values=b"")
            for seq in range(start, start + 2000)
        ]
        assert send(service, batch("left", made)).json()["stored"] == 2000
    keys = ",".join(f"{'x' * 120}{n}" for n in range(60))  # some kilobytes a line
    asking = ask(service, f"/v1/runs/left/samples?keys={keys}")
    assert asking.recv(15) == b"HTTP/1.1 200 OK"
    asking.close()
    line = json.loads(await_log(service, "samples of run left"))
    assert line["message"].endswith("steps read, left")
    assert int(line["message"].split()[4]) < steps


def test_a_read_ends_at_its_next_page_once_nobody_wants_it(store: Store) -> None:
    store.runs.put_layout(PROJECT, SMALL).result()
    store.start()
    for seq in range(1, 301):  # several pages of single-frame batches
        store.send(stored_batch(stored_frame(seq)))
    left = Event()
    seen: list[str] = []

    def leave(*arguments: Any) -> None:
        if "frame_batch.body" in arguments[2]:
            seen.append(arguments[2])
            left.set()

    event.listen(store.database.engine, "before_cursor_execute", leave)
    with abandon.unless(left), pytest.raises(abandon.Abandoned):
        store.history.heatmap(PROJECT, "r", "l2", None, None, 100)
    assert len(seen) == 1, "the page that was under way, and no other"
    assert store.history.heatmap(PROJECT, "r", "l2", None, None, 100) is not None
    assert len(seen) > 2


@pytest.fixture
def beside(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, str]]:
    """A service on PostgreSQL, and the URL of its database."""
    running = Service(tmp_path_factory.mktemp("beside"), db=postgres_url)
    yield running, postgres_url
    running.close()


def test_a_heatmap_that_waits_ends_when_its_reader_leaves(beside: tuple[Service, str]) -> None:
    service, url = beside
    begin(service, "slow")
    send(service, batch("slow", [frame(i) for i in range(1, 4)]))
    engine = create_engine(url)
    with engine.begin() as other:
        other.execute(text("LOCK TABLE layout IN ACCESS EXCLUSIVE MODE"))
        asking = ask(service, "/v1/runs/slow/heatmap")
        waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        deadline = time.monotonic() + 30
        while not other.execute(waiting).scalar_one():
            assert time.monotonic() < deadline, "the heatmap never came to its layouts"
        asking.close()
        for _ in range(3):  # the loop that answers these has seen the other one go
            service.get("/v1/session")
    engine.dispose()
    await_log(service, "the reader left; its reading ended")
