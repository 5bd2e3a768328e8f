"""Does a watched training grow while its service is down? 100,000 small steps, and their memory.

The service's address refuses connections all the time, so that every frame goes to the spool.
Printed is the resident memory of the process every tenth of the way, the spool's size on disk
against its bound, and what was dropped and counted. Growth is told from the first tenth on,
when caches and buffers have their size. The last line of stdout is one JSON object.

    python benchmarks/sdk_memory.py            # a minute or two; --quick: a smoke test, seconds
"""

from __future__ import annotations

import argparse
import json
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gradwarden

GOAL_BYTES = 32 << 20
"""Growth after the first tenth: the bound of the queue in memory."""
SPOOL_BYTES = 16 << 20
"""Bound of the spool, small enough to be reached."""


def resident_bytes() -> int:
    """Resident set size of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def refused() -> str:
    """The address of a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def measure(steps: int, spool: Path) -> dict[str, Any]:
    """Train, and look at the memory ten times."""
    torch.set_num_threads(1)  # threads only wait for each other at this size
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    data = torch.randn(32, 16)
    monitor = gradwarden.watch(
        model, optimizer, url=refused(), spool=spool, spool_bytes=SPOOL_BYTES, throttle=False
    )
    seen = []
    began = time.perf_counter()
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = model(data).pow(2).mean()
        loss.backward()
        optimizer.step()
        monitor.log(loss=loss)
        if step % (steps // 10) == 0:
            seen.append(resident_bytes())
            print(f"step {step:>7}  resident {seen[-1] / 2**20:7.1f} MiB", flush=True)
    seconds = time.perf_counter() - began
    health = monitor.health()
    monitor.finish()
    held = sum(f.stat().st_size for f in spool.rglob("*") if f.is_file())
    return {
        "steps": steps,
        "seconds": round(seconds, 1),
        "resident_first_bytes": seen[0],
        "resident_last_bytes": seen[-1],
        "growth_bytes": max(seen) - seen[0],
        "spool_bytes": held,
        "spool_bound_bytes": SPOOL_BYTES,
        "dropped_frames": sum(health["dropped"].values()),
        "captured": health["captured"],
        "background_cpu_ratio": round(health["background_cpu_ratio"], 3),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2,000 steps instead of 100,000")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(2_000 if arguments.quick else 100_000, Path(folder))
    met = {
        "growth_bytes": figures["growth_bytes"] <= GOAL_BYTES,
        "spool_bytes": figures["spool_bytes"] <= SPOOL_BYTES,
    }
    print(
        json.dumps(
            {
                "name": "sdk_memory",
                "figures": figures,
                "goals": {"growth_bytes": GOAL_BYTES, "spool_bytes": SPOOL_BYTES},
                "met": met,
            }
        )
    )


if __name__ == "__main__":
    main()
