"""The far side of the scale benchmark: connections that cost little, and a webhook receiver."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

Answered = Callable[[bytes], None]
_HEAD_END = b"\r\n\r\n"


@dataclass(slots=True)
class Tally:
    """What became of the requests of all links."""

    acked: int = 0
    refused: int = 0
    """Answers 429 and 503: sent again, the same bytes, after the pause that they name."""
    failed: list[str] = field(default_factory=list)
    """Any other answer but 2xx, and connections that ended."""
    ack_seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One POST, sealed; ``sent`` is told the moment (UTC ns) when it first leaves."""

    wire: bytes
    measured: bool = False
    sent: Callable[[int], None] | None = None
    answered: Answered | None = None


def post(path: str, media_type: str, body: bytes) -> bytes:
    """An HTTP/1.1 request."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Link(asyncio.Protocol):
    """A rank's kept-alive connection: requests in order, one in flight, as the SDK sends."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._waiting: deque[Request] = deque()
        self._flying: Request | None = None
        self._paused = False
        self._began = 0.0
        self._answer = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._tally.failed.append(f"connection lost: {exc!r}")

    @property
    def unacked(self) -> int:
        """Requests that were not answered yet."""
        return len(self._waiting) + (self._flying is not None)

    def close(self) -> None:
        """Let the connection go; nothing more is asked of it."""
        if self._transport is not None:
            self._transport.abort()

    def put(self, request: Request) -> None:
        """Send after all that was put before."""
        self._waiting.append(request)
        self._next()

    def _next(self) -> None:
        free = self._flying is None and not self._paused
        if free and self._waiting and self._transport is not None:
            self._flying = self._waiting.popleft()
            if self._flying.sent is not None:
                self._flying.sent(time.time_ns())
            self._began = time.perf_counter()
            self._transport.write(self._flying.wire)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        end = self._answer.find(_HEAD_END)
        if end < 0:
            return
        head = self._answer[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r", 1)[0]) if at >= 0 else 0
        if len(self._answer) < end + 4 + length:
            return
        body, self._answer = self._answer[end + 4 :], b""
        self._settle(int(head[9:12]), head, body)

    def _settle(self, status: int, head: bytes, body: bytes) -> None:
        request, self._flying = self._flying, None
        if request is None:
            self._tally.failed.append(f"an answer to nothing: {status} {body[:200]!r}")
            return
        if status in (429, 503):
            self._tally.refused += 1
            at = head.find(b"retry-after:")
            pause = float(head[at + 12 :].split(b"\r", 1)[0]) if at >= 0 else 1.0
            self._waiting.appendleft(
                Request(request.wire, request.measured, None, request.answered)
            )
            self._paused = True
            asyncio.get_running_loop().call_later(pause, self._resume)
            return
        if not 200 <= status < 300:
            self._tally.failed.append(f"{status} {body[:200]!r}")
        elif request.measured:
            self._tally.acked += 1
            self._tally.ack_seconds.append(time.perf_counter() - self._began)
        if request.answered is not None:
            request.answered(body)
        self._next()

    def _resume(self) -> None:
        self._paused = False
        self._next()


class Pager:
    """A webhook receiver; it knows when each run's NaN left, and so how long the page took."""

    def __init__(self) -> None:
        self._sent_ns: dict[str, int] = {}
        self.seconds: list[float] = []
        self.messages = 0
        self._server: asyncio.Server | None = None

    @property
    def awaited(self) -> int:
        """NaNs that nobody was paged of yet."""
        return len(self._sent_ns)

    def expect(self, run: str, sent_ns: int) -> None:
        """A NaN of this run has just left."""
        self._sent_ns[run] = sent_ns

    async def open(self) -> int:
        """Listen on a free port of loopback, which is returned."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(_HEAD_END)).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r", 1)[0])
                body = await reader.readexactly(length)
                self._take(json.loads(body), time.time_ns())
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _take(self, message: dict[str, list[dict[str, dict[str, str]]]], at_ns: int) -> None:
        self.messages += 1
        for alert in message["alerts"]:
            labels = alert["labels"]
            if labels["alertname"] == "NonFiniteGradient" and labels["severity"] == "page":
                sent_ns = self._sent_ns.pop(labels.get("run", ""), None)
                if sent_ns is not None:
                    self.seconds.append((at_ns - sent_ns) / 1e9)
