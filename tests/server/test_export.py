"""Runs as files: streamed in short reads, whole or not at all, every number as it was sent."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sqlalchemy import delete

from gradwarden import wire
from gradwarden_server.store import tables as t
from gradwarden_server.store.reading.export import RunExport
from gradwarden_server.transfer import formats
from gradwarden_server.transfer.head import AttemptFacts, Head, RunFacts, StreamFacts
from tests.conftest import free_port
from tests.databases import sqlite_first
from tests.server import test_compaction as compaction
from tests.server.test_store import LAYOUT as LAYERS_OF_STORE
from tests.server.test_store import PROJECT, Store
from tests.server.traffic import LAYERS, LAYOUT, batch, begin, frame, problem, send
from tests.service import Service, gradwarden

PATIENCE = 60.0
KNOWN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
CHUNK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{}{}\r\n"
FORMATS = formats.FORMATS


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one small run of which every number is known."""
    running = Service(tmp_path_factory.mktemp("house"))
    begin(running, "known", config={"lr": 0.1}, training_job="nightly")
    begin(running, "known", rank=1, nonce="n2", host="node-2", place={"gpu": 3})
    send(running, batch("known", [known(1), known(2), known(3)]))
    other = [wire.Frame(1, 0, known(1).time_ns, {"loss": 2.5}, stepped=False)]
    send(running, batch("known", other, rank=1, nonce="n2"))
    yield running
    running.close()


def known(seq: int) -> wire.Frame:
    """Frame 2 has a sick layer, a loss that is no number, and an event."""
    sick = seq == 2
    return frame(
        seq,
        bad_row=2 if sick else None,
        time_ns=1_700_000_000_000_000_000 + seq,
        scalars={"loss": math.nan if sick else 1 / 3, "lr": -math.inf},
        events=({"kind": "checkpoint", "path": 'a,\n"b"', "ok": True},) if sick else (),
        roots=struct.pack("<33Q", *range(2**64 - 33, 2**64)),
    )


def fetch(service: Service, run: str, form: str, **query: Any) -> bytes:
    answer = service.call("GET", f"/v1/runs/{run}/export", params={"format": form, **query})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-disposition"] == f'attachment; filename="{run}.{form}"'
    return answer.content


def test_jsonl_says_run_layouts_and_frames_one_a_line(house: Service) -> None:
    lines = [json.loads(line) for line in fetch(house, "known", "jsonl").splitlines()]
    assert [line["type"] for line in lines] == ["run", "layout", *["frame"] * 4]
    run, layout, first, second = lines[:4]
    assert (run["run"], run["training_job"], run["config"]) == ("known", "nightly", {"lr": 0.1})
    assert [s["host"] for s in run["streams"]] == ["node-1", "node-2"]
    assert [p["name"] for p in layout["parameters"]] == [p.name for p in LAYOUT.parameters]
    assert first["scalars"] == {"loss": 1 / 3, "lr": "-Infinity"}
    assert first["quantities"]["l2"] == [1] * LAYERS
    assert second["scalars"]["loss"] == "NaN"
    assert second["quantities"]["nan"] == [0, 0, 16, 0, 0, 0]
    assert second["quantities"]["l2"][2] == "NaN"
    assert second["events"] == [{"kind": "checkpoint", "path": 'a,\n"b"', "ok": True}]
    assert second["roots"][-1] == "f" * 16


def test_csv_and_parquet_hold_the_same_tidy_table(house: Service, tmp_path: Path) -> None:
    text = fetch(house, "known", "csv").decode()
    first, rest = text.split("\n", 1)
    assert json.loads(first.removeprefix("# "))["run"] == "known"
    rows = list(csv.DictReader(rest.splitlines(keepends=True)))
    file = tmp_path / "known.parquet"
    file.write_bytes(fetch(house, "known", "parquet"))
    table = pq.read_table(file)
    assert json.loads(table.schema.metadata[b"gradwarden"])["run"] == "known"
    assert table.column_names == list(rows[0])
    same = table.select(["kind", "attempt", "rank", "group", "step", "time_ns", "layer", "name"])
    assert [
        {k: "" if v is None else str(v) for k, v in row.items()} for row in same.to_pylist()
    ] == [{k: row[k] for k in same.column_names} for row in rows]
    layers = [row for row in rows if row["kind"] == "layer" and row["step"] == "1"]
    assert [row["layer"] for row in layers] == [p.name for p in LAYOUT.parameters]
    assert [row["nan"] for row in layers] == ["0", "0", "16", "0", "0", "0"]
    assert layers[2]["l2"] == "NaN"
    assert {row["weight_l2"] for row in layers} == {""}, "what was not sent is empty, not NaN"
    scalars = {r["name"]: r["value"] for r in rows if r["kind"] == "scalar" and r["step"] == "1"}
    assert scalars["loss"] == "NaN"


