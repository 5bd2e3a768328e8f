"""How long from a NaN in a backward pass until a webhook has its page?

A fleet of simulated ranks, each a run of its own, reports a step a second through the real HTTP
endpoint of a real ``gradwarden serve``. At random moments one of them has a NaN: the clock runs
from the moment that its frame names until a receiver on this machine is told. Beside it the same
incidents go through Prometheus and Alertmanager, once by their usual intervals (scrape 15 s,
evaluation 15 s, group_wait 30 s) and once as fast as they can be told to look (1 s, 1 s, 0 s).
Storms are not folded here: each incident is to be told by itself, on all sides. The last line of
stdout is one JSON object.

    python benchmarks/alert_latency.py
    python benchmarks/alert_latency.py --incidents 20 --ranks 40 --peer-incidents 0
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import alert_latency_peers as peers
from alert_pager import Pager, spread

from gradwarden import wire

READY = "gradwarden: listening on "
GOALS = {"p99_ms": 1000.0, "unpaged": 0.0}
LAYERS = 50
STEP_SECONDS = 1.0
WARM_STEPS = 3
GAP_SECONDS = 0.3
PATIENCE_SECONDS = 30.0
THREADS = 8
LAYOUT = wire.Layout(
    tuple(
        wire.Parameter(f"blocks.{i}.weight", (4, 4), "float32", f"blocks.{i}", "matrix")
        for i in range(LAYERS)
    )
)


class Rank:
    """One simulated trainer of one rank; its frames are numbered without a gap."""

    def __init__(self, port: int, run: str) -> None:
        self.run = run
        self._line = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        self._lock = threading.Lock()
        self._seq = 0

    def begin(self) -> None:
        """Start the run."""
        start = {"run": self.run, "attempt": "a1", "rank": 0, "nonce": "n1", "host": "h", "pid": 1}
        self._post("/v1/start", json.dumps(start | {"environment": "prod"}).encode())
        self._post("/v1/layouts", json.dumps(LAYOUT.to_json()).encode())

    def step(self, value: float = 1.0) -> int:
        """Report one step; when it was taken. One that is not finite is full of NaN."""
        with self._lock:
            self._seq += 1
            taken_ns = time.time_ns()
            bad = 0.0 if math.isfinite(value) else 16.0
            row = struct.pack("<6f", value, value, bad, 0, 0, 0)
            frame = wire.Frame(
                self._seq,
                self._seq,
                taken_ns,
                {"loss": 1.0, "step_seconds": STEP_SECONDS},
                capture="unclipped",
                stepped=True,
                values=row * LAYERS,
            )
            key = wire.StreamKey(self.run, "a1", 0, "n1")
            batch = wire.Batch(key, (frame,), LAYOUT.hash, LAYERS, sent_ns=taken_ns)
            self._post("/v1/ingest", wire.encode(batch), wire.MEDIA_TYPE)
        return taken_ns

    def _post(self, path: str, body: bytes, media: str = "application/json") -> None:
        self._line.request("POST", path, body, {"Content-Type": media})
        answer = self._line.getresponse()
        told = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{path} answered {answer.status}: {told[:300]!r}")


def main() -> int:
    """Run once; the exit code is 0 if every goal was met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--incidents", type=int, default=200, help="each of another run (200)")
    parser.add_argument("--ranks", type=int, default=200, help="that report each second (200)")
    parser.add_argument(
        "--peer-incidents", type=int, default=40, help="of each peer; 0 leaves them out (40)"
    )
    options = parser.parse_args()
    if options.incidents > options.ranks:
        parser.error("--incidents: at most one of each rank")
    figures: dict[str, Any] = {
        "ranks": options.ranks,
        "steps_per_second": options.ranks / STEP_SECONDS,
        **ours(options.ranks, options.incidents),
    }
    show("gradwarden", figures)
    compared = {"prometheus_defaults": peers.DEFAULTS, "prometheus_tuned": peers.TUNED}
    for name, tuning in compared.items() if options.peer_incidents else ():
        with tempfile.TemporaryDirectory(prefix="gradwarden-bench-") as folder:
            try:
                figures[name] = peers.measured(tuning, options.peer_incidents, Path(folder))
            except peers.Missing as error:
                figures[name] = {"missing": str(error)}
        show(name, figures[name])
    met = {name: figures.get(name, math.inf) <= goal for name, goal in GOALS.items()}
    print(json.dumps({"name": "alert_latency", "figures": figures, "goals": GOALS, "met": met}))
    return 0 if all(met.values()) else 1


def ours(ranks: int, incidents: int) -> dict[str, Any]:
    """Milliseconds from the NaN of each of some runs until its page."""
    pager = Pager()
    with tempfile.TemporaryDirectory(prefix="gradwarden-bench-") as folder:
        process, port = _serve(Path(folder), pager)
        try:
            fleet = [Rank(port, f"run-{n}") for n in range(ranks)]
            for rank in fleet:
                rank.begin()
            stop = threading.Event()
            drivers = [
                threading.Thread(target=_drive, args=(fleet[n::THREADS], stop), daemon=True)
                for n in range(THREADS)
            ]
            for driver in drivers:
                driver.start()
            time.sleep(WARM_STEPS * STEP_SECONDS)
            began: dict[str, int] = {}
            for rank in random.sample(fleet, incidents):
                time.sleep(random.uniform(0, 2 * GAP_SECONDS))
                began[rank.run] = rank.step(math.nan)
            pager.wait(list(began), PATIENCE_SECONDS)
            stop.set()
            for driver in drivers:
                driver.join()
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)
            pager.close()
    return spread(began, pager.paged)


def _drive(ranks: list[Rank], stop: threading.Event) -> None:
    """Let each of some ranks take its step each second, evenly spread over it."""
    turn = 0
    began = time.monotonic()
    while not stop.is_set():
        due = began + turn * STEP_SECONDS / len(ranks)
        if stop.wait(max(0.0, due - time.monotonic())):
            return
        ranks[turn % len(ranks)].step()
        turn += 1


def _serve(folder: Path, pager: Pager) -> tuple[subprocess.Popen[str], int]:
    receivers = folder / "receivers.yaml"
    receivers.write_text(
        f"receivers:\n  - name: pager\n    type: webhook\n    url: {pager.url}\n"
        "    allow_private: true\nroutes:\n  - receiver: pager\n    storm: false\n"
    )
    words = ["serve", "--port", "0", "--db", f"sqlite:///{folder / 'gw.sqlite'}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gradwarden_server.cli", *words, "--receivers", str(receivers)],
        env=os.environ | {"GRADWARDEN_SHADOW_DAYS": "0", "GRADWARDEN_RATE_PER_SECOND": "100000"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(READY):
            return process, int(line.strip().rpartition(":")[2])
    raise SystemExit("the service did not start")


def show(name: str, figures: dict[str, Any]) -> None:
    """One line for people."""
    if "p50_ms" not in figures:
        print(f"{name:<20} {figures.get('missing', 'nobody was paged')}", flush=True)
        return
    print(
        f"{name:<20} {figures['incidents']} incidents, {figures['unpaged']} without a page: "
        f"p50 {figures['p50_ms']:.0f} ms, p99 {figures['p99_ms']:.0f} ms, "
        f"most {figures['most_ms']:.0f} ms",
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
