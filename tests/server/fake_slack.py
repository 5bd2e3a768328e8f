"""A stand-in for Slack over real HTTP: Web API and incoming webhooks, as strict as Slack is.

Written from https://docs.slack.dev/reference/methods/chat.postMessage, chat.update, the pages of
Block Kit and of rate limits: who may post, names and ids of channels, threads, limits of blocks,
a message a second in each channel, and 200 with ``ok: false`` for what is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

TOKEN = "xoxb-1-secret"
CHANNEL = "C0OPS"
_NAMES = {"#ops": CHANNEL, "ops": CHANNEL, CHANNEL: CHANNEL}
HOOK = "/services/T0/B0/secret"


@dataclass
class Message:
    """One message; ``replies`` are those of its thread."""

    ts: str
    body: dict[str, Any]
    replies: list[dict[str, Any]] = field(default_factory=list)
    edits: int = 0


class FakeSlack:
    """One workspace with the channel #ops. ``clock`` says when a second is over."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.messages: dict[str, Message] = {}
        self.hooked: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self.limited = 0
        self._clock = clock
        self._last = float("-inf")
        self._count = 0
        self._lock = Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer, headers = fake._answer(self.path, dict(self.headers.items()), raw)
                body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
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

    def fail(self, *errors: str) -> None:
        """Answer the next calls with these errors."""
        self.errors.extend(errors)

    def _answer(
        self, path: str, headers: dict[str, str], raw: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        with self._lock:
            hook = path == HOOK
            if self._clock() - self._last < 1.0:
                self.limited += 1
                limited = "rate_limited" if hook else {"ok": False, "error": "ratelimited"}
                return 429, limited, {"Retry-After": "1"}
            if hook:
                return self._hook(raw)
            answer = self._call(path, headers, raw)
            return 200, answer, {}

    def _hook(self, raw: bytes) -> tuple[int, Any, dict[str, str]]:
        if self.errors:
            return 404, self.errors.pop(0), {}
        body = _object(raw)
        wrong = "invalid_payload" if body is None else _wrong(body)
        if wrong:
            return 400, wrong, {}
        assert body is not None
        self._last = self._clock()
        self.hooked.append(body)
        return 200, "ok", {}

    def _call(self, path: str, headers: dict[str, str], raw: bytes) -> dict[str, Any]:
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            return _no("invalid_auth")
        if "charset" not in headers.get("Content-Type", ""):
            return _no("missing_charset")
        if self.errors:
            return _no(self.errors.pop(0))
        body = _object(raw)
        if body is None:
            return _no("invalid_json")
        posts = path == "/chat.postMessage"
        if not posts and path != "/chat.update":
            return _no("unknown_method")
        # A name is good to post to; to change a message takes the channel's id.
        channel = _NAMES.get(body.get("channel", "")) if posts else body.get("channel")
        if channel != CHANNEL:
            return _no("channel_not_found")
        wrong = _wrong(body)
        if wrong:
            return _no(wrong)
        anchor = body.get("thread_ts") if posts else body.get("ts")
        if anchor is not None and anchor not in self.messages:
            return _no("thread_not_found" if posts else "message_not_found")
        self._last = self._clock()
        if not posts:
            self.messages[str(anchor)].body = body
            self.messages[str(anchor)].edits += 1
            return {"ok": True, "channel": channel, "ts": anchor, "text": body.get("text")}
        self._count += 1
        ts = f"1800000000.{self._count:06d}"
        if anchor is None:
            self.messages[ts] = Message(ts, body)
        else:
            self.messages[anchor].replies.append(body)
        return {"ok": True, "channel": channel, "ts": ts, "message": body}


def _no(error: str) -> dict[str, Any]:
    return {"ok": False, "error": error}


def _object(raw: bytes) -> dict[str, Any] | None:
    try:
        body = json.loads(raw)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _wrong(body: dict[str, Any]) -> str | None:
    text, attachments = body.get("text", ""), body.get("attachments", [])
    if not (text or attachments or body.get("blocks")):
        return "no_text"
    if len(text) > 40_000:
        return "msg_too_long"
    if len(attachments) > 100:
        return "too_many_attachments"
    lists = [body.get("blocks", []), *(a.get("blocks", []) for a in attachments)]
    if any(len(blocks) > 50 for blocks in lists):
        return "invalid_blocks"
    if not all(_block_is_good(block) for blocks in lists for block in blocks):
        return "invalid_blocks"
    return None


def _block_is_good(block: dict[str, Any]) -> bool:
    match block["type"]:
        case "header":
            return block["text"]["type"] == "plain_text" and _fits(block["text"], 150)
        case "section":
            fields = block.get("fields", [])
            whole = "text" not in block or _fits(block["text"], 3000)
            some = "text" in block or bool(fields)
            return whole and some and len(fields) <= 10 and all(_fits(f, 2000) for f in fields)
        case "context":
            elements = block["elements"]
            return 0 < len(elements) <= 10 and all(_fits(e, 3000) for e in elements)
        case "actions":
            ids = [e["action_id"] for e in block["elements"]]
            return (
                0 < len(ids) <= 25
                and len(set(ids)) == len(ids)
                and all(
                    e["type"] == "button"
                    and e["text"]["type"] == "plain_text"
                    and _fits(e["text"], 75)
                    and e["url"].startswith("http")
                    and len(e["url"]) <= 3000
                    and e.get("style") in (None, "primary", "danger")
                    for e in block["elements"]
                )
            )
    return False


def _fits(text: dict[str, Any], most: int) -> bool:
    return text["type"] in ("plain_text", "mrkdwn") and 0 < len(text["text"]) <= most


@contextmanager
def fake_slack(clock: Callable[[], float]) -> Iterator[FakeSlack]:
    fake = FakeSlack(clock)
    try:
        yield fake
    finally:
        fake.server.shutdown()
        fake.server.server_close()