def test_steps_may_be_bounded(house: Service) -> None:
    lines = fetch(house, "known", "jsonl", **{"from": 1, "to": 1}).splitlines()
    assert [json.loads(line)["step"] for line in lines[2:]] == [1]
    lines = fetch(house, "known", "jsonl", **{"from": 2}).splitlines()
    assert [json.loads(line)["step"] for line in lines[2:]] == [2]


def test_what_cannot_be_exported_is_refused_with_a_problem(house: Service) -> None:
    problem(house.call("GET", "/v1/runs/none/export"), 404, "not-found")
    problem(house.call("GET", "/v1/runs/known/export?format=xlsx"), 400, "malformed")


def test_a_service_without_pyarrow_says_what_to_install(tmp_path: Path) -> None:
    # A stand-in that cannot be imported is what an environment without the extra looks like.
    stand_in = tmp_path / "without"
    stand_in.mkdir()
    (stand_in / "pyarrow.py").write_text("raise ImportError('gone')\n")
    path = os.pathsep.join([str(stand_in), os.environ.get("PYTHONPATH", "")])
    service = Service(tmp_path / "service", env={"PYTHONPATH": path})
    try:
        begin(service, "r")
        asked = service.call("GET", "/v1/runs/r/export?format=parquet")
        told = problem(asked, 501, "not-installed")
        assert 'pip install "gradwarden[parquet]"' in told["detail"]
        assert fetch(service, "r", "csv").startswith(b"# {")
    finally:
        service.close()


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, marks=[] if form in ("jsonl", "parquet") else pytest.mark.full)
        for form in FORMATS
    ],
)
def test_the_service_stops_reading_when_the_client_leaves(service: Service, form: str) -> None:
    """Fewer frames are read than there are, and it is counted as left."""
    run = f"long-{form}"
    begin(service, run)
    wide = wire.Layout(
        tuple(wire.Parameter(f"b.{i}", (4, 4), "float32", "b", "matrix") for i in range(500))
    )
    service.call("POST", "/v1/layouts", json=wide.to_json())
    total = 0
    for first in range(1, 2000, 50):
        frames = [
            frame(seq, values=struct.pack("<6f", seq, seq, 0, 0, 1, 1) * 500)
            for seq in range(first, first + 50)
        ]
        total += len(frames)
        sent = wire.Batch(wire.StreamKey(run, "a1", 0, "n1"), tuple(frames), wide.hash, 500)
        assert send(service, sent).json()["stored"] == 50
    before = counted(service, "gradwarden_export_frames_total")
    with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2]))) as leaving:
        leaving.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        asked = f"GET /v1/runs/{run}/export?format={form} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        leaving.sendall(asked.encode())
        assert leaving.recv(100).startswith(b"HTTP/1.1 200")
    deadline = time.monotonic() + PATIENCE
    while not counted(service, f'gradwarden_exports_total{{format="{form}",result="left"}}'):
        assert time.monotonic() < deadline, "the export never ended"
    read = counted(service, "gradwarden_export_frames_total") - before
    assert 0 <= read < total
    assert service.get(f"/v1/runs/{run}")["steps"] == [0, 1999]


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """The rooms of the store, on either database."""
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/x" if sqlite else request.getfixturevalue("postgres_url")
    made = Store(url)
    made.runs.put_layout(PROJECT, LAYERS_OF_STORE).result()
    yield made
    made.database.close()


