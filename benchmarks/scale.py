"""Does one ``gradwarden serve`` on SQLite carry a thousand ranks on a small machine?

A thousand simulated ranks, as 125 replica groups of 8, train at one step a second: each rank on
a connection of its own, one frame a POST as the SDK sends at that pace, a heartbeat every ten
seconds, steps from a random one on. Rank 0 of a group sends the matrix of 150 layers. Rules,
detectors, compaction and one dashboard are at work, and every 20 seconds some run has a NaN in
one layer; how long its page takes to a local webhook receiver is measured from the moment the
frame leaves. All share this machine: the fleet's own CPU is printed beside the service's. The
last line of stdout is one JSON object.

    python benchmarks/scale.py                         # 30 minutes
    python benchmarks/scale.py --minutes 2 --ranks 200
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from scale_fleet import Fleet
from scale_link import Pager

READY = "gradwarden: listening on "
SAMPLE_SECONDS = 5.0
NAN_SECONDS = 20.0
DRAIN_SECONDS = 30.0
GOALS = {
    "compaction_failures": 0,
    "segments_at_least": 1,
    "lag_p99_seconds": 2.0,
    "nan_to_webhook_p99_seconds": 1.0,
    "memory_growth_percent_last_third": 5.0,
    "frames_lost": 0,
}
RECEIVERS = """receivers:
  - name: pager
    type: webhook
    url: http://127.0.0.1:{port}/
    allow_private: true
"""


@dataclass(slots=True)
class Sample:
    """The service at one moment; seconds since the fleet began, bytes, seconds of CPU."""

    at: float
    resident: int
    cpu: float
    own_cpu: float
    metrics: dict[str, float] = field(default_factory=dict)


class Watched:
    """The service under test: a process, its memory, CPU and metrics."""

    def __init__(self, folder: Path, receivers: Path) -> None:
        self.folder = folder
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GRADWARDEN_")}
        environment["GRADWARDEN_RECEIVERS"] = str(receivers)
        command = [sys.executable, "-m", "gradwarden_server.cli", "serve", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--db", f"sqlite:///{folder}/gradwarden.sqlite"],
            stdout=subprocess.PIPE,
            stderr=(folder / "service.log").open("w"),
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        line = next((x for x in self.process.stdout if x.startswith(READY)), None)
        if line is None:
            raise SystemExit((folder / "service.log").read_text(encoding="utf-8")[-3000:])
        self.url = line.removeprefix(READY).strip()

    def sample(self, at: float) -> Sample:
        """Its state now."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        pairs = re.findall(r"^(gradwarden_\w+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE)
        metrics = {name: float(value) for name, value in pairs}
        pids = _family(self.process.pid)
        spent = sum(map(_cpu, pids))
        return Sample(at, sum(map(_resident, pids)), spent, time.process_time(), metrics)

    @property
    def disk_bytes(self) -> int:
        """The database and its write-ahead log."""
        return sum(f.stat().st_size for f in self.folder.glob("gradwarden.sqlite*"))

    def end(self) -> None:
        """Stop it as an operator would."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()


def main() -> int:
    """Run once; the exit code is 0 if every goal was met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--ranks", type=int, default=1000, help="a multiple of 8")
    parser.add_argument("--layers", type=int, default=150)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gradwarden-scale-") as folder:
        figures = uvloop.run(_measure(Path(folder), options))
    met = _met(figures)
    print(json.dumps({"name": "scale", "figures": figures, "goals": GOALS, "met": met}))
    return 0 if all(met.values()) else 1


