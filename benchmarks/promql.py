"""How long does a PromQL query take over 3,200 series x 600 samples, beside the real Prometheus?

The same values go into both: here as one run of 16 replica groups of 200 layers through the ingest
endpoint, there as blocks made by ``promtool tsdb create-blocks-from openmetrics``. Every query is
asked over HTTP on a kept connection and timed from the request to the last byte of the answer, in
turns, so that a busy moment meets both. Ours is asked twice: while all is in the log, and when
compaction has made segments of it. The answers are compared. Both share this machine. The last
line of stdout is one JSON object.

    python benchmarks/promql.py                # some minutes
    python benchmarks/promql.py --quick        # 64 series x 120 samples: a smoke test
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import query_data
from ingest_peers import programs
from numpy.typing import NDArray
from query_data import Service, ingest, layout_of, wait, waiting

from gradwarden import wire

RUN = "bench-promql"
EVERY_S = 15
POINTS = 120
GOAL_RATIO = 2.0
QUERIES = {
    "max_by": "max by (layer) ({series})",
    "rate": "rate({series}[292s])",
    "quantile_over_time": "quantile_over_time(0.9, {series}[292s])",
}
"""Versions of Prometheus before 3 take in a sample at the old edge of a range: none lies there."""
OURS = f'gradwarden_layer{{run="{RUN}",quantity="l2"}}'
THEIRS = "gradient_l2"


@dataclass(frozen=True)
class Size:
    """What is asked."""

    groups: int
    layers: int
    samples: int


def main(argv: Sequence[str] | None = None) -> int:
    """Fill both, ask both; the exit code is 0 if every goal was met."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="calls of each query to each")
    parser.add_argument("--quick", action="store_true", help="little data: a smoke test")
    options = parser.parse_args(argv)
    size = Size(4, 16, 120) if options.quick else Size(16, 200, 600)
    rounds = 2 if options.quick else options.rounds
    figures: dict[str, Any] = {
        "series": size.groups * size.layers,
        "samples": size.samples,
        "cores": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],
    }
    with tempfile.TemporaryDirectory(prefix="gradwarden-promql-") as name:
        folder = Path(name)
        end_s = int(time.time()) // EVERY_S * EVERY_S
        values = levels(size)
        with prometheus(folder, size, values, end_s) as peer:
            service = Service(folder, evaluate=False)
            try:
                fill(service, size, values, end_s)
                figures["log"] = compared(service, peer, size, end_s, rounds)
                finish(service, size, end_s)
                began = time.perf_counter()
                wait(lambda: waiting(service) == 0, began, "compaction")
                figures["segments"] = compared(service, peer, size, end_s, rounds)
            finally:
                service.stop()
    figures["load_after"] = [round(load, 1) for load in os.getloadavg()]
    met = {
        f"{place}.{query}": figures[place][query]["ratio"] <= GOAL_RATIO
        for place in ("log", "segments")
        for query in figures[place]
    }
    goals = {"times_prometheus": GOAL_RATIO}
    print(json.dumps({"name": "promql", "figures": figures, "goals": goals, "met": met}))
    return 0 if options.quick or all(met.values()) else 1


def levels(size: Size) -> NDArray[np.float32]:
    """[groups, samples, layers], growing as a counter does, so that rates are rates."""
    numbers = np.random.default_rng(0)
    steps = numbers.lognormal(0, 1, (size.groups, size.samples, size.layers))
    return np.cumsum(steps, axis=1).astype(np.float32)


def fill(service: Service, size: Size, values: NDArray[np.float32], end_s: int) -> None:
    """One run through the front door; nothing of it is compacted while it runs."""
    layout = layout_of(size.layers)
    for group in range(size.groups):
        start = {"run": RUN, "attempt": "a1", "rank": group, "group": group, "nonce": "n"}
        start |= {"host": "node", "pid": 1, "world_size": size.groups}
        start["started_ns"] = (end_s - size.samples * EVERY_S) * 10**9
        service.post("/v1/start", json.dumps(start).encode())
        service.post("/v1/layouts", json.dumps(layout.to_json()).encode())
        matrix = np.zeros((size.samples, size.layers, len(wire.QUANTITIES)), np.float32)
        matrix[..., 0] = values[group]
        for first in range(0, size.samples, query_data.BATCH):
            steps = range(first, min(first + query_data.BATCH, size.samples))
            frames = tuple(
                frame(step, at_s(size, end_s, step), matrix[step].tobytes()) for step in steps
            )
            key = wire.StreamKey(RUN, "a1", group, "n", group)
            ingest(service, wire.Batch(key, frames, layout.hash, size.layers))


def finish(service: Service, size: Size, end_s: int) -> None:
    """Say that the run is over, so that compaction takes it."""
    for group in range(size.groups):
        end = frame(size.samples, end_s, b"", ({"kind": "finish", "status": "finished"},))
        ingest(service, wire.Batch(wire.StreamKey(RUN, "a1", group, "n", group), (end,)))


