"""Prometheus and VictoriaMetrics: prepared bodies to their own endpoints."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ingest_peers import client, programs

REMOTE_WRITE = (
    "Content-Type: application/x-protobuf",
    "Content-Encoding: snappy",
    "X-Prometheus-Remote-Write-Version: 0.1.0",
)

IMPORT = ("Content-Type: application/json",)
SETTLE_SECONDS, QUIET_SECONDS = 60.0, 5.0

Figures = dict[str, Any]


def prometheus(folder: Path, prepared: Sequence[Sequence[client.Body]]) -> Figures:
    """Remote write; the disk is a snapshot of its blocks, the write-ahead log beside it.

    Raises:
        programs.Missing: it is not installed.
    """
    binary = programs.program("prometheus", "prometheus")
    folder.mkdir()
    config, port = folder / "prometheus.yml", programs.free_port()
    config.write_text("global: {}\n")
    command = [
        binary,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--web.enable-remote-write-receiver",
        "--web.enable-admin-api",
        "--log.level=warn",
    ]
    with programs.running(command, folder / "log", ready=(port, "/-/ready")) as pid:
        began = programs.cpu_seconds(pid)
        sent = client.send(("127.0.0.1", port), "/api/v1/write", REMOTE_WRITE, prepared)
        spent = programs.cpu_seconds(pid) - began
        wal = programs.disk_bytes(folder / "data" / "wal")
        status, answer = programs.get(port, "/api/v1/admin/tsdb/snapshot", "POST")
        if status != 200:
            raise SystemExit(f"prometheus snapshot: {status} {answer[:300]!r}")
        blocks = folder / "data" / "snapshots" / json.loads(answer)["data"]["name"]
        stored = sum(
            json.loads(path.read_text())["stats"]["numSamples"]
            for path in blocks.glob("*/meta.json")
        )
        _check("prometheus", sent, stored)
        block = programs.disk_bytes(blocks)
    figures = _figures(sent, spent, block)
    return figures | {"bytes_per_sample_in_wal": round(wal / sent.samples, 3)}


def victoria_metrics(
    folder: Path,
    prepared: Sequence[Sequence[client.Body]],
    path: str = "/api/v1/write",
    headers: Sequence[str] = REMOTE_WRITE,
) -> Figures:
    """Remote write or import; its processor time includes the flush, its disk is what a merge and
    an orderly stop leave.

    Raises:
        programs.Missing: it is not installed.
    """
    binary = programs.program("victoria-metrics", "victoria-metrics")
    folder.mkdir()
    port = programs.free_port()
    command = [
        binary,
        f"-storageDataPath={folder}/data",
        f"-httpListenAddr=127.0.0.1:{port}",
        "-retentionPeriod=100y",
        "-loggerLevel=WARN",
    ]
    with programs.running(command, folder / "log", ready=(port, "/health")) as pid:
        began = programs.cpu_seconds(pid)
        sent = client.send(("127.0.0.1", port), path, headers, prepared)
        programs.get(port, "/internal/force_flush")
        spent = programs.cpu_seconds(pid) - began
        _check("victoria-metrics", sent, _rows_added(port))
        programs.get(port, "/internal/force_merge")
        _settle(folder / "data")
    return _figures(sent, spent, programs.disk_bytes(folder / "data"))


def _rows_added(port: int) -> int:
    _, text = programs.get(port, "/metrics")
    found = re.search(rb"^vm_rows_added_to_storage_total (\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _check(name: str, sent: client.Sent, stored: int) -> None:
    """What a tool acknowledged and did not keep is no rate of it."""
    if stored != sent.samples:
        raise SystemExit(f"{name}: {sent.samples} samples were acknowledged, {stored} are stored")


def _settle(folder: Path) -> None:
    """Wait until merges have ended: until the folder's size has not moved for a while."""
    deadline = time.monotonic() + SETTLE_SECONDS
    last, since = programs.disk_bytes(folder), time.monotonic()
    while time.monotonic() < min(deadline, since + QUIET_SECONDS):
        time.sleep(0.5)
        size = programs.disk_bytes(folder)
        if size != last:
            last, since = size, time.monotonic()


def _figures(sent: client.Sent, cpu: float, disk: int) -> Figures:
    return {
        "samples": sent.samples,
        "samples_per_second": round(sent.rate),
        "requests": sent.requests,
        "refused": sent.refused,
        "megabytes_per_second": round(sent.bytes / sent.seconds / 1e6, 1),
        "cpu_us_per_sample": round(cpu / sent.samples * 1e6, 4),
        "bytes_per_sample": round(disk / sent.samples, 3),
    }
