"""One record, one try: what the service's answers mean and what must be sent again first."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

from gradwarden import wire
from gradwarden.errors import say
from gradwarden.outbox import Losses, Record
from gradwarden.transport import JSON, Answer, Transport, Unreachable

TIMEOUT = 10.0
_PATHS = {"start": "/v1/start", "layout": "/v1/layouts", "batch": "/v1/ingest"}
_PROOFS = {"start": "attempt", "layout": "hash", "batch": "stored"}
"""What an ack holds: a proxy or a login page may answer 200 as well."""
_LONGEST_PAUSE = 15.0
_LONGEST_ASKED = 300.0


LIVE: set[str] = set()
"""Nonces of the monitors that live in this process."""


class Verdict(Enum):
    """What became of one record."""

    ACKED = "acked"
    DROPPED = "dropped"
    LATER = "later"


class Courier:
    """Delivers single records and keeps what the answers ask to be sent again.

    Shared by the live sender and by ``gradwarden sync``.
    """

    def __init__(
        self,
        transport: Transport,
        losses: Losses,
        on_commands: Callable[[list[Any]], None],
        on_pace: Callable[[object], None] = lambda seconds: None,
    ) -> None:
        """``on_pace`` is told for how long the service asks to gather frames, or None."""
        self._transport, self._losses, self._on_commands = transport, losses, on_commands
        self._on_pace = on_pace
        self.starts: dict[str, Record] = {}
        self.layouts: dict[str, Record] = {}
        self.url: str | None = None
        self.acked = 0
        self.pause = 0.0
        """Seconds to wait before the next try, as the last answer asked or backoff says."""
        self.trouble: str | None = None
        """Why the last record was not taken, or None."""
        self._failures = 0

    def deliver(self, record: Record, timeout: float = TIMEOUT) -> Verdict:
        """Try one record once, sending again a start or layout that the service lost."""
        self.learn(record)
        for _ in range(3):
            try:
                answer = self.post(_PATHS[record.kind], record.body, _media(record), timeout)
            except Unreachable as error:
                return self._later(str(error), None)
            if answer.ok and _PROOFS[record.kind] not in answer.body:
                return self._later(f"{answer.status} that is not a gradwarden service's", None)
            if answer.ok:
                self._failures, self.trouble = 0, None
                self.acked += record.frames
                if record.kind == "batch":
                    self._on_pace(answer.body.get("batch_seconds"))
                self.url = answer.body.get("url") or self.url
                return Verdict.ACKED
            remedy = self._remedy(record, answer, timeout)
            if remedy is not None:
                return remedy
        return self._later(answer.detail, answer.retry_after)

    def post(self, path: str, body: bytes, media: str, timeout: float) -> Answer:
        answer = self._transport.post(path, body, media, timeout)
        commands = answer.body.get("commands")
        if answer.ok and isinstance(commands, list) and commands:
            self._on_commands(commands)
        return answer

    def learn(self, record: Record) -> None:
        if record.kind == "start":
            self.starts[record.attempt or json.loads(record.body)["attempt"]] = record
        elif record.kind == "layout":
            layout = wire.Layout.from_json(json.loads(record.body))
            self.layouts[layout.hash] = record

    def _remedy(self, record: Record, answer: Answer, timeout: float) -> Verdict | None:
        """None means: try the record again now."""
        if answer.status == 409 and answer.slug == "unknown-layout":
            layout = self.layouts.get(str(answer.body.get("layout")))
            return self._first(layout, record, answer, timeout)
        if answer.status == 409 and answer.slug == "unknown-stream":
            attempt = record.attempt or wire.decode(record.body).stream.attempt
            return self._first(self.starts.get(attempt), record, answer, timeout)
        if answer.status == 409 and answer.slug == "run-already-live":
            return self._contest(record, answer, timeout)
        if answer.status == 413 and record.kind == "batch":
            return self._halve(record, answer, timeout)
        if answer.status in (400, 410, 413, 415, 422):
            self._losses.add(f"refused: {answer.slug or answer.status}", record.frames)
            if record.kind != "batch":
                say(f"the service refused our {record.kind}: {answer.detail}")
            return Verdict.DROPPED
        if answer.status in (401, 403):
            return self._later(f"{answer.detail}; check GRADWARDEN_TOKEN", 30.0)
        return self._later(answer.detail, answer.retry_after)

    def _first(
        self, needed: Record | None, record: Record, answer: Answer, timeout: float
    ) -> Verdict | None:
        """Send what the service lacks before the record itself."""
        if needed is None or needed is record:
            self._losses.add(f"refused: {answer.slug}", record.frames)
            return Verdict.DROPPED
        verdict = self.deliver(needed, timeout)
        return None if verdict is Verdict.ACKED else verdict

    def _contest(self, record: Record, answer: Answer, timeout: float) -> Verdict | None:
        """Another process holds our place: take it over if that one is dead on this host."""
        holder = answer.body.get("held_by")
        start = record if record.kind == "start" else None
        if start is None:
            attempt = record.attempt or wire.decode(record.body).stream.attempt
            start = self.starts.get(attempt)
        if start is None or not isinstance(holder, dict) or not _gone(holder):
            told = (
                f"{holder.get('host')} pid {holder.get('pid')}" if isinstance(holder, dict) else "?"
            )
            return self._later(f"this run and rank is held by a live process, {told}", 3.0)
        body = json.dumps({**json.loads(start.body), "takeover": True}).encode()
        try:
            taken = self.post(_PATHS["start"], body, JSON, timeout)
        except Unreachable as error:
            return self._later(str(error), None)
        if not taken.ok:
            return self._later(taken.detail, taken.retry_after or 3.0)
        return Verdict.ACKED if start is record else None

    def _halve(self, record: Record, answer: Answer, timeout: float) -> Verdict:
        """A batch above the service's limit goes in two; a single frame cannot."""
        batch = wire.decode(record.body)
        if len(batch.frames) == 1:
            self._losses.add("refused: too-large", record.frames)
            return Verdict.DROPPED
        middle = batch.frames[len(batch.frames) // 2].seq
        halves = (batch.select(batch.first_seq, middle - 1), batch.select(middle, batch.last_seq))
        verdicts = [
            self.deliver(Record("batch", wire.encode(h), len(h.frames), record.attempt), timeout)
            for h in halves
        ]
        return Verdict.LATER if Verdict.LATER in verdicts else Verdict.ACKED

    def _later(self, why: str, asked: float | None) -> Verdict:
        """Full jitter over an exponential bound; a time asked for is a lower bound, if sane."""
        self._failures += 1
        self.trouble = why
        bound = min(_LONGEST_PAUSE, 0.25 * 2 ** min(self._failures, 10))
        self.pause = random.uniform(0, bound) + min(asked or 0.0, _LONGEST_ASKED)
        return Verdict.LATER


def _media(record: Record) -> str:
    return wire.MEDIA_TYPE if record.kind == "batch" else JSON


def _gone(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this host that no longer lives.

    Our own pid under a nonce that is none of ours was a process before us: containers start
    again with the same host name and pid.
    """
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    if pid == os.getpid():
        return holder.get("nonce") not in LIVE
    if Path("/proc/self").exists():
        return not Path(f"/proc/{pid}").exists()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
