"""From receivers of the file to senders: the one place that knows every type."""

from __future__ import annotations

from collections.abc import Iterable

from gradwarden_server.notify.alertmanager import PATH, AlertmanagerPush
from gradwarden_server.notify.message import Sender
from gradwarden_server.notify.post import Poster
from gradwarden_server.notify.spec import Receiver
from gradwarden_server.notify.webhook import Webhook


def connect(receivers: Iterable[Receiver]) -> dict[str, Sender]:
    """A sender for each receiver, by name. Nothing is called yet."""
    return {receiver.name: _sender(receiver) for receiver in receivers}


def _sender(receiver: Receiver) -> Sender:
    base = receiver.url
    pushes = receiver.type == "alertmanager"
    poster = Poster(
        base.rstrip("/") + PATH if pushes else base,
        allow_private=receiver.allow_private,
        timeout_seconds=receiver.timeout_seconds,
    )
    return AlertmanagerPush(poster) if pushes else Webhook(poster, receiver.secret)
