"""Receiver ``slack``: by a bot one thread for each incident, by an incoming webhook without.

The first message is the incident; it is updated to what holds now, and each later state is told
under it. Slack answers 200 to what it refuses and says why in ``error``.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from gradwarden_server.model import Queued, Thread
from gradwarden_server.notify.brief import Brief, brief
from gradwarden_server.notify.fields import Fields
from gradwarden_server.notify.message import Failed, Outcome, Sent
from gradwarden_server.notify.post import Poster, bounded, json_object, read_answer
from gradwarden_server.notify.slack_message import change, incident
from gradwarden_server.notify.threads import Threads

API = "https://slack.com/api"
JSON = {"Content-Type": "application/json; charset=utf-8"}
# Slack takes a message a second in a channel, and more in a burst.
SECONDS_BETWEEN = 1.0
TRANSIENT = frozenset(
    {
        "fatal_error",
        "internal_error",
        "message_limit_exceeded",
        "rate_limited",
        "ratelimited",
        "request_timeout",
        "rollup_error",
        "service_unavailable",
        "team_added_to_org",
    }
)
# Somebody took the incident's message away: what comes next begins anew.
GONE = frozenset({"message_not_found", "thread_not_found", "cant_update_message"})
# The incident's message is too old to be changed; the thread goes on.
FROZEN = frozenset({"edit_window_closed"})
_WORD = re.compile(r"[a-z_]{1,64}\Z")


@dataclass(frozen=True, slots=True)
class Options:
    """A bot's token and channel; without a token the URL is an incoming webhook."""

    token: str = field(default="", repr=False)
    channel: str = ""


@dataclass(frozen=True, slots=True)
class _Refused:
    """An answer of 200 that says no."""

    error: str


class Pace:
    """Keeps calls apart; each waits for its turn."""

    def __init__(
        self,
        seconds: float = SECONDS_BETWEEN,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._sleep = sleep
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when it is this call's turn."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self._seconds
        if turn > now:
            self._sleep(turn - now)


class SlackBot:
    """Posts and updates through the Web API."""

    def __init__(
        self, poster: Poster, options: Options, threads: Threads, pace: Pace | None = None
    ) -> None:
        self._poster = poster
        self._headers = {**JSON, "Authorization": f"Bearer {options.token}"}
        self._channel = options.channel
        self._threads = threads
        self._pace = pace or Pace()

    def send(self, queued: Queued, now_ns: int) -> Outcome:
        """Make one try. The update goes first: to repeat it does no harm."""
        notification = queued.notification
        key = (notification.project, notification.receiver, notification.group_key)
        told = brief(notification.payload)
        thread = self._threads.find(*key)
        if thread is not None:
            outcome = self._follow(thread, told, now_ns)
            if outcome is not None:
                if isinstance(outcome, Sent) and told.state == "resolved":
                    self._threads.forget(*key)
                return outcome
            self._threads.forget(*key)
        answer = self._call(
            "chat.postMessage", {"channel": self._channel, **incident(told)}, now_ns
        )
        if isinstance(answer, Failed | _Refused):
            return _failed(answer)
        if told.state != "resolved":
            self._threads.keep(*key, Thread(str(answer["channel"]), str(answer["ts"])))
        return Sent(f"HTTP 200: message {answer['ts']}")

    def _follow(self, thread: Thread, told: Brief, now_ns: int) -> Outcome | None:
        """Tell a state under its incident; None where the incident's message is gone."""
        at = {"channel": thread.place}
        body = {**at, "ts": thread.anchor, **incident(told)}
        updated = self._call("chat.update", body, now_ns)
        if isinstance(updated, _Refused) and updated.error in GONE:
            return None
        frozen = isinstance(updated, _Refused) and updated.error in FROZEN
        if isinstance(updated, Failed | _Refused) and not frozen:
            return _failed(updated)
        # What fires anew is shown in the channel too: a page must not hide in a thread.
        under = {"thread_ts": thread.anchor, "reply_broadcast": told.state == "firing"}
        answer = self._call("chat.postMessage", {**at, **under, **change(told)}, now_ns)
        if isinstance(answer, Failed | _Refused):
            return _failed(answer)
        return Sent(f"HTTP 200: message {answer['ts']} under {thread.anchor}")

    def _call(
        self, method: str, body: Mapping[str, Any], now_ns: int
    ) -> dict[str, Any] | Failed | _Refused:
        def read(response: httpx.Response) -> dict[str, Any] | Failed | _Refused:
            outcome = read_answer(response, now_ns)
            if isinstance(outcome, Failed):
                return outcome
            document = json_object(response)
            if document.get("ok") is True and "ts" in document and "channel" in document:
                return document
            error = document.get("error")
            known = isinstance(error, str) and _WORD.match(error)
            return _Refused(str(error) if known else "an answer that is not Slack's")

        self._pace.wait()
        raw = json.dumps({**body, "unfurl_links": False, "unfurl_media": False}).encode()
        return self._poster.ask(raw, self._headers, read, f"/{method}")


class SlackHook:
    """Posts to an incoming webhook, which can neither thread nor update."""

    def __init__(self, poster: Poster, pace: Pace | None = None) -> None:
        self._poster = poster
        self._pace = pace or Pace()

    def send(self, queued: Queued, now_ns: int) -> Outcome:
        """Make one try."""

        def read(response: httpx.Response) -> Outcome:
            outcome = read_answer(response, now_ns)
            word = bounded(response).decode("utf-8", "replace").strip()
            if isinstance(outcome, Sent) or not _WORD.match(word):
                return outcome
            return Failed(f"{outcome.detail}: {word}", outcome.retry, outcome.retry_after_seconds)

        self._pace.wait()
        raw = json.dumps(incident(brief(queued.notification.payload))).encode()
        return self._poster.ask(raw, JSON, read)


def read(fields: Fields) -> Options:
    """The fields of this type, but for ``url``."""
    if not (fields.has("token") or fields.has("token_env")):
        return Options()
    token = fields.secret("token", "a bot token (xoxb-...)")
    if token and not token.startswith("xox"):
        fields.mistakes.append("token: expected a bot token (xoxb-...)")
    return Options(token, fields.text("channel", "a channel, by its name or better by its id"))


def _failed(answer: Failed | _Refused) -> Failed:
    if isinstance(answer, Failed):
        return answer
    return Failed(f"HTTP 200: {answer.error}", retry=answer.error in TRANSIENT)
