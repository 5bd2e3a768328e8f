"""A real HTTP service on loopback that speaks the ingest contract and can be made to misbehave."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gradwarden import wire

Script = Callable[[str, int], tuple[int, dict[str, Any], dict[str, str]] | None]
"""(path, number of the request) -> an answer instead of the normal one, or None."""


class FakeService:
    """Holds what was sent exactly as the service would: by stream and seq."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script
        self.lock = threading.Lock()
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.starts: list[dict[str, Any]] = []
        self.layouts: dict[str, wire.Layout] = {}
        self.frames: dict[tuple[str, str, int], dict[int, wire.Frame]] = {}
        self.batches: list[wire.Batch] = []
        self.duplicates = 0
        self.commands: list[dict[str, Any]] = []
        self.strict = True
        self.batch_seconds: float | None = None
        self.connections: list[socket.socket] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                fake.connections.append(self.request)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, answer, headers = fake.answer(self.path, dict(self.headers), body)
                data = json.dumps(answer).encode() if status != 204 else b""
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *_: Any) -> None:
                return  # a client that was killed is part of the tests

        self._class, self._handler = Server, Handler
        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self._serve()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _serve(self) -> None:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):  # kept-alive connections die with the service
                connection.shutdown(socket.SHUT_RDWR)
        self.connections.clear()

    def restart(self) -> None:
        self.server = self._class(("127.0.0.1", self.port), self._handler)
        self._serve()

    def __enter__(self) -> FakeService:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def all_frames(self) -> list[wire.Frame]:
        """Frames of all streams, in stream and seq order."""
        return [f for key in sorted(self.frames) for _, f in sorted(self.frames[key].items())]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [dict(e) for f in self.all_frames() for e in f.events if e["kind"] == kind]

    def steps(self) -> dict[int, list[wire.Frame]]:
        found: dict[int, list[wire.Frame]] = {}
        for frame in self.all_frames():
            found.setdefault(frame.step, []).append(frame)
        return found

    def answer(
        self, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        with self.lock:
            self.requests.append((path, headers, body))
            number = len(self.requests)
        scripted = self.script(path, number) if self.script is not None else None
        if scripted is not None:
            return scripted
        with self.lock:
            return self._normal(path, headers, body)

    def _normal(
        self, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        commands: list[dict[str, Any]] = []
        if path in ("/v1/start", "/v1/ingest", "/v1/heartbeat"):
            commands, self.commands = self.commands, []
        if path == "/v1/start":
            start = json.loads(body)
            self.starts.append(start)
            key = (start["run"], start["attempt"], start["rank"])
            self.frames.setdefault(key, {})
            url = f"{self.url}/runs/{key[0]}"
            named = {"run": key[0], "attempt": key[1], "ordinal": 1, "url": url}
            return 200, {**named, "commands": commands}, {}
        if path == "/v1/layouts":
            layout = wire.Layout.from_json(json.loads(body))
            self.layouts[layout.hash] = layout
            return 200, {"hash": layout.hash}, {}
        if path == "/v1/ingest":
            return self._ingest(headers, body, commands)
        if path == "/v1/heartbeat":
            return 200, {"commands": commands}, {}
        if path.endswith("/ack"):
            return 204, {}, {}
        return problem(404, "not-found")

    def _ingest(
        self, headers: dict[str, str], body: bytes, commands: list[dict[str, Any]]
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        if headers.get("Content-Type") != wire.MEDIA_TYPE:
            return problem(415, "unsupported-media-type")
        try:
            batch = wire.decode(body)
        except wire.TooLarge:
            return problem(413, "too-large")
        except wire.WireError:
            return problem(400, "malformed")
        stream = batch.stream
        key = (stream.run, stream.attempt, stream.rank)
        if self.strict and key not in self.frames:
            return problem(409, "unknown-stream")
        if self.strict and batch.layout and batch.layout not in self.layouts:
            return problem(409, "unknown-layout", layout=batch.layout)
        held = self.frames.setdefault(key, {})
        new = [_whole(f, batch) for f in batch.frames if f.seq not in held]
        self.duplicates += len(batch.frames) - len(new)
        held.update({f.seq: f for f in new})
        self.batches.append(batch)
        answer: dict[str, Any] = {"stored": len(new), "duplicate": 0, "commands": commands}
        if self.batch_seconds is not None:
            answer["batch_seconds"] = self.batch_seconds
        return 200, answer, {}


def _whole(frame: wire.Frame, batch: wire.Batch) -> wire.Frame:
    """The frame with every column in its place, NaN where the batch has none."""
    if not frame.values:
        return frame
    width = len(batch.quantities)
    cells = struct.unpack(f"<{len(frame.values) // 4}f", frame.values)
    at = {name: i for i, name in enumerate(batch.quantities)}
    whole = [
        cells[start + at[name]] if name in at else math.nan
        for start in range(0, len(cells), width)
        for name in wire.COLUMNS
    ]
    return replace(frame, values=struct.pack(f"<{len(whole)}f", *whole))


def problem(status: int, slug: str, **extra: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
    body = {
        "type": f"https://gradwarden.dev/problems/{slug}",
        "title": slug,
        "status": status,
        "detail": f"made up: {slug}",
        **extra,
    }
    return status, body, {"Content-Type": "application/problem+json"}