async def _measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    pager = Pager()
    receivers = folder / "receivers.yaml"
    receivers.write_text(RECEIVERS.format(port=await pager.open()), encoding="utf-8")
    service = await asyncio.to_thread(Watched, folder, receivers)
    fleet = Fleet(options.ranks, options.layers, pager)
    host, port = service.url.removeprefix("http://").rsplit(":", 1)
    print(f"{options.ranks} ranks in {len(fleet.runs)} groups, {options.layers} layers", flush=True)
    try:
        began = time.monotonic()
        await fleet.begin(host, int(port))
        print(f"announced in {time.monotonic() - began:.1f} s", flush=True)
        while fleet.tally.acked < options.ranks:  # a page of a run without frames has no layers
            await asyncio.sleep(0.1)
        dashboard = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("scale_dashboard.py")),
            service.url,
            *(run.name for run in fleet.runs[:: max(1, len(fleet.runs) // 8)]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        illness = asyncio.create_task(fleet.infect(NAN_SECONDS))
        samples = await _watch(service, fleet, pager, options.minutes * 60)
        illness.cancel()
        fleet.stop()
        until = time.monotonic() + DRAIN_SECONDS
        while (fleet.unacked or pager.awaited) and time.monotonic() < until:
            await asyncio.sleep(0.1)
        seen = json.loads((await dashboard.communicate(b""))[0])
        samples.append(await asyncio.to_thread(service.sample, options.minutes * 60))
        return _figures(options, service, fleet, pager, samples, seen)
    finally:
        fleet.close()
        await asyncio.to_thread(service.end)


async def _watch(service: Watched, fleet: Fleet, pager: Pager, seconds: float) -> list[Sample]:
    """Sample until the time is over, and say each minute how it goes."""
    began = time.monotonic()
    samples: list[Sample] = []
    told = 0.0
    while (at := time.monotonic() - began) < seconds:
        samples.append(await asyncio.to_thread(service.sample, at))
        if at >= told + 60:
            told += 60
            _tell([s for s in samples if s.at >= told - 60], fleet, pager, service)
        await asyncio.sleep(max(0.0, SAMPLE_SECONDS - (time.monotonic() - began - at)))
    return samples


def _tell(minute: list[Sample], fleet: Fleet, pager: Pager, service: Watched) -> None:
    first, last = minute[0], minute[-1]
    over = max(last.at - first.at, 1e-9)
    print(
        f"{last.at / 60:5.1f} min  frames {fleet.sent:>8}  unacked {fleet.unacked:>4}  "
        f"lag {max(_metric(s, 'evaluator_lag_seconds') for s in minute):5.2f} s  "
        f"cpu {(last.cpu - first.cpu) / over:4.2f} + fleet "
        f"{(last.own_cpu - first.own_cpu) / over:4.2f}  "
        f"memory {last.resident / 1e6:4.0f} MB  disk {service.disk_bytes / 1e6:5.0f} MB  "
        f"segments {_metric(last, 'compaction_segments_total'):4.0f}  "
        f"backlog {_metric(last, 'compaction_backlog_frames'):7.0f}  "
        f"pages {len(pager.seconds)} of {fleet.nans}",
        flush=True,
    )


def _figures(
    options: argparse.Namespace,
    service: Watched,
    fleet: Fleet,
    pager: Pager,
    samples: list[Sample],
    dashboard: dict[str, Any],
) -> dict[str, Any]:
    first, last = samples[0], samples[-1]
    spent = last.at - first.at
    third = next(s for s in samples if s.at >= last.at * 2 / 3)
    marks = [m for m in range(5, 31, 5) if m <= options.minutes]
    stored = int(_metric(last, "ingest_frames_total"))
    lags = [_metric(s, "evaluator_lag_seconds") for s in samples]
    for failure in fleet.tally.failed[:10]:
        print(f"failed: {failure}", file=sys.stderr)
    return {
        "ranks": options.ranks,
        "layers": options.layers,
        "minutes": options.minutes,
        "frames_sent": fleet.sent,
        "frames_stored": stored,
        "frames_lost": fleet.sent - stored,
        "unacked": fleet.unacked,
        "requests_refused": fleet.tally.refused,
        "requests_failed": len(fleet.tally.failed),
        "ingest_p50_ms": _ms(fleet.tally.ack_seconds, 0.5),
        "ingest_p99_ms": _ms(fleet.tally.ack_seconds, 0.99),
        "segments": int(_metric(last, "compaction_segments_total")),
        "compaction_failures": int(_metric(last, "compaction_failures_total")),
        "compaction_backlog_frames": int(_metric(last, "compaction_backlog_frames")),
        "lag_p99_seconds": round(_part(lags, 0.99), 3),
        "lag_max_seconds": round(max(lags), 3),
        "evaluator_errors": int(_metric(last, "evaluator_errors_total")),
        "nans": fleet.nans,
        "pages_missing": max(pager.awaited, fleet.nans - len(pager.seconds)),
        "nan_to_webhook_p50_seconds": round(_part(pager.seconds, 0.5), 3),
        "nan_to_webhook_p99_seconds": round(_part(pager.seconds, 0.99), 3),
        "memory_mb": {
            str(m): round(next(s for s in samples if s.at >= m * 60 - 6).resident / 1e6)
            for m in marks
        },
        "memory_mb_end": round(last.resident / 1e6),
        "memory_growth_percent_last_third": round(100 * (last.resident / third.resident - 1), 1),
        "service_cores": round((last.cpu - first.cpu) / spent, 3),
        "fleet_cores": round((last.own_cpu - first.own_cpu) / spent, 3),
        "disk_mb": round(service.disk_bytes / 1e6),
        "messages": pager.messages,
        "dashboard": dashboard,
    }


def _met(figures: dict[str, Any]) -> dict[str, bool]:
    paged = figures["pages_missing"] == 0 and figures["nans"] > 0
    late = figures["nan_to_webhook_p99_seconds"] >= GOALS["nan_to_webhook_p99_seconds"]
    growth = figures["memory_growth_percent_last_third"]
    return {
        "compaction_failures": figures["compaction_failures"] == GOALS["compaction_failures"],
        "segments_at_least": figures["segments"] >= GOALS["segments_at_least"],
        "lag_p99_seconds": figures["lag_p99_seconds"] < GOALS["lag_p99_seconds"],
        "nan_to_webhook_p99_seconds": paged and not late,
        "memory_growth_percent_last_third": growth < GOALS["memory_growth_percent_last_third"],
        "frames_lost": figures["frames_lost"] == GOALS["frames_lost"],
    }


def _metric(sample: Sample, name: str) -> float:
    return sample.metrics.get(f"gradwarden_{name}", 0.0)


def _part(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))] if values else 0.0


def _ms(seconds: list[float], share: float) -> float:
    return round(1000 * _part(seconds, share), 1)


def _family(pid: int) -> list[int]:
    """The service and the processes in which it makes segments."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for file in found for child in file.read_text(encoding="ascii").split()]
    return [pid, *children]


def _resident(pid: int) -> int:
    """Bytes; none of a process that has just ended."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _cpu(pid: int) -> float:
    """Seconds, with those of its children that ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return sum(map(int, text.rpartition(")")[2].split()[11:15])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    raise SystemExit(main())
