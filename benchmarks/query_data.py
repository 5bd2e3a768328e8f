"""The database that ``query.py`` reads: built through the ingest endpoint, kept by its size."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwarden import wire

READY = "gradwarden: listening on http://"
FORM = 1
"""Of the database that is built; raise it where the building changes."""
RANKS = 4
BATCH = 128
BIG, SHAPES = "bench-big", "bench-shapes"
Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Size:
    """What is built."""

    layers: int
    steps: int
    runs: int

    @property
    def name(self) -> str:
        return f"query-{FORM}-{self.layers}x{self.steps}-{self.runs}"


class Service:
    """A ``gradwarden serve`` of its own, and one kept connection to it."""

    def __init__(self, folder: Path, evaluate: bool) -> None:
        command = [sys.executable, "-m", "gradwarden_server.cli", "serve", "--port", "0"]
        mine = {k: v for k, v in os.environ.items() if not k.startswith("GRADWARDEN_")}
        with (folder / "service.log").open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [*command, "--db", f"sqlite:///{folder}/gradwarden.sqlite"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=mine | {"GRADWARDEN_EVALUATE": "1" if evaluate else "0"},
            )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(READY):
                host, _, port = line.removeprefix(READY).strip().rpartition(":")
                self.url = f"http://{host}:{port}"
                self._connection = http.client.HTTPConnection(host, int(port), timeout=600)
                return
        raise SystemExit(f"the service did not start: see {folder / 'service.log'}")

    def get(self, path: str) -> bytes:
        """The body of a GET that must succeed."""
        return self._ask("GET", path, None, "")

    def post(self, path: str, body: bytes, media_type: str = "application/json") -> Any:
        """The JSON that a POST is answered with; one that comes too fast waits."""
        return json.loads(self._ask("POST", path, body, media_type))

    def memory_bytes(self) -> dict[str, int]:
        """Resident now, and at most since the process began."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        found = re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", text, re.MULTILINE)
        names = {"VmRSS": "resident", "VmHWM": "peak"}
        return {names[name]: int(kilobytes) * 1024 for name, kilobytes in found}

    def stop(self) -> None:
        """End it in order."""
        self._connection.close()
        self.process.terminate()
        self.process.wait(120)

    def _ask(self, method: str, path: str, body: bytes | None, media_type: str) -> bytes:
        while True:
            headers = {"Content-Type": media_type} if body is not None else {}
            try:
                self._connection.request(method, path, body, headers)
            except (BrokenPipeError, ConnectionResetError):  # idle longer than the service waits
                self._connection.close()
                continue
            answer = self._connection.getresponse()
            text = answer.read()
            if answer.status not in (429, 503):
                break
            time.sleep(float(answer.getheader("Retry-After") or 1))
        if answer.status not in (200, 201):
            raise SystemExit(f"{method} {path}: {answer.status} {text[:500]!r}")
        return text


