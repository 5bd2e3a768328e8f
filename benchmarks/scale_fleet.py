"""A thousand simulated ranks: what replica groups send, at one step a second each.

Rank 0 of a group speaks with the matrix: the statistics of every step, the histogram every
10th, the weights of a sixteenth of the rows every 4th, as the SDK's standard preset does. The
others send scalars, timings and their roots, and on a step with a NaN, their evidence, the
matrix. Bodies are patched into templates, for a fleet must not cost what it measures.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import zlib
from collections.abc import Sequence

import numpy as np
import zstandard
from numpy.typing import NDArray
from scale_link import Answered, Link, Pager, Request, Tally, post

from gradwarden import wire

HEARTBEAT_SECONDS = 10.0
STEP_SECONDS = 1.0
_RANKS = 8
_JITTER_SECONDS = 0.03
"""Ranks of one group end a step within such a time."""
_HISTOGRAM_EVERY, _WEIGHTS_EVERY = 10, 4
_TIMES = ("step", "data", "forward", "backward", "optimizer", "overhead")
_SHARES = (0.98, 0.03, 0.3, 0.5, 0.1, 0.002)
_MARK = 9_000_000_001
"""Numbers from here on stand in a template for what changes from frame to frame."""


class Template:
    """The message of one frame with everything fixed but numbers and payload."""

    def __init__(
        self, key: wire.StreamKey, layout: wire.Layout | None, columns: tuple[str, ...], logs: bool
    ) -> None:
        names = [f"{name}_seconds" for name in _TIMES] + ["loss"] + (["lr"] if logs else [])
        self._names = sorted(names)
        rows = len(layout.parameters) if layout is not None else 0
        scalars = {name: float(_MARK + 9 + i) for i, name in enumerate(self._names)}
        frame = wire.Frame(
            seq=_MARK,
            step=_MARK + 1,
            time_ns=_MARK + 2,
            scalars=scalars,
            capture="unclipped",
            stepped=True,
            values=bytes(4 * rows * len(columns)),
            roots=bytes(8 * wire.ROOT_WORDS),
        )
        sample = wire.encode(
            wire.Batch(
                key,
                (frame,),
                layout.hash if layout is not None else "",
                rows,
                columns,
                sent_ns=_MARK + 3,
            ),
            "zstd",
        )
        size = int.from_bytes(sample[4:8], "little")
        head, payload = sample[8 : 8 + size].decode(), sample[8 + size :]
        head = head.replace("%", "%%").replace(f'"crc32":{zlib.crc32(payload)}', '"crc32":%(crc)d')
        for i, name in enumerate(("seq", "step", "time", "sent")):
            head = head.replace(f"{_MARK + i}", f"%({name})d")
        for i, name in enumerate(self._names):
            head = head.replace(f"{_MARK + 9 + i}.0", f"%({name}).6g")
        self._head = head

    def fill(self, numbers: dict[str, float], payload: bytes, crc: int) -> bytes:
        """The message with these numbers: seq, step, time, sent, and every scalar."""
        text = (self._head % {**numbers, "crc": crc}).encode()
        return wire.MAGIC + len(text).to_bytes(4, "little") + text + payload


class Noise:
    """Plausible matrices of one run: each layer its own level, wandering a little."""

    def __init__(self, rows: int, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._level = np.exp(self._random.normal(-1.0, 0.8, rows))
        self._drift = np.zeros(rows)
        self._elements = 65536.0
        self._weights = self._random.uniform(10, 30, rows).astype(np.float32)

    def matrix(self, turn: int, columns: Sequence[str], bad_row: int | None) -> NDArray[np.float32]:
        """[L, K] of one step; ``bad_row`` holds a NaN."""
        rows = len(self._level)
        self._drift += self._random.normal(0, 0.02, rows) - 0.01 * self._drift
        norm = self._level * np.exp(self._drift + self._random.normal(0, 0.08, rows))
        values = np.zeros((rows, len(columns)), np.float32)
        values[:, 0] = norm
        values[:, 1] = norm * self._random.uniform(0.05, 0.1, rows)
        values[:, 4:6] = self._random.integers(0, 40, (rows, 1))
        for at, name in enumerate(columns[6:], start=6):
            if name in wire.HISTOGRAM:
                share = np.exp(-0.5 * (wire.HISTOGRAM.index(name) - 7.0) ** 2) / 2.5
                values[:, at] = np.rint(self._elements * share)
            else:
                number = turn // _WEIGHTS_EVERY % wire.SLICES
                held = np.arange(rows) % wire.SLICES == number
                moved = 1e-3 * self._random.uniform(0.8, 1.2, rows)
                known = self._weights if name == "weight_l2" else moved
                values[:, at] = np.where(held, known, np.nan)
        if bad_row is not None:
            values[bad_row] = np.where(np.arange(len(columns)) < 2, np.nan, 0)
            values[bad_row, 2] = 16
        return values

    def roots(self, turn: int) -> bytes:
        """The words that replicas are compared by: equal on all ranks, other at each step."""
        words = self._random.integers(0, 2**63, wire.ROOT_WORDS, np.uint64)
        words[0] = turn % wire.SLICES
        return words.astype("<u8").tobytes()


class Run:
    """One replica group of eight."""

    def __init__(self, name: str, layout: wire.Layout, tally: Tally, pager: Pager) -> None:
        seed = zlib.crc32(name.encode())
        self.name, self.layout = name, layout
        self.links = [Link(tally) for _ in range(_RANKS)]
        self.sent = 0
        self.sick = False
        """Whether the next step is to hold a NaN."""
        self._pager = pager
        self._dice = random.Random(seed)
        self._noise = Noise(len(layout.parameters), seed)
        self._first = self._dice.randrange(0, 200_000)
        self._turn = 0
        self._templates: dict[tuple[int, tuple[str, ...]], Template] = {}
        self._compress = zstandard.ZstdCompressor(level=1).compress

    async def begin(self, host: str, port: int) -> None:
        """Connect every rank and announce it; rank 0 tells the layout."""
        loop = asyncio.get_running_loop()
        for rank, link in enumerate(self.links):
            await loop.create_connection(lambda link=link: link, host, port)  # type: ignore[misc]
            start = self._who(rank) | {
                "host": f"{self.name}-node",
                "pid": 100 + rank,
                "world_size": _RANKS,
                "first_step": self._first,
                "environment": "prod",
                "name": self.name,
            }
            await _asked(link, post("/v1/start", "application/json", json.dumps(start).encode()))
        layout = json.dumps(self.layout.to_json()).encode()
        await _asked(self.links[0], post("/v1/layouts", "application/json", layout))

    def step(self, base: float) -> None:
        """All ranks end one step, at monotonic time ``base`` or a few milliseconds later."""
        loop = asyncio.get_running_loop()
        turn, self._turn = self._turn, self._turn + 1
        step = self._first + turn
        bad_row = self._dice.randrange(len(self.layout.parameters)) if self.sick else None
        was_sick, self.sick = self.sick, False
        columns = _columns(step)
        matrix = self._noise.matrix(step, columns, bad_row)
        planes = np.ascontiguousarray(matrix.view(np.uint8).T).tobytes()
        roots = self._noise.roots(step)
        loud, quiet = self._compress(planes + roots), self._compress(roots)
        crcs = zlib.crc32(loud), zlib.crc32(quiet)
        loss = 2.0 + 0.05 * self._dice.gauss(0, 1)
        for rank in range(_RANKS):
            speaks = rank == 0 or was_sick
            late = self._dice.random() * _JITTER_SECONDS
            now_ns = time.time_ns()
            numbers = {"seq": turn + 1, "step": step, "time": now_ns, "sent": now_ns, "lr": 3e-4}
            numbers["loss"] = loss + 0.02 * self._dice.random()
            busy = 0.98 + 0.01 * self._dice.random()
            for name, share in zip(_TIMES, _SHARES, strict=True):
                numbers[f"{name}_seconds"] = share * busy
            template = self._template(rank, columns if speaks else wire.QUANTITIES, speaks)
            payload, crc = (loud, crcs[0]) if speaks else (quiet, crcs[1])
            body = template.fill(numbers, payload, crc)
            told = self._told if rank == 0 and was_sick else None
            request = Request(
                post("/v1/ingest", wire.MEDIA_TYPE, body), True, told, self._heard(rank)
            )
            loop.call_at(base + late, self.links[rank].put, request)
        self.sent += _RANKS

    def beat(self) -> None:
        """Every rank says that it lives."""
        for rank, link in enumerate(self.links):
            said = self._who(rank) | {"step": self._first + self._turn, "phase": "train"}
            body = json.dumps(said | {"sent_ns": time.time_ns()}).encode()
            link.put(Request(post("/v1/heartbeat", "application/json", body)))

    def _told(self, at_ns: int) -> None:
        self._pager.expect(self.name, at_ns)

    def _who(self, rank: int) -> dict[str, object]:
        return {"run": self.name, "attempt": "a1", "rank": rank, "nonce": "n1"}

    def _template(self, rank: int, columns: tuple[str, ...], speaks: bool) -> Template:
        key = rank, columns if speaks else ()
        if key not in self._templates:
            who = wire.StreamKey(self.name, "a1", rank, "n1")
            layout = self.layout if speaks else None
            self._templates[key] = Template(who, layout, columns, logs=rank == 0)
        return self._templates[key]

    def _heard(self, rank: int) -> Answered:
        """Commands that came with an ack are acked, as a trainer does when it obeyed."""

        def answered(body: bytes) -> None:
            if b'"commands":[]' in body:
                return
            who = json.dumps(self._who(rank)).encode()
            for command in json.loads(body)["commands"]:
                path = f"/v1/commands/{command['id']}/ack"
                self.links[rank].put(Request(post(path, "application/json", who)))

        return answered


class Fleet:
    """All runs, each at its own phase of the second."""

    def __init__(self, ranks: int, layers: int, pager: Pager) -> None:
        self.tally = Tally()
        layout = wire.Layout(
            tuple(
                wire.Parameter(
                    f"blocks.{i // 2}.{'w' if i % 2 else 'v'}.weight",
                    (256, 256),
                    "float32",
                    f"blocks.{i // 2}",
                    "matrix",
                )
                for i in range(layers)
            ),
            tuple(reversed(range(layers))),
        )
        names = [f"scale-{i:03d}" for i in range(ranks // _RANKS)]
        self.runs = [Run(name, layout, self.tally, pager) for name in names]
        self._dice = random.Random(1)
        self._timers: list[asyncio.Task[None]] = []
        self.nans = 0

    @property
    def sent(self) -> int:
        """Frames that were made."""
        return sum(run.sent for run in self.runs)

    @property
    def unacked(self) -> int:
        """Requests without an answer."""
        return sum(link.unacked for run in self.runs for link in run.links)

    async def begin(self, host: str, port: int) -> None:
        """Connect and announce all, some at a time; each run trains from then on."""
        gate = asyncio.Semaphore(8)

        async def one(run: Run) -> None:
            async with gate:
                await run.begin(host, port)

        await asyncio.gather(*map(one, self.runs))
        for run in self.runs:
            self._timers.append(asyncio.create_task(self._train(run)))

    def stop(self) -> None:
        """No more steps."""
        for timer in self._timers:
            timer.cancel()

    def close(self) -> None:
        """Hang up."""
        for run in self.runs:
            for link in run.links:
                link.close()

    async def infect(self, every_seconds: float) -> None:
        """A NaN in one layer of one run after another, for ever."""
        while True:
            order = self._dice.sample(self.runs, len(self.runs))
            for run in order:
                await asyncio.sleep(every_seconds)
                run.sick = True
                self.nans += 1

    async def _train(self, run: Run) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._dice.random() * STEP_SECONDS
        beat = due + self._dice.random() * HEARTBEAT_SECONDS
        while True:
            await asyncio.sleep(due - loop.time())
            run.step(due)
            if due >= beat:
                beat += HEARTBEAT_SECONDS
                run.beat()
            due += STEP_SECONDS


def _columns(step: int) -> tuple[str, ...]:
    columns: tuple[str, ...] = wire.QUANTITIES
    columns += wire.HISTOGRAM if step % _HISTOGRAM_EVERY == 0 else ()
    return columns + (wire.SLOW if step % _WEIGHTS_EVERY == 0 else ())


async def _asked(link: Link, request: bytes) -> None:
    done = asyncio.get_running_loop().create_future()
    link.put(Request(request, answered=done.set_result))
    await done
