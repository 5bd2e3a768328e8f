"""From receivers of the file to senders: the one place that knows every type."""

from __future__ import annotations

from collections.abc import Iterable

from gradwarden_server.notify import alertmanager, pagerduty
from gradwarden_server.notify.message import Sender
from gradwarden_server.notify.post import Poster
from gradwarden_server.notify.spec import Receiver
from gradwarden_server.notify.webhook import Webhook


def connect(receivers: Iterable[Receiver]) -> dict[str, Sender]:
    """A sender for each receiver, by name. Nothing is called yet."""
    return {receiver.name: _sender(receiver) for receiver in receivers}


def _sender(receiver: Receiver) -> Sender:
    match receiver.options:
        case pagerduty.Options() as options:
            return pagerduty.PagerDuty(_poster(receiver, receiver.url), options)
    if receiver.type == "alertmanager":
        base = receiver.url.rstrip("/")
        return alertmanager.AlertmanagerPush(_poster(receiver, base + alertmanager.PATH))
    return Webhook(_poster(receiver, receiver.url), receiver.secrets)


def _poster(receiver: Receiver, url: str) -> Poster:
    return Poster(
        url, allow_private=receiver.allow_private, timeout_seconds=receiver.timeout_seconds
    )
