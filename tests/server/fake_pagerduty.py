"""A stand-in for PagerDuty's Events API v2 over real HTTP. It refuses what the real one refuses.

Written from https://developer.pagerduty.com/docs/send-alert-event and the overview beside it:
required fields, enumerations, lengths, the size of an event, how ``dedup_key`` merges events
into one alert, and the bodies of answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

ROUTING_KEY = "R0" + "K3Y" * 10
MOST_BYTES = 512_000
_SEVERITIES = ("critical", "error", "warning", "info")
_LENGTHS = {"summary": 1024, "source": 1024}
_ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)\Z")


@dataclass
class Incident:
    """What the events of one dedup key became."""

    status: str = "triggered"
    events: list[dict[str, Any]] = field(default_factory=list)


class FakePagerDuty:
    """Incidents by dedup key; ``throttled`` events are refused with 429 first."""

    def __init__(self) -> None:
        self.incidents: dict[str, list[Incident]] = {}
        self.refused: list[Any] = []
        self.throttled = 0
        self._lock = Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer, headers = fake.answer(self.path, raw)
                body = json.dumps(answer).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def open(self) -> list[Incident]:
        """The incidents that are not resolved."""
        with self._lock:
            every = [incident for found in self.incidents.values() for incident in found]
        return [incident for incident in every if incident.status != "resolved"]

    def answer(self, path: str, raw: bytes) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Take one event."""
        with self._lock:
            if path != "/v2/enqueue":
                return 404, {"status": "not found"}, {}
            if self.throttled > 0:
                self.throttled -= 1
                told = "Requests for this service are arriving too quickly.  Please retry later."
                throttled = {"status": "throttle exceeded", "message": told}
                return 429, throttled, {"Retry-After": "7"}
            if len(raw) > MOST_BYTES:
                return 413, {"status": "event too large"}, {}
            try:
                event = json.loads(raw)
            except ValueError:
                return 400, {"status": "invalid event", "message": "invalid JSON"}, {}
            errors = list(_errors(event))
            if errors:
                self.refused.append(event)
                what = {"message": "Event object is invalid", "errors": errors}
                return 400, {"status": "invalid event", **what}, {}
            key = event.get("dedup_key") or f"made-{len(self.incidents)}"
            self._take(key, event)
        done = {"status": "success", "message": "Event processed", "dedup_key": key}
        return 202, done, {}

    def _take(self, key: str, event: dict[str, Any]) -> None:
        found = self.incidents.setdefault(key, [])
        live = found[-1] if found and found[-1].status != "resolved" else None
        action = event["event_action"]
        if live is None:
            if action != "trigger":
                return  # of an incident that is not open nothing happens
            live = Incident()
            found.append(live)
        live.events.append(event)
        if action != "trigger":
            live.status = {"acknowledge": "acknowledged", "resolve": "resolved"}[action]


def _errors(event: Any) -> Iterator[str]:
    if not isinstance(event, dict):
        yield "event is not an object"
        return
    if not re.match(r"[A-Za-z0-9]{32}\Z", str(event.get("routing_key", ""))):
        yield "Invalid routing key"
    action = event.get("event_action")
    if action not in ("trigger", "acknowledge", "resolve"):
        yield "'event_action' is invalid (must be one of 'trigger', 'acknowledge' or 'resolve')"
    key = event.get("dedup_key")
    if key is not None and (not isinstance(key, str) or not 0 < len(key) <= 255):
        yield "'dedup_key' is invalid (must be a string of at most 255 characters)"
    if action in ("acknowledge", "resolve"):
        if key is None:
            yield "'dedup_key' is missing or blank"
        return
    payload = event.get("payload")
    if not isinstance(payload, dict):
        yield "'payload' is missing or blank"
        return
    for name in ("summary", "source"):
        value = payload.get(name)
        if not isinstance(value, str) or not value:
            yield f"'payload.{name}' is missing or blank"
        elif len(value) > _LENGTHS[name]:
            yield f"'payload.{name}' is too long"
    if payload.get("severity") not in _SEVERITIES:
        yield f"'payload.severity' is invalid (must be one of {_SEVERITIES})"
    for name in ("component", "group", "class"):
        if name in payload and not isinstance(payload[name], str):
            yield f"'payload.{name}' is invalid (must be a string)"
    if "timestamp" in payload and not _ISO.match(str(payload["timestamp"])):
        yield "'payload.timestamp' is invalid (must be ISO 8601)"
    if not isinstance(payload.get("custom_details", {}), dict):
        yield "'payload.custom_details' is invalid (must be an object)"
    for link in event.get("links", []):
        if not isinstance(link, dict) or not str(link.get("href", "")).startswith("http"):
            yield "'links' is invalid (each needs an href)"


@contextmanager
def fake_pagerduty() -> Iterator[FakePagerDuty]:
    fake = FakePagerDuty()
    try:
        yield fake
    finally:
        fake.server.shutdown()
        fake.server.server_close()