def built_in(folder: Path, size: Size) -> dict[str, Any]:
    """What building it took, now or once."""
    told = folder / "built.json"
    if told.exists():
        print(f"using {folder}", flush=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        figures = build(folder, size)
        told.write_text(json.dumps(figures), encoding="utf-8")
    figures = dict(json.loads(told.read_text(encoding="utf-8")))
    return figures


def build(folder: Path, size: Size) -> dict[str, Any]:
    """Through the front door: starts, layouts and batches; then compaction."""
    began = time.perf_counter()
    service = Service(folder, evaluate=True)
    try:
        for number in range(size.runs):
            small_run(service, f"bench-{number:04d}")
        say(began, f"{size.runs} small runs are sent")
        wait(lambda: all(told(service, size.runs)), began, "their newest values")
    finally:
        service.stop()
    service = Service(folder, evaluate=False)
    try:
        begin(service, SHAPES, layout_of(size.layers))
        for batch in histograms(size):
            ingest(service, batch)
        for rank in range(RANKS):
            begin(service, BIG, layout_of(size.layers), rank)
        sent = 0
        for batch in statistics_of_every_step(size):
            ingest(service, batch)
            sent += len(batch.frames)
            if batch.stream.rank == 0 and sent // RANKS % (BATCH * 80) == 0:
                say(began, f"{sent // RANKS} steps of {size.steps}, {waiting(service)} waiting")
        wait(lambda: waiting(service) == 0, began, "compaction")
        seconds = time.perf_counter() - began
    finally:
        service.stop()
    size_bytes = (folder / "gradwarden.sqlite").stat().st_size
    say(began, f"built: {size_bytes / 2**20:.0f} MiB")
    return {"build_seconds": round(seconds, 1), "database_bytes": size_bytes}


def begin(service: Service, run: str, layout: wire.Layout, rank: int = 0) -> None:
    """Announce one rank and its layout."""
    start = {"run": run, "attempt": "a1", "rank": rank, "nonce": f"n{rank}", "pid": 1}
    start |= {"host": f"node-{rank // 2}", "place": {"gpu": f"GPU-{rank}"}}
    if run == BIG:
        start["world_size"] = RANKS
    service.post("/v1/start", json.dumps(start).encode())
    service.post("/v1/layouts", json.dumps(layout.to_json()).encode())


def ingest(service: Service, batch: wire.Batch) -> None:
    """Send one batch, which must be new."""
    answer = service.post("/v1/ingest", wire.encode(batch), wire.MEDIA_TYPE)
    if answer["stored"] != len(batch.frames):
        raise SystemExit(f"not stored: {answer}")


def layout_of(layers: int) -> wire.Layout:
    """So many square matrices."""
    return wire.Layout(
        tuple(
            wire.Parameter(f"blocks.{i}.weight", (1024, 1024), "float32", f"blocks.{i}", "matrix")
            for i in range(layers)
        )
    )


def batch_of(
    run: str,
    rank: int,
    steps: range,
    layout: wire.Layout,
    matrices: Matrix | None,
    columns: tuple[str, ...] = wire.QUANTITIES,
) -> wire.Batch:
    """Frames of these steps, the last of them taken just now."""
    now_ns = time.time_ns()
    frames = tuple(
        wire.Frame(
            seq=step + 1,
            step=step,
            time_ns=now_ns - (len(steps) - i) * 1_000_000,
            scalars={"loss": 2.0 + 1.0 / (1 + step), "step_seconds": 0.3 + rank / 1000},
            capture="unclipped",
            stepped=True,
            values=b"" if matrices is None else matrices[i].tobytes(),
        )
        for i, step in enumerate(steps)
    )
    key = wire.StreamKey(run, "a1", rank, f"n{rank}")
    rows = 0 if matrices is None else len(layout.parameters)
    digest = "" if matrices is None else layout.hash
    return wire.Batch(key, frames, digest, rows, columns, sent_ns=now_ns)


def statistics_of_every_step(size: Size) -> Iterator[wire.Batch]:
    """The big run: rank 0 with matrices, the others with their scalars."""
    numbers = np.random.default_rng(0)
    layout = layout_of(size.layers)
    level = numbers.normal(-4, 2, size.layers)
    for first in range(0, size.steps, BATCH):
        steps = range(first, min(first + BATCH, size.steps))
        level = level + numbers.normal(0, 0.02, size.layers)
        yield batch_of(BIG, 0, steps, layout, noisy(numbers, level, len(steps)))
        for rank in range(1, RANKS):
            yield batch_of(BIG, rank, steps, layout, None)


def noisy(numbers: np.random.Generator, level: NDArray[np.float64], steps: int) -> Matrix:
    """[steps, layers, 6] of gradients that no codec finds easy."""
    shape = (steps, level.size)
    found = np.zeros((*shape, len(wire.QUANTITIES)), np.float32)
    found[..., 0] = np.exp(level + 0.25 * numbers.standard_normal(shape, np.float32))
    found[..., 1] = found[..., 0] * np.exp(-3 + 0.2 * numbers.standard_normal(shape, np.float32))
    found[..., 4] = numbers.integers(0, 200, shape)
    found[..., 5] = found[..., 4] + numbers.integers(0, 2000, shape)
    rows = numbers.integers(0, level.size, 4)
    found[numbers.integers(0, steps, 4), rows, 0] *= 1000  # spikes
    if numbers.random() < 0.1:
        row = found[numbers.integers(0, steps), rows[0]]
        row[:4] = np.nan, np.nan, 7, 0
    return found


def histograms(size: Size) -> Iterator[wire.Batch]:
    """A shorter run whose frames hold a histogram each, as every tenth capture does."""
    numbers = np.random.default_rng(1)
    layout = layout_of(size.layers)
    columns = (*wire.QUANTITIES, *wire.HISTOGRAM)
    for first in range(0, size.steps // 50, BATCH):
        steps = range(first, min(first + BATCH, size.steps // 50))
        level = np.full(size.layers, -4.0)
        counts = numbers.integers(0, 100_000, (len(steps), size.layers, len(wire.HISTOGRAM)))
        values = [noisy(numbers, level, len(steps)), counts.astype(np.float32)]
        yield batch_of(SHAPES, 0, steps, layout, np.concatenate(values, axis=2), columns)


def small_run(service: Service, run: str) -> None:
    """A run of 32 steps and four layers."""
    layout = layout_of(4)
    begin(service, run, layout)
    values = np.tile(np.array([1, 0.1, 0, 0, 3, 3], np.float32), (32, 4, 1))
    ingest(service, batch_of(run, 0, range(32), layout, values))


def told(service: Service, runs: int) -> list[bool]:
    """Which of the newest so many runs have a newest norm."""
    latest = json.loads(service.get("/v1/latest?keys=grad_norm"))
    norms = latest["keys"]["grad_norm"]
    return [norm is not None for norm in norms] if len(norms) == runs else [False]


def waiting(service: Service) -> int:
    """Frames that compaction has yet to take."""
    text = service.get("/metrics").decode()
    found = re.search(r"^gradwarden_compaction_backlog_frames (\S+)$", text, re.MULTILINE)
    assert found is not None, "the service does not tell of its compaction"
    return int(float(found[1]))


def wait(done: Callable[[], bool], began: float, what: str) -> None:
    """Look once a second, and say so now and then."""
    for second in range(3600):
        if done():
            return
        if second % 15 == 0:
            say(began, f"waiting for {what}")
        time.sleep(1)
    raise SystemExit(f"{what}: nothing within an hour")


def say(began: float, words: str) -> None:
    print(f"{time.perf_counter() - began:7.1f} s  {words}", flush=True)