def frame(
    step: int, at_s: int, values: bytes, events: tuple[Mapping[str, Any], ...] = ()
) -> wire.Frame:
    """One frame."""
    capture: wire.Capture = "unclipped" if values else ""
    return wire.Frame(
        seq=step + 1,
        step=step,
        time_ns=at_s * 10**9,
        capture=capture,
        stepped=True if values else None,
        values=values,
        events=tuple(dict(event) for event in events),
    )


def at_s(size: Size, end_s: int, step: int) -> int:
    """When a sample was taken, in seconds."""
    return end_s - (size.samples - 1 - step) * EVERY_S


@contextmanager
def prometheus(
    folder: Path, size: Size, values: NDArray[np.float32], end_s: int
) -> Iterator[http.client.HTTPConnection]:
    """A Prometheus that holds the values in blocks."""
    text = folder / "values.om"
    with text.open("w", encoding="ascii") as file:
        file.write(f"# TYPE {THEIRS} gauge\n")
        for group in range(size.groups):
            for layer in range(size.layers):
                labels = f'{THEIRS}{{group="{group}",layer="blocks.{layer}.weight"}}'
                for step in range(size.samples):
                    value = float(values[group, step, layer])
                    file.write(f"{labels} {value!r} {at_s(size, end_s, step)}\n")
        file.write("# EOF\n")
    data = folder / "prometheus"
    promtool = programs.program("promtool", "prometheus")
    make = [promtool, "tsdb", "create-blocks-from", "openmetrics", str(text), str(data)]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    config, port = folder / "prometheus.yml", programs.free_port()
    config.write_text("global: {}\n")
    command = [
        programs.program("prometheus", "prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={data}",
        "--storage.tsdb.retention.time=100y",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with programs.running(command, folder / "prometheus.log", ready=(port, "/-/ready")):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        yield connection
        connection.close()


def compared(
    service: Service, peer: http.client.HTTPConnection, size: Size, end_s: int, rounds: int
) -> dict[str, Any]:
    """Median milliseconds of each query on both sides, and ours over theirs."""
    span_s = (size.samples // 2) * EVERY_S
    step_s = max(span_s // POINTS // EVERY_S, 1) * EVERY_S
    over = {"start": end_s - step_s * (POINTS - 1), "end": end_s, "step": step_s}
    asked = {}
    for name, query in QUERIES.items():
        asked[f"{name}_instant"] = (query, "query", {"time": end_s})
        asked[f"{name}_range"] = (query, "query_range", over)
    figures = {}
    for name, (query, path, when) in asked.items():
        ours = f"/api/v1/{path}?" + urlencode({"query": query.format(series=OURS), **when})
        theirs = f"/api/v1/{path}?" + urlencode({"query": query.format(series=THEIRS), **when})
        check(name, json.loads(service.get(ours)), json.loads(get(peer, theirs)))
        mine, other = [], []
        for _ in range(rounds):
            began = time.perf_counter()
            service.get(ours)
            between = time.perf_counter()
            get(peer, theirs)
            mine.append(1000 * (between - began))
            other.append(1000 * (time.perf_counter() - between))
        figures[name] = {
            "ours_ms": round(statistics.median(mine), 1),
            "prometheus_ms": round(statistics.median(other), 1),
            "ratio": round(statistics.median(mine) / statistics.median(other), 2),
        }
        print(f"{name:28} {figures[name]}", flush=True)
    return figures


def get(peer: http.client.HTTPConnection, path: str) -> bytes:
    """The body of a GET that must succeed."""
    peer.request("GET", path)
    answer = peer.getresponse()
    text = answer.read()
    if answer.status != 200:
        raise SystemExit(f"prometheus {path}: {answer.status} {text[:500]!r}")
    return text


def check(name: str, ours: Any, theirs: Any) -> None:
    """The answers must be the same, or the times say nothing."""
    mine, other = by_series(ours), by_series(theirs)
    if mine.keys() != other.keys():
        raise SystemExit(f"{name}: {len(mine)} series here, {len(other)} there")
    for series, points in other.items():
        for at, value in points.items():
            if at not in mine[series] or not math.isclose(mine[series][at], value, rel_tol=1e-6):
                raise SystemExit(f"{name}: {series} at {at}: {mine[series].get(at)} and {value}")


def by_series(answer: Any) -> dict[tuple[str, str], dict[float, float]]:
    """Values by group and layer, then by time."""
    return {
        (one["metric"].get("group", ""), one["metric"].get("layer", "")): {
            at: float(value) for at, value in one.get("values", [one.get("value")])
        }
        for one in answer["data"]["result"]
    }


if __name__ == "__main__":
    raise SystemExit(main())
