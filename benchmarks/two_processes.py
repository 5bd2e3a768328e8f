"""How long from a NaN to the page where one process takes frames and another judges them?

Two ``gradwarden serve`` share one PostgreSQL; the first is told not to evaluate. Each run says
a few healthy steps, is judged so far, and then its next frame is full of NaN: the clock runs
from before that frame is posted to the first process, until a local receiver has the page that
the second one sent. Then both idle beside the live runs, and PostgreSQL's count of transactions
says what that costs. The last line of stdout is one JSON object.

    python benchmarks/two_processes.py --db postgresql+psycopg://USER@HOST/EMPTY_DATABASE
"""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg

from gradwarden import wire

READY = "gradwarden: listening on "
LAYERS = 50
HEALTHY = 4
IDLE_SECONDS = 10.0
PATIENCE_SECONDS = 60.0
# Of the way itself: a poll of either process instead of a notice would take half a second.
GOALS = {"p50_ms": 250.0, "p99_ms": 1000.0}
LAYOUT = wire.Layout(
    tuple(
        wire.Parameter(f"blocks.{i}.weight", (4, 4), "float32", f"blocks.{i}", "matrix")
        for i in range(LAYERS)
    )
)


class Pager:
    """Notes when the first page of each run arrived."""

    def __init__(self) -> None:
        self.paged: dict[str, float] = {}
        self.changed = threading.Condition()
        pager = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                now = time.perf_counter()
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with pager.changed:
                    for alert in body["alerts"]:
                        pager.paged.setdefault(alert["labels"]["run"], now)
                    pager.changed.notify_all()
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook"


def main() -> int:
    """Run once; the exit code is 0 if every goal was met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", required=True, help="the URL of an empty PostgreSQL database")
    parser.add_argument("--runs", type=int, default=40)
    options = parser.parse_args()
    pager = Pager()
    with tempfile.TemporaryDirectory(prefix="gradwarden-bench-") as folder:
        receivers = Path(folder) / "receivers.yaml"
        receivers.write_text(
            f"receivers:\n  - name: pager\n    type: webhook\n    url: {pager.url}\n"
            "    allow_private: true\n"
        )
        taking, taker = _serve(options.db, receivers, "0")
        judging, judge = _serve(options.db, receivers, "1")
        try:
            seconds = sorted(_page(taker, judge, f"run-{n}", pager) for n in range(options.runs))
            idle = _transactions(options.db, IDLE_SECONDS)
        finally:
            for process in (taking, judging):
                process.terminate()
                process.wait(30)
    figures = {
        "runs": options.runs,
        "p50_ms": round(1000 * seconds[len(seconds) // 2], 1),
        "p99_ms": round(1000 * seconds[max(0, math.ceil(0.99 * len(seconds)) - 1)], 1),
        "most_ms": round(1000 * seconds[-1], 1),
        "idle_transactions_per_second": round(idle, 1),
    }
    met = {name: figures[name] <= goal for name, goal in GOALS.items()}
    print(json.dumps({"name": "two_processes", "figures": figures, "goals": GOALS, "met": met}))
    return 0 if all(met.values()) else 1


def _page(taker: str, judge: str, run: str, pager: Pager) -> float:
    """Seconds from the NaN of one run to its page."""
    start = {"run": run, "attempt": "a1", "rank": 0, "nonce": "n1", "host": "h", "pid": 1}
    _post(f"{taker}/v1/start", json.dumps(start | {"environment": "prod"}).encode())
    _post(f"{taker}/v1/layouts", json.dumps(LAYOUT.to_json()).encode())
    for seq in range(1, HEALTHY + 1):
        _post(f"{taker}/v1/ingest", _frame(run, seq, 1.0), wire.MEDIA_TYPE)
    deadline = time.perf_counter() + PATIENCE_SECONDS
    while _get(f"{judge}/v1/runs/{run}")["unjudged"]:
        if time.perf_counter() > deadline:
            raise SystemExit(f"{run} is not judged")
        time.sleep(0.01)
    sick = _frame(run, HEALTHY + 1, math.nan)
    began = time.perf_counter()
    _post(f"{taker}/v1/ingest", sick, wire.MEDIA_TYPE)
    with pager.changed:
        if not pager.changed.wait_for(lambda: run in pager.paged, PATIENCE_SECONDS):
            raise SystemExit(f"nobody was paged for {run}")
    return pager.paged[run] - began


def _frame(run: str, seq: int, value: float) -> bytes:
    bad = 0.0 if math.isfinite(value) else 16.0
    row = struct.pack("<6f", value, value, bad, 0, 0, 0)
    frame = wire.Frame(
        seq, seq, time.time_ns(), {"loss": 1.0}, capture="unclipped", values=row * LAYERS
    )
    key = wire.StreamKey(run, "a1", 0, "n1")
    return wire.encode(wire.Batch(key, (frame,), LAYOUT.hash, LAYERS, sent_ns=time.time_ns()))


def _transactions(url: str, seconds: float) -> float:
    """Transactions a second while nothing is sent."""
    count = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        seen = []
        for wait in (seconds, 0.0):
            connection.execute("SELECT pg_stat_clear_snapshot()")
            seen.append(connection.execute(count).fetchone())
            time.sleep(wait)
    first, last = seen
    assert first is not None
    assert last is not None
    return float(last[0] - first[0]) / seconds


def _serve(db: str, receivers: Path, evaluate: str) -> tuple[subprocess.Popen[str], str]:
    words = ["serve", "--port", "0", "--db", db, "--receivers", str(receivers)]
    process = subprocess.Popen(
        [sys.executable, "-m", "gradwarden_server.cli", *words],
        env=os.environ | {"GRADWARDEN_EVALUATE": evaluate},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(READY):
            return process, line.removeprefix(READY).strip()
    raise SystemExit("the service did not start")


def _post(url: str, body: bytes, media: str = "application/json") -> None:
    request = urllib.request.Request(url, body, {"Content-Type": media})
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        answer.read()


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
        return json.load(answer)


if __name__ == "__main__":
    raise SystemExit(main())
