"""Senders whose tries are counted and traced."""

from __future__ import annotations

from gradwarden_server.model import Queued
from gradwarden_server.notify.message import Outcome, Sender, Sent
from gradwarden_server.telemetry import Telemetry, span


class Counted:
    """A sender by the name of its receiver."""

    def __init__(self, name: str, sender: Sender, numbers: Telemetry) -> None:
        self._name = name
        self._sender = sender
        self._numbers = numbers

    def send(self, queued: Queued, now_ns: int) -> Outcome:
        with span("deliver", receiver=self._name, attempt=queued.attempts):
            outcome = self._sender.send(queued, now_ns)
        result = "ok" if isinstance(outcome, Sent) else "failed"
        self._numbers.deliveries.labels(self._name, result).inc()
        if queued.attempts > 1:
            self._numbers.retries.labels(self._name).inc()
        return outcome
