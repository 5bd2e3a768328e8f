"""Receiver ``webhook``: the Alertmanager v4 body, signed as Standard Webhooks ask.

Several secrets give several signatures, of which a receiver needs to know one: so a secret is
rotated by naming the new one beside the old one until every receiver has it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Sequence

from gradwarden_server.model import Queued
from gradwarden_server.notify.fields import Fields
from gradwarden_server.notify.message import Outcome, message_id
from gradwarden_server.notify.post import Poster

SECRET_PREFIX = "whsec_"


class Webhook:
    """Posts each message as it is. The id is stable over retries, so receivers can drop twins."""

    def __init__(self, poster: Poster, secrets: Sequence[bytes] = ()) -> None:
        self._poster = poster
        self._secrets = tuple(secrets)

    def send(self, queued: Queued, now_ns: int) -> Outcome:
        """Make one try."""
        body = json.dumps(dict(queued.notification.payload), separators=(",", ":")).encode()
        identity = message_id(queued)
        timestamp = str(now_ns // 1_000_000_000)
        headers = {"webhook-id": identity, "webhook-timestamp": timestamp}
        if self._secrets:
            headers["webhook-signature"] = " ".join(
                signature(secret, identity, timestamp, body) for secret in self._secrets
            )
        return self._poster.post(body, headers, now_ns)


def signature(secret: bytes, identity: str, timestamp: str, body: bytes) -> str:
    """The ``v1`` signature over id, timestamp and body."""
    signed = f"{identity}.{timestamp}.".encode() + body
    digest = hmac.new(secret, signed, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def read_secrets(fields: Fields) -> tuple[bytes, ...]:
    """The keys of a webhook receiver, newest first."""
    keys = []
    for text in fields.secrets("secret"):
        try:
            keys.append(decode_secret(text))
        except ValueError as error:
            fields.mistakes.append(f"secret: {error}")
    return tuple(keys)


def decode_secret(text: str) -> bytes:
    """The key behind a Standard Webhooks secret (``whsec_`` and base64 of 24 to 64 bytes)."""
    if not text.startswith(SECRET_PREFIX):
        raise ValueError(f"expected a text that begins with {SECRET_PREFIX}")
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(f"expected base64 after {SECRET_PREFIX}") from error
    if not 24 <= len(key) <= 64:
        raise ValueError("expected 24 to 64 bytes in base64")
    return key
