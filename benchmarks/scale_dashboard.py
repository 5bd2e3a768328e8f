"""A person who watches: the calls of the runs page and of one run's page, every two seconds.

``python benchmarks/scale_dashboard.py URL RUN...`` goes on until its stdin ends, then prints
one JSON object: calls, failures, and how long the answers took. Each run is looked at for a
minute, as a browser would: the light calls always, the heavy ones for what is new.
"""

from __future__ import annotations

import http.client
import itertools
import json
import sys
import threading
import time
from urllib.parse import urlsplit

_EVERY_SECONDS = 2.0
_PER_RUN_SECONDS = 60.0
_COLUMNS = 2000


def paths(run: str) -> dict[str, str]:
    """What the two pages ask for, by the name under which it is timed."""
    base = f"/v1/runs/{run}"
    phases = "step_seconds,data_seconds,forward_seconds,backward_seconds,optimizer_seconds"
    keys = "loss,lr,grad_norm,clip_norm"
    return {
        "runs": "/v1/runs?limit=100",
        "run": base,
        "alerts": f"/v1/alerts?run={run}&state=pending,firing,resolved&limit=50",
        "heatmap": f"{base}/heatmap?metric=l2&cols={_COLUMNS}&agg=max",
        "series": f"{base}/series?keys={keys}&points={_COLUMNS}",
        "events": f"{base}/events",
        "layer": f"{base}/series?keys=layer:7:l2,layer:7:absmax&points={_COLUMNS}",
        "phases": f"{base}/series?keys={phases}&points=500",
    }


def main() -> int:
    """Watch until stdin ends."""
    address, runs = urlsplit(sys.argv[1]), sys.argv[2:]
    assert address.hostname is not None
    over = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=listen, daemon=True).start()
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    spent: dict[str, list[float]] = {}
    failures: list[str] = []
    for run in itertools.cycle(runs):
        until = time.monotonic() + _PER_RUN_SECONDS
        while time.monotonic() < until and not over.is_set():
            began = time.monotonic()
            for name, path in paths(run).items():
                at = time.perf_counter()
                connection.request("GET", path)
                answer = connection.getresponse()
                answer.read()
                spent.setdefault(name, []).append(time.perf_counter() - at)
                if answer.status != 200:
                    failures.append(f"{path}: {answer.status}")
            over.wait(max(0.0, _EVERY_SECONDS - (time.monotonic() - began)))
        if over.is_set():
            break
    every = sorted(itertools.chain.from_iterable(spent.values()))
    print(
        json.dumps(
            {
                "calls": len(every),
                "failures": failures[:5],
                "p50_ms": round(1000 * every[len(every) // 2], 1),
                "p99_ms": round(1000 * every[int(0.99 * (len(every) - 1))], 1),
                "worst_ms": {k: round(1000 * max(v), 1) for k, v in spent.items()},
            }
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
