"""The outermost layer: request ids, log context, security headers, bounded bodies, no traceback."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradwarden_server import logs
from gradwarden_server.api.problems import Problem

log = logging.getLogger(__name__)

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
_BULKY = ("/v1/ingest", "/v1/layouts")
_SMALL_BODY = 1 << 20
_BODY_SECONDS = 60.0
# An id is no secret, and the system need not be asked for chance at every request.
_ids = random.Random()
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
# Said many times a second by healthy trainers and probes; logged only when they go wrong.
_QUIET = ("/v1/ingest", "/v1/heartbeat", "/-/", "/metrics", "/assets/")


class Front:
    """Pure ASGI, so that bodies are counted as they arrive and nothing is buffered twice."""

    def __init__(
        self, app: ASGIApp, max_body_bytes: int, answered: Callable[[str, int], None]
    ) -> None:
        """``answered`` is called with the path and status of every answer."""
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._answered = answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        request_id = asked if _REQUEST_ID.match(asked) else f"{_ids.getrandbits(64):016x}"
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send, request_id)
        most = self._max_body_bytes if scope["path"] in _BULKY else _SMALL_BODY
        began = time.perf_counter()
        with logs.bound(request_id=request_id):
            try:
                body = _Body(receive, headers, min(most, self._max_body_bytes))
                await self._app(scope, body, answer)
            except ClientDisconnect:
                return  # nobody is left to answer
            except Exception:
                log.exception("unhandled error", extra={"path": _shown(scope["path"])})
                if answer.status is not None:
                    raise  # half an answer is out; only closing the connection tells the truth
                detail = f"the log has the cause under request_id {request_id}"
                await Problem("internal", detail).response(request_id)(scope, receive, answer)
            self._answered(scope["path"], answer.status or 0)
            _note(scope, answer.status or 0, time.perf_counter() - began)


class _Answer:
    """``send`` that adds the headers every answer carries, and remembers the status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = message["headers"]
            named = {name for name, _ in own}
            ours = [(name, value) for name, value in _HEADERS if name not in named]
            message["headers"] = [*own, (b"x-request-id", self._request_id.encode()), *ours]
        await self._send(message)


class _Body:
    """``receive`` that refuses a body above its bound before it is held in memory."""

    def __init__(self, receive: Receive, headers: Headers, most: int) -> None:
        self._receive = receive
        self._most = most
        stated = headers.get("content-length", "")
        self._stated = int(stated) if stated.isdecimal() and len(stated) < 20 else 0
        self._seen = 0
        self._done = False
        self._deadline = asyncio.get_running_loop().time() + _BODY_SECONDS

    async def __call__(self) -> Message:
        if self._done:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._next()
        except TimeoutError:
            raise Problem(
                "timeout", f"the body did not arrive within {_BODY_SECONDS:g} s; send it again"
            ) from None
        return message

    async def _next(self) -> Message:
        message = await self._receive()
        self._count(message)
        if max(self._seen, self._stated) > self._most:
            # Read on and forget, within reason: a client that still writes would meet a
            # closed connection instead of the answer.
            while not self._done and self._seen < 4 * self._most:
                self._count(await self._receive())
            raise Problem(
                "too-large",
                f"body: {max(self._seen, self._stated)} bytes; send at most {self._most}",
                {"Connection": "close"},
                field="body",
            )
        return message

    def _count(self, message: Message) -> None:
        self._seen += len(message.get("body", b""))
        self._done = message["type"] != "http.request" or not message.get("more_body", False)


def _note(scope: Scope, status: int, seconds: float) -> None:
    path = scope["path"]
    level = logging.INFO
    if status < 400 and path.startswith(_QUIET):
        level = logging.DEBUG
    facts: dict[str, Any] = {"status": status, "ms": round(seconds * 1000, 1)}
    log.log(level, "%s %s", scope["method"], _shown(path), extra=facts)


def _shown(path: str) -> str:
    if path.startswith("/l/"):
        return "/l/..."  # whoever reads the log must not be able to act
    return path[:200].encode("unicode_escape").decode()
