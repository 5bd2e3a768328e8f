"""One method between us and the service, so that a test may stand in its place.

``Transport.post`` answers for every HTTP status and raises :class:`Unreachable` when there
was no answer. It keeps one connection open; the standard library is all it needs.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import urlsplit

from gradwarden.errors import GradwardenError

JSON = "application/json"
_MOST_ANSWER = 1 << 20


class Unreachable(GradwardenError):
    """There was no answer: refused, reset, timed out, or not HTTP."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service said: the status, its problem's slug, and the body where it is JSON."""

    status: int
    body: dict[str, Any] = field(default_factory=dict)
    retry_after: float | None = None

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def slug(self) -> str:
        return str(self.body.get("type", "")).rpartition("/")[2]

    @property
    def detail(self) -> str:
        told = self.body.get("detail") or self.body.get("title") or "no detail"
        return f"{self.status} {str(told)[:300]}"


class Transport(Protocol):
    """Posts one body and answers; the only way out of the training process."""

    def post(self, path: str, body: bytes, media_type: str, timeout: float) -> Answer: ...

    def close(self) -> None: ...


class HttpTransport:
    """Posts over one kept-alive HTTP or HTTPS connection; used by one thread at a time."""

    def __init__(self, url: str, token: str | None = None, project: str = "default") -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/")
        self._headers = {"User-Agent": "gradwarden-sdk", "Accept": JSON}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        if project != "default" or not token:
            self._headers["Gradwarden-Project"] = project
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None

    def post(self, path: str, body: bytes, media_type: str, timeout: float) -> Answer:
        """Send one request.

        Raises:
            Unreachable: no HTTP answer came within ``timeout`` seconds of silence.
        """
        headers = {**self._headers, "Content-Type": media_type}
        with self._lock:
            for fresh in (self._connection is None, True):
                try:
                    return self._once(path, body, headers, timeout)
                except (OSError, http.client.HTTPException) as error:
                    self.close()
                    stale = isinstance(error, (ConnectionError, http.client.RemoteDisconnected))
                    if not fresh and stale:
                        continue  # the server closed an idle connection: that is no outage
                    raise Unreachable(f"{type(error).__name__}: {error}") from error
        raise Unreachable("no connection")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _once(self, path: str, body: bytes, headers: dict[str, str], timeout: float) -> Answer:
        if self._connection is None:
            self._connection = self._connect(timeout)
        connection = self._connection
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        connection.request("POST", self._prefix + path, body=body, headers=headers)
        response = connection.getresponse()
        data = response.read(_MOST_ANSWER)
        if response.will_close or not response.isclosed():
            self.close()
        return Answer(response.status, _object(data), _seconds(response.headers))

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection
        if self._secure:
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=timeout, context=context
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data) if data else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _seconds(headers: Any) -> float | None:
    """Retry-After in its two forms, measured against the server's own Date."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        then, now = parsedate_to_datetime(value), parsedate_to_datetime(headers.get("Date", ""))
        return max(0.0, (then - now).total_seconds())
    except (TypeError, ValueError):
        return None
