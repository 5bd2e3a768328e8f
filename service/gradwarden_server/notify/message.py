"""What the delivery loop and a receiver say to each other."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

from gradwarden_server.model import Queued


@dataclass(frozen=True, slots=True)
class Sent:
    """The receiver took the message. ``repeat_seconds``: it forgets unless told again by then."""

    detail: str
    repeat_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The receiver did not take the message; ``retry`` says whether asking again makes sense."""

    detail: str
    retry: bool
    retry_after_seconds: float | None = None


Outcome = Sent | Failed


class Sender(Protocol):
    """One connected receiver. ``send`` makes one try and never raises for the far end's faults."""

    def send(self, queued: Queued, now_ns: int) -> Outcome: ...


def message_id(queued: Queued) -> str:
    """The idempotency key of a message: the same over all its tries, and over restarts."""
    notification = queued.notification
    parts = (
        notification.project,
        notification.receiver,
        notification.group_key,
        str(queued.seq),
        str(queued.created_ns),
    )
    return "msg_" + hashlib.sha256("\xff".join(parts).encode()).hexdigest()[:32]
