"""What the benchmark of the store sends and counts, and what it makes of the figures."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradwarden import wire

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import ingest  # noqa: E402 - found through the line above
from ingest_peers import client, modes, ours, programs, remote_write, trackers, verdict  # noqa: E402
from ingest_peers.recording import WINDOW, Network, Stream, Window, streams  # noqa: E402

NOW_NS = 1_800_000_000_000_000_000
SECOND_NS = 1_000_000_000


def network(name: str, rows: int, windows: int) -> Network:
    """Statistics at every step; one column more at every fourth, of the first row."""
    numbers = np.random.default_rng(rows)
    parameters = tuple(
        wire.Parameter(f"{name}.{i}", (4, 4), "float32", name, "matrix") for i in range(rows)
    )
    made = []
    for window in range(windows):
        values = np.full((WINDOW, rows, len(wire.COLUMNS)), np.nan, np.float32)
        values[:, :, : len(wire.QUANTITIES)] = numbers.random((WINDOW, rows, 6))
        values[::4, 0, wire.COLUMNS.index("weight_l2")] = 1 + window
        frames = tuple(
            wire.Frame(1 + i, i, NOW_NS, {"loss": 1.5}, capture="unclipped") for i in range(WINDOW)
        )
        made.append(Window(frames, values))
    gaps = np.full(windows * WINDOW, 20_000_000)
    gaps[3] = 100  # two steps within one millisecond
    return Network(name, wire.Layout(parameters), tuple(made), gaps)


@pytest.fixture
def ranks() -> list[Stream]:
    return streams([network("a", 3, 4), network("b", 2, 4)], 8, NOW_NS)


def test_every_stream_plays_the_whole_recording_once_each_from_another_place(
    ranks: list[Stream],
) -> None:
    assert [(s.run, s.rank) for s in ranks[3:5]] == [("bench-0", 3), ("bench-1", 0)]
    assert {s.network.name for s in ranks} == {"a", "b"}
    for stream in ranks:
        assert len({id(window) for window in stream.windows}) == len(stream.network.windows)
    assert [s.shift for s in ranks] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert max(s.times_ns[-1] for s in ranks) <= NOW_NS
    for stream in ranks:
        assert (np.diff(stream.times_ms) > 0).all()


def test_a_sample_is_a_value_that_was_measured(ranks: list[Stream]) -> None:
    of = ranks[0].network.samples_of
    steps = ranks[0].network.steps
    assert of["l2"] == 3 * steps
    assert of["weight_l2"] == steps // 4
    assert of["hist_3"] == 0
    assert ranks[0].samples == sum(of.values())


def test_our_messages_are_whole_streams_of_the_recorded_values(ranks: list[Stream]) -> None:
    for stream, messages in zip(ranks, ours.bodies(ranks), strict=True):
        batches = [wire.decode(message.data) for message in messages]
        frames = [frame for batch in batches for frame in batch.frames]
        assert [f.seq for f in frames] == list(range(1, stream.network.steps + 1))
        assert [f.step for f in frames] == list(range(stream.network.steps))
        assert [f.time_ns for f in frames] == stream.times_ns.tolist()
        assert {(b.stream.run, b.stream.rank) for b in batches} == {(stream.run, stream.rank)}
        assert [e["kind"] for f in frames for e in f.events] == ["finish"]
        assert frames[-1].events
        for batch, window, message in zip(batches, stream.windows, messages, strict=True):
            assert batch.quantities == (*wire.QUANTITIES, "weight_l2")
            values = np.frombuffer(b"".join(f.values for f in batch.frames), "<f4")
            assert message.samples == window.samples == np.count_nonzero(~np.isnan(values))
            sent = values.reshape(WINDOW, batch.parameters, -1)
            places = [wire.COLUMNS.index(name) for name in batch.quantities]
            np.testing.assert_array_equal(sent, window.values[:, :, places])


def test_remote_write_holds_each_measured_value_at_its_time(ranks: list[Stream]) -> None:
    stream = ranks[2]
    (messages,) = remote_write.bodies([stream], lambda data: data)
    weights = wire.COLUMNS.index("weight_l2")
    times = stream.times_ms.tolist()
    for number, (message, window) in enumerate(zip(messages, stream.windows, strict=True)):
        series = dict(read_write_request(message.data))
        assert sum(map(len, series.values())) == message.samples == window.samples
        key = (("__name__", "gradient"), ("layer", "a.0"), ("quantity", "weight_l2"))
        found = series[(*key, ("rank", "2"), ("run", "bench-0"))]
        first = number * WINDOW
        assert found == [
            (float(window.values[i, 0, weights]), times[first + i]) for i in range(0, WINDOW, 4)
        ]


def test_import_lines_hold_the_same_samples(ranks: list[Stream]) -> None:
    (lines,) = remote_write.lines(ranks[:1])
    (written,) = remote_write.bodies(ranks[:1], lambda data: data)
    for line, message in zip(lines, written, strict=True):
        documents = [json.loads(text) for text in line.data.decode().splitlines()]
        flat = {
            tuple(sorted(d["metric"].items())): list(zip(d["values"], d["timestamps"], strict=True))
            for d in documents
        }
        assert flat == dict(read_write_request(message.data))
        assert line.samples == message.samples


def test_trackers_log_only_what_was_measured(ranks: list[Stream]) -> None:
    steps = trackers.steps(ranks[0])
    assert sum(map(len, steps)) == ranks[0].samples
    assert "a.0/weight_l2" in steps[0]
    assert "a.0/weight_l2" not in steps[1]


def test_a_connection_takes_whole_streams_in_turn() -> None:
    bodies = [[client.Body(bytes([s, i]), 1) for i in range(3 - s)] for s in range(3)]
    first, second = client.lanes(bodies, connections=2)
    assert [b.data for b in first] == [b"\0\0", b"\2\0", b"\0\1", b"\0\2"]
    assert [b.data for b in second] == [b"\1\0", b"\1\1"]


def test_rates_and_waits_come_from_the_counts() -> None:
    sent = client.Sent(samples=3_000_000, seconds=1.5, waits=[0.004, 0.001, 0.002, 0.003])
    assert sent.rate == 2_000_000
    assert (sent.wait_ms(0.0), sent.wait_ms(1.0)) == (1.0, 4.0)
    assert modes.per_quantity({"l2": 300, "nan": 5}, {"l2": 100, "nan": 50, "tiny": 0}) == {
        "l2": 3.0,
        "nan": 0.1,
    }


def test_a_debt_of_compaction_is_taken_off_the_sustained_rate() -> None:
    first = modes.Mark(10.0, samples=1000, frames=100, logged=50, cpu=1.0)
    kept_up = modes.between(first, modes.Mark(12.0, 5000, 500, logged=40, cpu=1.004))
    assert kept_up["samples_per_second"] == 2000
    assert kept_up["cpu_us_per_sample"] == 1.0
    behind = modes.between(first, modes.Mark(12.0, 5000, 500, logged=250, cpu=1.004))
    assert behind["samples_in_these_seconds"] == 2000
    assert behind["samples_per_second"] == 1000
    still = modes.between(first, first)
    assert (still["samples_per_second"], still["cpu_us_per_sample"]) == (0, None)


def test_the_processor_time_of_a_process_holds_that_of_its_ended_children() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{parent}; print('ended', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ended\n"
        assert programs.cpu_seconds(process.pid) >= 0.3
    finally:
        process.communicate(b"\n", timeout=60)


OURS = {
    "sqlite": {
        "flat_out": {"samples": 100, "samples_counted_by_service": 100, "bytes_per_sample": 2.5},
        "sustained": {"samples_per_second": 20_000_000, "cpu_us_per_sample": 0.06},
        "precision_12_bits": {
            "samples": 100,
            "samples_counted_by_service": 99,
            "bytes_per_sample": 1.0,
        },
    }
}
PEERS: dict[str, dict[str, Any]] = {
    "prometheus": {"samples_per_second": 1_000_000, "cpu_us_per_sample": 0.5},
    "victoria-metrics": {"samples_per_second": 2_500_000, "cpu_us_per_sample": 0.4},
    "mlflow": {"samples_per_second": 5_000, "cpu_us_per_sample": 200.0},
}


def test_the_best_of_the_others_is_what_counts() -> None:
    values = verdict.reached(OURS, PEERS)
    assert values["sqlite_sustained_over_time_series"] == 8.0
    assert values["sqlite_cpu_share_of_time_series"] == 0.15
    assert values["sqlite_sustained_over_mlflow"] == 4000.0
    met = verdict.met(values)
    assert met["sqlite_sustained_over_time_series"] is False
    assert met["sqlite_cpu_share_of_time_series"] is False
    assert met["sqlite_sustained_over_mlflow"] is True
    assert met["sqlite_bytes_per_sample"] is True
    assert set(met) == set(verdict.goals()) == set(values)


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    alone = {name: figures for name, figures in PEERS.items() if name != "victoria-metrics"}
    met = verdict.met(verdict.reached(OURS, alone))
    assert met["sqlite_sustained_over_time_series"] is None
    assert met["sqlite_sustained_over_mlflow"] is True
    assert met["sqlite_bytes_per_sample_12_bits"] is None  # one sample was not compacted
    assert met["postgresql_bytes_per_sample"] is None


def test_a_tool_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ingest.arguments(["--only", "sqlite,influx"])
    assert "no tool influx" in capsys.readouterr().err


@pytest.mark.full
def test_a_quick_run_says_what_it_would(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "ingest.py"), "--quick", "--only", "sqlite,mlflow"]
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=env)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["name"] == "ingest"
    assert set(result["met"]) == set(result["goals"]) == set(result["figures"]["reached"])
    figures = result["figures"]["ours"]["sqlite"]
    assert figures["flat_out"]["samples"] == result["figures"]["samples"] > 0
    assert figures["sustained"]["samples"] == result["figures"]["samples"]
    assert figures["flat_out"]["samples_per_second"] > 0
    assert result["met"]["sqlite_sustained_over_mlflow"] is None
    assert f"pip install --target {tmp_path}" in result["figures"]["absent"]["mlflow"]
    assert "NOT MEASURED" in done.stdout


Samples = list[tuple[float, int]]


def read_write_request(data: bytes) -> Iterator[tuple[tuple[tuple[str, str], ...], Samples]]:
    """A slow twin that reads protobuf field by field."""
    for _, series in fields(data):
        labels, samples = [], []
        for number, message in fields(series):
            parts = dict(fields(message))
            if number == 1:
                labels.append((parts[1].decode(), parts[2].decode()))
            else:
                samples.append((struct.unpack("<d", parts[1])[0], parts[2]))
        yield tuple(labels), samples


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = number()
        kind = key & 7
        if kind == 0:
            yield key >> 3, number()
            continue
        length = number() if kind == 2 else 8
        yield key >> 3, data[at : at + length]
        at += length
