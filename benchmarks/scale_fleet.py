"""A thousand simulated ranks: what replica groups send, at one step a second each.

Rank 0 of a group speaks with the matrix: the statistics of every step, the histogram every
10th, the weights of a sixteenth of the rows every 4th, as the SDK's standard preset does. The
others send scalars, timings and their roots, and on a step with a NaN, their evidence, the
matrix. Frames are gathered for a quarter second, or for as long as a busy service asks.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scale_link import Link, Pager, Request, Tally, post

from gradwarden import wire

HEARTBEAT_SECONDS = 10.0
STEP_SECONDS = 1.0
_RANKS = 8
_JITTER_SECONDS = 0.03
"""Ranks of one group end a step within such a time."""
_HISTOGRAM_EVERY, _WEIGHTS_EVERY = 10, 4
_TIMES = ("step", "data", "forward", "backward", "optimizer", "overhead")
_SHARES = (0.98, 0.03, 0.3, 0.5, 0.1, 0.002)
ALONE_SECONDS = 0.25
"""For so long the SDK gathers frames where no service asks for more."""

Matrix = NDArray[np.float32]


class Rank:
    """What one rank has yet to send: batches are gathered and sealed as the SDK does it."""

    def __init__(self, run: str, rank: int, link: Link, layout: wire.Layout) -> None:
        self._key = wire.StreamKey(run, "a1", rank, "n1")
        self._link = link
        self._layout = layout
        self._frames: list[tuple[wire.Frame, Matrix | None, tuple[str, ...]]] = []
        self._gather_seconds = ALONE_SECONDS
        self._flush: asyncio.TimerHandle | None = None
        self._told: Callable[[int], None] | None = None

    def add(
        self,
        frame: wire.Frame,
        matrix: Matrix | None,
        columns: tuple[str, ...],
        told: Callable[[int], None] | None,
        urgent: bool,
    ) -> None:
        """Take a frame; an urgent one leaves at once with all that waited for it."""
        self._frames.append((frame, matrix, columns))
        self._told = told or self._told
        if urgent:
            self._send()
        elif self._flush is None:
            loop = asyncio.get_running_loop()
            self._flush = loop.call_later(self._gather_seconds, self._send)

    def _send(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
        self._flush = None
        sealed, self._frames = self._frames, []
        if not sealed:
            return
        union = tuple(
            c for c in wire.COLUMNS if any(m is not None and c in s for _, m, s in sealed)
        )
        columns = union or wire.QUANTITIES
        frames = tuple(
            frame if matrix is None else replace(frame, values=_laid(matrix, told, columns))
            for frame, matrix, told in sealed
        )
        rows = len(self._layout.parameters) if union else 0
        digest = self._layout.hash if union else ""
        batch = wire.Batch(self._key, frames, digest, rows, columns, sent_ns=time.time_ns())
        body = wire.encode(batch, "zstd")
        told, self._told = self._told, None
        request = post("/v1/ingest", wire.MEDIA_TYPE, body)
        self._link.put(Request(request, True, told, self._answered))

    def _answered(self, body: bytes) -> None:
        """Commands that came with an ack are acked, as a trainer does when it obeyed."""
        asked = b'"batch_seconds"' in body
        if not asked and b'"commands":[]' in body:
            self._gather_seconds = ALONE_SECONDS
            return
        answer = json.loads(body)
        self._gather_seconds = answer.get("batch_seconds", ALONE_SECONDS)
        key = self._key
        who = {"run": key.run, "attempt": key.attempt, "rank": key.rank, "nonce": key.nonce}
        for command in answer["commands"]:
            path = f"/v1/commands/{command['id']}/ack"
            self._link.put(Request(post(path, "application/json", json.dumps(who).encode())))


def _laid(matrix: Matrix, have: Sequence[str], want: Sequence[str]) -> bytes:
    """Its columns among all of a batch, NaN where it has none."""
    found = np.full((len(matrix), len(want)), np.nan, "<f4")
    found[:, [want.index(name) for name in have]] = matrix
    return found.tobytes()


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
        self._ranks = [Rank(name, rank, self.links[rank], layout) for rank in range(_RANKS)]

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
        roots = self._noise.roots(step)
        loss = 2.0 + 0.05 * self._dice.gauss(0, 1)
        for rank in range(_RANKS):
            busy = 0.98 + 0.01 * self._dice.random()
            scalars = {
                f"{n}_seconds": share * busy for n, share in zip(_TIMES, _SHARES, strict=True)
            }
            scalars["loss"] = loss + 0.02 * self._dice.random()
            if rank == 0:
                scalars["lr"] = 3e-4
            frame = wire.Frame(
                seq=turn + 1,
                step=step,
                time_ns=time.time_ns(),
                scalars=scalars,
                capture="unclipped",
                stepped=True,
                roots=roots,
            )
            speaks = rank == 0 or was_sick
            told = self._told if rank == 0 and was_sick else None
            late = self._dice.random() * _JITTER_SECONDS
            what = (frame, matrix if speaks else None, columns if speaks else (), told, was_sick)
            loop.call_at(base + late, self._ranks[rank].add, *what)
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
