"""How long does a reader wait: 500 layers x 100,000 steps of one run, and 1,000 runs at once?

The database is built once through the ingest endpoint: a run of four ranks, rank 0 with the six
statistics of every layer at every step (noisy, with spikes and a few NaN), a run with
histograms, and a thousand small runs, which the evaluator judges. Compaction has ended before
anything is measured. It stays in the temporary folder, named by its size, so that a second
measurement is cheap.

Measured over HTTP on one kept connection against ``gradwarden serve``: every call is timed from
the request to the last byte of the answer. ``cold`` is the first call after a restart of the
service (the operating system may still hold pages of the file). The service evaluates nothing
meanwhile: that it would do all the time on another process. Both share this machine. The last
line of stdout is one JSON object.

    python benchmarks/query.py                 # builds for minutes the first time
    python benchmarks/query.py --quick         # 40 layers x 4,000 steps: a smoke test
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from query_data import BIG, SHAPES, Service, Size, built_in

GOALS = {"heatmap_p50_ms": 100.0, "layer_p50_ms": 20.0, "latest_p50_ms": 20.0}
WARM_UP = 5
RESTARTS = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Build what is missing, measure; the exit code is 0 if every goal was met."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=500)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--calls", type=int, default=50, help="of each kind (at least 30 count)")
    parser.add_argument("--quick", action="store_true", help="little data: a smoke test")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "gradwarden-bench"
    )
    options = parser.parse_args(argv)
    size = Size(options.layers, options.steps, options.runs)
    if options.quick:
        size = Size(40, 4000, 20)
    folder = options.folder / size.name
    built = built_in(folder, size)
    figures: dict[str, Any] = {
        "layers": size.layers,
        "steps": size.steps,
        "runs": size.runs,
        "cores": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],
        **built,
        **measured(folder, size, options.calls),
    }
    figures["load_after"] = [round(load, 1) for load in os.getloadavg()]
    met = {name: figures[name] <= goal for name, goal in GOALS.items()}
    print(json.dumps({"name": "query", "figures": figures, "goals": GOALS, "met": met}))
    return 0 if options.quick or all(met.values()) else 1


def measured(folder: Path, size: Size, calls: int) -> dict[str, Any]:
    """Every kind of read, with the memory of the service before and after all of them."""
    chance = random.Random(0)
    heatmap = f"/v1/runs/{BIG}/heatmap?cols=2000"
    cold: dict[str, list[float]] = {"heatmap": [], "layer": []}
    for _ in range(RESTARTS):
        service = Service(folder, evaluate=False)
        service.get("/v1/session")
        cold["heatmap"].append(timed(service, heatmap)[0])
        cold["layer"].append(timed(service, layer(chance, size))[0])
        service.stop()
    figures: dict[str, Any] = {
        f"{name}_cold_p50_ms": round(statistics.median(spent), 1) for name, spent in cold.items()
    }
    for name in cold:
        print(f"{name:22} cold p50 {figures[f'{name}_cold_p50_ms']:8.1f} ms", flush=True)
    service = Service(folder, evaluate=False)
    try:
        service.get("/v1/session")
        before = service.memory_bytes()
        kinds: dict[str, tuple[int, Callable[[], str]]] = {
            "nothing": (calls, lambda: "/v1/session"),
            "heatmap": (calls, lambda: heatmap),
            "heatmap_other_metric": (calls, lambda: f"{heatmap}&metric={chance.choice(OTHERS)}"),
            "heatmap_20000_steps": (calls, lambda: heatmap + zoom(chance, size, 20_000)),
            "heatmap_2000_steps": (calls, lambda: heatmap + zoom(chance, size, 2000)),
            "layer": (calls, lambda: layer(chance, size)),
            "layer_2000_steps": (calls, lambda: layer(chance, size) + zoom(chance, size, 2000)),
            "layer_every_step": (5, lambda: f"/v1/runs/{BIG}/samples?keys={row(chance, size)}"),
            "latest": (calls, lambda: "/v1/latest?keys=loss,grad_norm"),
            "runs_list": (calls, lambda: f"/v1/runs?limit={min(1000, size.runs)}"),
            "compare": (calls, lambda: compare(chance, size)),
            "histogram": (calls, lambda: histogram(chance, size)),
        }
        for name, (count, path) in kinds.items():
            figures |= told_of(name, service, count, path)
        after = service.memory_bytes()
    finally:
        service.stop()
    figures["resident_before_bytes"] = before["resident"]
    figures["resident_after_bytes"] = after["resident"]
    figures["resident_peak_bytes"] = after["peak"]
    print(
        f"resident {before['resident'] / 2**20:.0f} MiB before, "
        f"{after['resident'] / 2**20:.0f} MiB after, {after['peak'] / 2**20:.0f} MiB at most"
    )
    return figures


OTHERS = ("absmax", "zero", "tiny", "rms")


def told_of(name: str, service: Service, count: int, path: Callable[[], str]) -> dict[str, Any]:
    """The median and the 95th percentile of some calls, after a few that do not count."""
    for _ in range(min(WARM_UP, count)):
        timed(service, path())
    results = sorted(timed(service, path()) for _ in range(count))
    spent = [milliseconds for milliseconds, _ in results]
    p50, p95 = statistics.median(spent), spent[round(0.95 * (count - 1))]
    size = max(body for _, body in results)
    print(f"{name:22} p50 {p50:8.1f} ms   p95 {p95:8.1f} ms   {size:>9} bytes", flush=True)
    return {f"{name}_p50_ms": round(p50, 2), f"{name}_p95_ms": round(p95, 2)}


def timed(service: Service, path: str) -> tuple[float, int]:
    """Milliseconds until the whole answer was there, and its bytes."""
    began = time.perf_counter()
    body = service.get(path)
    return (time.perf_counter() - began) * 1000, len(body)


def row(chance: random.Random, size: Size) -> str:
    return f"layer:{chance.randrange(size.layers)}:l2"


def layer(chance: random.Random, size: Size) -> str:
    return f"/v1/runs/{BIG}/series?points=2000&keys={row(chance, size)}"


def zoom(chance: random.Random, size: Size, steps: int) -> str:
    """Another part of the run each time."""
    first = chance.randrange(max(1, size.steps - steps))
    return f"&from={first}&to={first + steps - 1}"


def compare(chance: random.Random, size: Size) -> str:
    keys = f"loss,step_seconds,grad_norm,{row(chance, size)}"
    return f"/v1/runs/{BIG}/compare?keys={keys}&step={chance.randrange(size.steps)}"


def histogram(chance: random.Random, size: Size) -> str:
    step = chance.randrange(max(1, size.steps // 50))
    return f"/v1/runs/{SHAPES}/histogram?row={chance.randrange(size.layers)}&step={step}"


if __name__ == "__main__":
    raise SystemExit(main())
