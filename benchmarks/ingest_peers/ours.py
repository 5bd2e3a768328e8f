"""Our service: real batches to its HTTP endpoint, and what its database holds of them after."""

from __future__ import annotations

import asyncio
import json
import os
import re
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from gradwarden import wire
from ingest_peers import client, programs
from ingest_peers.recording import WINDOW, Stream, Window

LAG = "gradwarden_evaluator_lag_seconds"
FAILURES = "gradwarden_compaction_failures_total"
POLL_SECONDS = 0.25
HEADERS = (f"Content-Type: {wire.MEDIA_TYPE}",)
_PRELUDE = struct.Struct("<4sI")
_SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class House:
    """A running service."""

    port: int
    engine: sa.Engine
    """For reading its database beside it."""
    pids: tuple[int, ...]
    """The service, and the database's own processes."""

    def metric(self, name: str) -> float | None:
        """The sum of one of its metrics over all labels; None where there is none."""
        status, text = programs.get(self.port, "/metrics")
        if status != 200:
            raise SystemExit(f"/metrics: {status}")
        pattern = rf"^{name}(?:{{[^}}]*}})? (\S+)$"
        found = re.findall(pattern, text.decode(), re.MULTILINE)
        return sum(map(float, found)) if found else None

    def cpu_seconds(self) -> float:
        return programs.cpu_seconds(*self.pids)

    def logged_frames(self) -> int:
        """Frames that no segment holds yet."""
        with self.engine.connect() as connection:
            statement = sa.text("SELECT COALESCE(SUM(logged_frames), 0) FROM stream")
            return int(connection.execute(statement).scalar_one())

    def settle(self, waiting: Callable[[], float | None], patience: float) -> float | None:
        """Wait until nothing waits, for so many seconds at most; what waits then."""
        deadline = time.monotonic() + patience
        while (left := waiting()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return left


@contextmanager
def serving(
    database: str, folder: Path, *, evaluate: bool = False, precision_bits: int = 0
) -> Iterator[House]:
    """``gradwarden serve`` on a new database, ``sqlite`` or ``postgresql``.

    Raises:
        programs.Missing: PostgreSQL is not installed.
    """
    with ExitStack() as stack:
        folder.mkdir()
        db, others = f"sqlite:///{folder}/gradwarden.sqlite", []
        if database == "postgresql":
            db, pid = stack.enter_context(programs.postgres())
            others = [pid]
        port = programs.free_port()
        command = [sys.executable, "-m", "gradwarden_server.cli", "serve", "--port", str(port)]
        foreign = ("GRADWARDEN_", "OTEL_")
        env = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        env |= {
            "GRADWARDEN_EVALUATE": str(evaluate).lower(),
            "GRADWARDEN_PRECISION_BITS": str(precision_bits),
        }
        started = programs.running(
            [*command, "--db", db], folder / "log", env=env, ready=(port, "/-/ready")
        )
        pid = stack.enter_context(started)
        engine = sa.create_engine(db)
        stack.callback(engine.dispose)
        yield House(port, engine, (pid, *others))


def bodies(streams: Sequence[Stream]) -> list[list[client.Body]]:
    """The batches of each stream, in its order; the last one ends the run.

    A payload is encoded once and put behind the header of every stream that sends it.
    """
    payloads: dict[tuple[str, int], tuple[dict[str, Any], bytes]] = {}
    for stream in streams:
        name, network = stream.network.name, stream.network
        for number, window in enumerate(network.windows):
            if (name, number) not in payloads:
                payloads[name, number] = _encoded(window, network.layout)
    return [
        [
            client.Body(_message(payloads[stream.network.name, number], stream, turn), samples)
            for turn, (number, samples) in enumerate(_turns(stream))
        ]
        for stream in streams
    ]


def _turns(stream: Stream) -> Iterator[tuple[int, int]]:
    windows = stream.network.windows
    for turn in range(len(windows)):
        number = (turn + stream.shift) % len(windows)
        yield number, windows[number].samples


def _encoded(window: Window, layout: wire.Layout) -> tuple[dict[str, Any], bytes]:
    """Header and payload of one window as the SDK seals it."""
    columns = window.columns
    frames = tuple(
        replace(
            frame,
            seq=1 + at,
            events=tuple(e for e in frame.events if e["kind"] != "finish"),
            values=window.values[at][:, columns].astype("<f4").tobytes(),
        )
        for at, frame in enumerate(window.frames)
    )
    batch = wire.Batch(
        wire.StreamKey("r", "a", 0, "n"),
        frames,
        layout.hash,
        len(layout.parameters),
        tuple(wire.COLUMNS[c] for c in columns),
    )
    message = wire.encode(batch, "zstd")
    _, length = _PRELUDE.unpack_from(message)
    end = _PRELUDE.size + length
    header: dict[str, Any] = json.loads(message[_PRELUDE.size : end])
    return header, message[end:]


def _message(encoded: tuple[Mapping[str, Any], bytes], stream: Stream, turn: int) -> bytes:
    header, payload = dict(encoded[0]), encoded[1]
    first = turn * WINDOW
    times = stream.times_ns[first : first + WINDOW].tolist()
    header |= {
        "run": stream.run,
        "attempt": "a1",
        "rank": stream.rank,
        "nonce": f"n{stream.rank}",
        "group": stream.rank,
        "first_seq": first + 1,
        "steps": list(range(first, first + WINDOW)),
        "times_ns": times,
        "sent_ns": times[-1],
    }
    if first + WINDOW == stream.network.steps:
        finish = {"kind": "finish", "status": "finished"}
        header["events"] = [*header["events"], [WINDOW - 1, finish]]
    text = json.dumps(header, separators=(",", ":")).encode()
    return _PRELUDE.pack(wire.MAGIC, len(text)) + text + payload


def announce(house: House, streams: Sequence[Stream]) -> None:
    """The starts and layouts that come before any frame."""
    starts = [
        {"run": s.run, "attempt": "a1", "rank": s.rank, "nonce": f"n{s.rank}", "group": s.rank}
        | {"host": "bench", "pid": 1}
        for s in streams
    ]
    layouts = {s.network.name: s.network.layout.to_json() for s in streams}

    async def post() -> None:
        connection = await client.Connection.open(("127.0.0.1", house.port))
        documents = [("/v1/start", start) for start in starts]
        documents += [("/v1/layouts", layout) for layout in layouts.values()]
        for path, document in documents:
            body = json.dumps(document).encode()
            status, answer, _ = await connection.post(
                path, ["Content-Type: application/json"], body
            )
            if status != 200:
                raise SystemExit(f"{path}: {status} {answer[:500]!r}")
        connection.close()

    asyncio.run(post())


@dataclass(frozen=True, slots=True)
class Held:
    """What a database holds after compaction, in bytes."""

    files: int
    """The database as it lies on the disk; room that the log left is in it, for use again."""
    used: int
    """The same without that room: what all tables and indexes take."""
    spines: int
    chunks: dict[str, int]
    """By quantity."""
    rollups: dict[str, int]
    logged: int
    """Bodies of batches that no segment holds yet."""
    samples: int
    """Measured values in segments, by the service's own count."""


def held(house: House) -> Held:
    """Read the database itself."""
    engine = house.engine
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:

        def one(statement: str) -> int:
            return int(connection.execute(sa.text(statement)).scalar_one() or 0)

        def by_quantity(table: str) -> dict[str, int]:
            found = connection.execute(
                sa.text(f"SELECT quantity, SUM(LENGTH(body)) FROM {table} GROUP BY quantity")
            )
            return {str(name): int(size) for name, size in found}

        logged = one("SELECT SUM(LENGTH(body)) FROM frame_batch")
        if engine.dialect.name == "sqlite":
            page = one("PRAGMA page_size")
            files = one("PRAGMA page_count") * page
            used = files - one("PRAGMA freelist_count") * page
        else:
            connection.execute(sa.text("VACUUM"))
            size = (
                "SELECT SUM(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n "
                "ON n.oid = c.relnamespace WHERE n.nspname = 'public' AND c.relkind = 'r'"
            )
            files = one(size)
            used = one(f"{size} AND c.relname <> 'frame_batch'") + logged
        found = Held(
            files=files,
            used=used,
            spines=one("SELECT SUM(LENGTH(body)) FROM segment WHERE sealed"),
            chunks=by_quantity("chunk"),
            rollups=by_quantity("rollup"),
            logged=logged,
            samples=one("SELECT SUM(samples) FROM segment WHERE sealed"),
        )
    return found
