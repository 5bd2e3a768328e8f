"""Receiver ``webhook``: the Alertmanager v4 body, signed as Standard Webhooks ask."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

from gradwarden_server.model import Queued
from gradwarden_server.notify.message import Outcome, message_id
from gradwarden_server.notify.post import Poster


class Webhook:
    """Posts each message as it is. The id is stable over retries, so receivers can drop twins."""

    def __init__(self, poster: Poster, secret: bytes | None) -> None:
        self._poster = poster
        self._secret = secret

    def send(self, queued: Queued, now_ns: int) -> Outcome:
        """Make one try."""
        body = json.dumps(dict(queued.notification.payload), separators=(",", ":")).encode()
        identity = message_id(queued)
        timestamp = str(now_ns // 1_000_000_000)
        headers = {"webhook-id": identity, "webhook-timestamp": timestamp}
        if self._secret is not None:
            headers["webhook-signature"] = signature(self._secret, identity, timestamp, body)
        return self._poster.post(body, headers, now_ns)


def signature(secret: bytes, identity: str, timestamp: str, body: bytes) -> str:
    """The ``v1`` signature over id, timestamp and body."""
    signed = f"{identity}.{timestamp}.".encode() + body
    digest = hmac.new(secret, signed, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()
