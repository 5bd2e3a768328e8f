"""A load client that costs little: prepared requests over kept-alive connections."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

CONNECTIONS = 8
PATIENCE_SECONDS = 120.0

Address = tuple[str, int]
Gate = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Body:
    """One prepared request, and how many measured values are in it."""

    data: bytes
    samples: int


@dataclass
class Sent:
    """What was acknowledged: in all, and how long each request waited for its answer."""

    samples: int = 0
    requests: int = 0
    bytes: int = 0
    refused: int = 0
    """Answers that asked to come again; those requests were sent again."""
    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.samples / self.seconds if self.seconds else 0.0

    def wait_ms(self, share: float) -> float:
        """The milliseconds within which this share of the requests was answered."""
        ranked = sorted(self.waits)
        return round(ranked[int(share * (len(ranked) - 1))] * 1000, 2) if ranked else 0.0


def lanes(streams: Sequence[Sequence[Body]], connections: int = CONNECTIONS) -> list[list[Body]]:
    """The bodies of each connection: a stream stays on one, streams of one take turns."""
    made: list[list[Body]] = []
    for number in range(min(connections, len(streams))):
        mine = streams[number::connections]
        longest = max(len(bodies) for bodies in mine)
        made.append([b[i] for i in range(longest) for b in mine if i < len(b)])
    return made


def send(
    address: Address,
    path: str,
    headers: Sequence[str],
    prepared: Sequence[Sequence[Body]],
    *,
    seconds: float | None = None,
    gate: Gate | None = None,
    beside: Callable[[Sent], Awaitable[None]] | None = None,
) -> Sent:
    """Post the lanes side by side, each body after the answer to the one before it.

    Args:
        seconds: stop after this long, whatever is left.
        gate: waited for before each request; it holds the pace.
        beside: runs as long as the lanes do, and sees what was acknowledged so far.
    """
    gc.collect()
    gc.freeze()  # the prepared bodies are no garbage; looking at them again would be our CPU
    try:
        return asyncio.run(_send(address, path, headers, prepared, seconds, gate, beside))
    finally:
        gc.unfreeze()


async def _send(
    address: Address,
    path: str,
    headers: Sequence[str],
    prepared: Sequence[Sequence[Body]],
    seconds: float | None,
    gate: Gate | None,
    beside: Callable[[Sent], Awaitable[None]] | None,
) -> Sent:
    sent = Sent()
    connections = [await Connection.open(address) for _ in prepared]
    helper = asyncio.ensure_future(beside(sent)) if beside is not None else None
    began = time.perf_counter()
    until = began + seconds if seconds is not None else float("inf")

    async def run(connection: Connection, bodies: Sequence[Body]) -> None:
        for body in bodies:
            if gate is not None:
                await gate()
            at = time.perf_counter()
            if at >= until:
                return
            while True:
                status, answer, pause = await connection.post(path, headers, body.data)
                if 200 <= status < 300:
                    break
                if status not in (429, 503):
                    raise SystemExit(f"{path}: {status} {answer[:500]!r}")
                sent.refused += 1
                await asyncio.sleep(pause)
            sent.waits.append(time.perf_counter() - at)
            sent.samples += body.samples
            sent.requests += 1
            sent.bytes += len(body.data)

    try:
        await asyncio.gather(*map(run, connections, prepared))
    finally:
        sent.seconds = time.perf_counter() - began
        if helper is not None:
            helper.cancel()
        for connection in connections:
            connection.close()
    return sent


class Connection:
    """Plain HTTP/1.1: a client library would cost as much as the service."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, address: Address) -> Connection:
        return cls(*await asyncio.open_connection(*address, limit=1 << 20))

    def close(self) -> None:
        self._writer.close()

    async def post(
        self, path: str, headers: Sequence[str], body: bytes
    ) -> tuple[int, bytes, float]:
        """Status, answer, and the seconds after which to come again if it asks for that."""
        head = "\r\n".join(
            [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
        )
        self._writer.write(f"{head}\r\n\r\n".encode() + body)
        await self._writer.drain()
        return await asyncio.wait_for(self._answer(), PATIENCE_SECONDS)

    async def _answer(self) -> tuple[int, bytes, float]:
        text = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(text.split(" ", 2)[1])
        fields = dict(line.split(": ", 1) for line in text.split("\r\n")[1:] if ": " in line)
        if fields.get("transfer-encoding") == "chunked":
            answer = b""
            while size := int(await self._reader.readline(), 16):
                answer += await self._reader.readexactly(size)
                await self._reader.readline()
            await self._reader.readline()
        else:
            answer = await self._reader.readexactly(int(fields.get("content-length", "0")))
        pause = fields.get("retry-after", "")
        return status, answer, float(pause) if pause.isdigit() else 0.05
