"""How many durable requests a second does one ``gradwarden serve`` take, and at what CPU?

Every client is one live run on a connection of its own, and sends its next batch as soon as
the last one was acked: no pipelining, and one frame a batch unless asked otherwise. The
batches are made before the clock starts. Service and clients share this machine, so requests
a second are a floor; the CPU of the service is counted from the first batch to the last ack.
With ``--no-evaluate`` the runs are not judged, so that what is left is taking frames in. The
last line of stdout is one JSON object.

    python benchmarks/ingest_smoke.py --clients 8 --frames 250 --layers 150
    python benchmarks/ingest_smoke.py --clients 64 --frames 200 --no-evaluate
    python benchmarks/ingest_smoke.py --frames 3200 --frames-per-batch 32 --layers 200
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gradwarden import wire

READY = "gradwarden: listening on http://"
# Modest on purpose: two shared cores, a virtual disk, Python at both ends.
GOALS = {"requests_per_second": 200.0, "p99_ms": 250.0}


def main() -> int:
    """Run once; the exit code is 0 if every goal was met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--frames", type=int, default=250, help="frames of each client")
    parser.add_argument("--frames-per-batch", type=int, default=1)
    parser.add_argument("--layers", type=int, default=150)
    parser.add_argument("--codec", choices=("deflate", "zstd"), default="deflate")
    parser.add_argument("--db", help="a database URL (a new SQLite file)")
    parser.add_argument("--no-evaluate", action="store_true", help="take frames in, judge none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gradwarden-bench-") as folder:
        service = _serve(options.db or f"sqlite:///{folder}/gradwarden.sqlite", options)
        try:
            figures = asyncio.run(_measure(_address(service), service.pid, options))
        finally:
            service.terminate()
            service.wait(30)
    met = {
        "requests_per_second": figures["requests_per_second"] >= GOALS["requests_per_second"],
        "p99_ms": figures["p99_ms"] <= GOALS["p99_ms"],
    }
    print(json.dumps({"name": "ingest_smoke", "figures": figures, "goals": GOALS, "met": met}))
    return 0 if all(met.values()) else 1


def _serve(db: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gradwarden_server.cli", "serve", "--port", "0", "--db", db]
    evaluate = "0" if options.no_evaluate else "1"
    return subprocess.Popen(
        command,
        env=os.environ | {"GRADWARDEN_EVALUATE": evaluate, "GRADWARDEN_RATE_PER_SECOND": "1e6"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _address(service: subprocess.Popen[str]) -> tuple[str, int]:
    assert service.stdout is not None
    for line in service.stdout:
        if line.startswith(READY):
            host, _, port = line.removeprefix(READY).strip().rpartition(":")
            return host, int(port)
    raise SystemExit("the service did not start")


async def _measure(
    address: tuple[str, int], pid: int, options: argparse.Namespace
) -> dict[str, float]:
    parameters = tuple(
        wire.Parameter(f"layer.{i}.weight", (64, 64), "float32", f"layer.{i}", "matrix")
        for i in range(options.layers)
    )
    layout = wire.Layout(parameters)
    clients = [_Client(address, f"bench-{i}", layout) for i in range(options.clients)]
    prepared = [client.bodies(options) for client in clients]
    await asyncio.gather(*(client.begin() for client in clients))
    began, spent_before = time.perf_counter(), _cpu_seconds(pid)
    spent = await asyncio.gather(
        *(client.send(bodies) for client, bodies in zip(clients, prepared, strict=True))
    )
    seconds, cpu = time.perf_counter() - began, _cpu_seconds(pid) - spent_before
    samples = options.clients * options.frames * options.layers * len(wire.QUANTITIES)
    waits = sorted(wait for each in spent for wait in each)
    return {
        "clients": options.clients,
        "frames_per_batch": options.frames_per_batch,
        "layers": options.layers,
        "requests": len(waits),
        "requests_per_second": round(len(waits) / seconds, 1),
        "p50_ms": round(statistics.median(waits) * 1000, 2),
        "p99_ms": round(waits[int(0.99 * (len(waits) - 1))] * 1000, 2),
        "samples_per_second": round(samples / seconds),
        "requests_per_server_core": round(len(waits) / max(cpu, 0.01)),
        "server_cpu_us_per_request": round(cpu * 1e6 / len(waits)),
        "server_cpu_ns_per_sample": round(cpu * 1e9 / samples, 2),
    }


def _matrix(rows: int, chance: random.Random) -> bytes:
    """Norms whose mantissas are noise, as those of real gradients are; counts that are small."""
    norms = [chance.uniform(0.9, 1.1) for _ in range(rows)]
    return b"".join(struct.pack("<6f", norm, norm / 2, 0.0, 0.0, 3.0, 3.0) for norm in norms)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _Client:
    """One run on one connection, in plain HTTP/1.1: a client library would cost as much again."""

    def __init__(self, address: tuple[str, int], run: str, layout: wire.Layout) -> None:
        self._address = address
        self._key = wire.StreamKey(run, "a1", 0, "n1")
        self._layout = layout

    def bodies(self, options: argparse.Namespace) -> list[bytes]:
        """Messages of as many frames each as was asked for."""
        chance = random.Random(self._key.run)
        rows = len(self._layout.parameters)
        made = []
        for first in range(1, options.frames + 1, options.frames_per_batch):
            now = time.time_ns()
            seqs = range(first, min(first + options.frames_per_batch, options.frames + 1))
            frames = tuple(
                wire.Frame(
                    seq,
                    seq - 1,
                    now,
                    {"loss": 1.0},
                    capture="unclipped",
                    values=_matrix(rows, chance),
                )
                for seq in seqs
            )
            batch = wire.Batch(self._key, frames, self._layout.hash, rows, sent_ns=now)
            made.append(wire.encode(batch, options.codec))
        return made

    async def begin(self) -> None:
        """Connect, announce the run and its layout."""
        self._reader, self._writer = await asyncio.open_connection(*self._address)
        start = {"run": self._key.run, "attempt": "a1", "rank": 0, "nonce": "n1"}
        start |= {"host": "bench", "pid": 1}  # type: ignore[dict-item]
        await self._post("/v1/start", "application/json", json.dumps(start).encode())
        layout = json.dumps(self._layout.to_json()).encode()
        await self._post("/v1/layouts", "application/json", layout)

    async def send(self, bodies: list[bytes]) -> list[float]:
        """Send one after the other; the seconds that each took to its ack."""
        spent = []
        for body in bodies:
            began = time.perf_counter()
            answer = await self._post("/v1/ingest", wire.MEDIA_TYPE, body)
            spent.append(time.perf_counter() - began)
            if not answer["stored"]:
                raise SystemExit(f"not stored: {answer}")
        return spent

    async def _post(self, path: str, media_type: str, body: bytes) -> dict[str, object]:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\n"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await self._writer.drain()
        answer = await self._reader.readuntil(b"\r\n\r\n")
        fields = answer.decode("latin-1").lower().split("\r\n")
        length = next(int(f.split(":")[1]) for f in fields if f.startswith("content-length:"))
        text = await self._reader.readexactly(length)
        if not fields[0].startswith("http/1.1 200"):
            raise SystemExit(f"{path}: {fields[0]} {text[:500]!r}")
        document: dict[str, object] = json.loads(text)
        return document


if __name__ == "__main__":
    raise SystemExit(main())