def text_of(store: Store, first: int | None = None, last: int | None = None) -> bytes:
    """The run of the store as JSON Lines."""
    batches = RunExport(store.log).batches(PROJECT, "r", 2**31, first, last)
    layouts = {LAYERS_OF_STORE.hash: LAYERS_OF_STORE}
    head = Head(RunFacts("r"), [AttemptFacts("a1")], [StreamFacts("a1", 0)], layouts)
    return b"".join(formats.load("jsonl").write(head, batches))


@sqlite_first("store")
def test_a_compacted_run_is_the_same_file(store: Store) -> None:
    compaction.send(store, 300)
    compaction.send(store, 200, size=11, rank=1)
    whole, part = text_of(store), text_of(store, 90, 240)
    assert len(whole.splitlines()) == 502
    steps = {json.loads(line)["step"] for line in part.splitlines()[2:]}
    assert (min(steps), max(steps)) == (90, 240)
    assert compaction.compact_all(compaction.compactor(store)) > 2
    assert text_of(store) == whole
    assert text_of(store, 90, 240) == part


def test_nothing_is_read_ahead(store: Store) -> None:
    sent = compaction.send(store, 700)
    reading = RunExport(store.log).batches(PROJECT, "r", 2**31, None, None)
    assert next(reading).frames == sent[0].frames
    store.database.write(lambda connection: connection.execute(delete(t.frame_batch))).result()
    assert len(list(reading)) < len(sent) / 4


def counted(service: Service, series: str) -> float:
    """A sample of /metrics, or 0."""
    lines = service.call("GET", "/metrics").text.splitlines()
    return next((float(x.rpartition(" ")[2]) for x in lines if x.startswith(f"{series} ")), 0.0)


def test_the_command_writes_files_and_pipes(house: Service, tmp_path: Path) -> None:
    at = ("--url", house.url)
    file = tmp_path / "known.csv"
    done = gradwarden("export", "known", "-o", str(file), "--json", *at)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["format"] == "csv", "as the file ends"
    assert told["bytes"] == file.stat().st_size
    piped = gradwarden("export", "known", "--format", "csv", *at)
    assert piped.stdout.encode() == file.read_bytes()
    command = [sys.executable, "-m", "gradwarden_server.cli", "export", "known", *at]
    subprocess.run([*command, "--format", "parquet"], cwd=tmp_path, check=True)
    assert (tmp_path / "known.parquet").read_bytes()[:4] == b"PAR1"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["known.csv", "known.parquet"]


def test_the_command_says_what_is_wrong(house: Service, tmp_path: Path) -> None:
    at = ("--url", house.url)
    file = tmp_path / "x.jsonl"
    missing = gradwarden("export", "none", "-o", str(file), *at)
    assert (missing.returncode, "no run of that name" in missing.stderr) == (2, True)
    nobody = f"http://127.0.0.1:{free_port()}"
    away = gradwarden("export", "known", "-o", str(file), "--url", nobody)
    assert (away.returncode, "gradwarden serve" in away.stderr) == (3, True)
    nowhere = gradwarden("export", "known", "-o", str(tmp_path / "no" / "x.csv"), *at)
    assert (nowhere.returncode, "x.csv" in nowhere.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([KNOWN, CHUNK], r"broke off after 4 bytes .*nothing is kept"),
        ([KNOWN, b""], r"broke off \(Server disconnected"),
        ([CHUNK], r"broke off \(peer closed"),
    ],
    ids=["in the middle of the run", "before its first byte", "when asked for its name"],
)
def test_an_answer_that_breaks_off_leaves_no_file(
    tmp_path: Path, answers: list[bytes], said: str
) -> None:
    """As when the service dies, or a proxy gives up, in the middle of a run."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(PATIENCE)

        def break_off() -> None:
            for answer in answers:
                caller, _ = door.accept()
                with caller:
                    caller.recv(1 << 16)
                    caller.sendall(answer)

        broken = threading.Thread(target=break_off)
        broken.start()
        file = tmp_path / "r.jsonl"
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
        done = gradwarden("export", "r", "-o", str(file), "--url", url)
        broken.join()
    assert done.returncode == 3
    assert re.search(said, done.stderr)
    assert "run the same again" in done.stderr
    assert list(tmp_path.iterdir()) == []
