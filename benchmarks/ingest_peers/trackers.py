"""MLflow and Trackio: experiment trackers, cut by time since they are slow beside the others."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradwarden import wire
from ingest_peers import client, programs
from ingest_peers.recording import Stream

METRICS = 1000
"""The most that one log-batch may hold."""
LANES = 1
"""Connections: several wait for one another in its store, and are no faster."""
_LOG_BATCH = "/api/2.0/mlflow/runs/log-batch"
_JSON = ("Content-Type: application/json",)

Figures = dict[str, Any]


def mlflow(folder: Path, streams: Sequence[Stream], seconds: float) -> Figures:
    """``log-batch`` to a server with one worker on its SQLite store, a run for each stream.

    Raises:
        programs.Missing: it is not installed.
    """
    env = programs.python_package("mlflow", "mlflow")
    env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # workers for what nobody asks here
    folder.mkdir()
    port = programs.free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.sqlite"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with programs.running(command, folder / "log", env=env, ready=(port, "/health")) as pid:
        address = ("127.0.0.1", port)
        runs = asyncio.run(_create_runs(address, len(streams[:LANES])))
        prepared = [
            _log_batches(stream, run, most=round(seconds * 20))
            for stream, run in zip(streams, runs, strict=False)
        ]
        client.send(address, _LOG_BATCH, _JSON, [bodies[:1] for bodies in prepared])  # warm
        prepared = [bodies[1:] for bodies in prepared]
        empty, began = programs.disk_bytes(folder), programs.cpu_seconds(pid)
        sent = client.send(address, _LOG_BATCH, _JSON, prepared, seconds=seconds)
        spent = programs.cpu_seconds(pid) - began
    return _figures(sent.samples, sent.seconds, spent, programs.disk_bytes(folder) - empty)


async def _create_runs(address: client.Address, count: int) -> list[str]:
    connection = await client.Connection.open(address)
    found = []
    for _ in range(count):
        body = json.dumps({"experiment_id": "0", "start_time": 1}).encode()
        status, answer, _ = await connection.post("/api/2.0/mlflow/runs/create", _JSON, body)
        if status != 200:
            raise SystemExit(f"mlflow: {status} {answer[:500]!r}")
        found.append(json.loads(answer)["run"]["info"]["run_id"])
    connection.close()
    return found


def _log_batches(stream: Stream, run: str, most: int) -> list[client.Body]:
    """The first ``most`` requests of a stream, full ones only."""
    metrics: list[dict[str, Any]] = []
    made: list[client.Body] = []
    times = stream.times_ms.tolist()
    for step, values in enumerate(steps(stream)):
        metrics += [
            {"key": key, "value": value, "timestamp": times[step], "step": step}
            for key, value in values.items()
        ]
        while len(metrics) >= METRICS:
            body = json.dumps({"run_id": run, "metrics": metrics[:METRICS]}).encode()
            made.append(client.Body(body, METRICS))
            del metrics[:METRICS]
            if len(made) == most:
                return made
    return made


def trackio(folder: Path, streams: Sequence[Stream], seconds: float) -> Figures:
    """``trackio.log`` for each step and ``finish``, into its local store; its client counts too.

    Raises:
        programs.Missing: it is not installed.
    """
    env = programs.python_package("trackio", "trackio")
    folder.mkdir()
    stream = streams[0]
    with (folder / "steps.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(step) + "\n" for step in steps(stream))
    data = folder / "data"
    env |= {"TRACKIO_DIR": str(data), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    script = Path(__file__).with_name("trackio_driver.py")
    command = [sys.executable, str(script), str(folder / "steps.jsonl"), str(seconds)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"trackio: {done.stderr[-2000:]}")
    figures = json.loads(done.stdout.splitlines()[-1])
    disk = programs.disk_bytes(data)
    return _figures(figures["samples"], figures["seconds"], figures["cpu_seconds"], disk)


def steps(stream: Stream) -> list[dict[str, float]]:
    """What a loop would log at each step: the measured values by ``layer/quantity``."""
    names = [
        f"{parameter.name}/{quantity}"
        for parameter in stream.network.layout.parameters
        for quantity in wire.COLUMNS
    ]
    made = []
    for window in stream.windows:
        for matrix in window.values.reshape(len(window.frames), -1).astype(np.float64):
            measured = np.flatnonzero(~np.isnan(matrix))
            made.append({names[i]: float(matrix[i]) for i in measured})
    return made


def _figures(samples: int, seconds: float, cpu: float, disk: int) -> Figures:
    return {
        "samples": samples,
        "samples_per_second": round(samples / seconds),
        "cpu_us_per_sample": round(cpu / samples * 1e6, 3),
        "bytes_per_sample": round(disk / samples, 1),
    }
