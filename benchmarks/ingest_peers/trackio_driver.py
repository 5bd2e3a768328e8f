"""Trackio's own process: log prepared steps until the time is up, finish, say what was stored.

Run with the peers' packages on the path: ``trackio_driver.py STEPS.jsonl SECONDS``.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from pathlib import Path

import trackio

FINISH_SECONDS = 120.0


def main() -> None:
    """The last line of stdout is one JSON object."""
    steps = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    trackio.init(project="bench", name="bench-0", auto_log_gpu=False, auto_log_cpu=False)
    began, used = time.perf_counter(), time.process_time()
    logged = 0
    for number, values in enumerate(steps):
        if time.perf_counter() - began > float(sys.argv[2]):
            break
        trackio.log(values, step=number)
        logged += 1
    trackio.finish()
    while stored() < logged and time.perf_counter() - began < FINISH_SECONDS:
        time.sleep(0.05)
    seconds, kept = time.perf_counter() - began, stored()
    figures = {
        "samples": sum(map(len, steps[:kept])),
        "seconds": seconds,
        "cpu_seconds": time.process_time() - used,
    }
    print(json.dumps(figures))


def stored() -> int:
    """Steps in its database."""
    (path,) = Path(os.environ["TRACKIO_DIR"]).glob("*.db")
    with sqlite3.connect(path) as connection:
        (count,) = connection.execute("SELECT COUNT(*) FROM metrics").fetchone()
    return int(count)


if __name__ == "__main__":
    main()
