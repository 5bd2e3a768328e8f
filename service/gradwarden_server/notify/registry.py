"""From receivers of the file to senders: the one place that knows every type."""

from __future__ import annotations

from collections.abc import Iterable

from gradwarden_server.notify import alertmanager, apprise, email, pagerduty, slack
from gradwarden_server.notify.message import Sender
from gradwarden_server.notify.post import Poster
from gradwarden_server.notify.spec import Receiver
from gradwarden_server.notify.threads import HeldThreads, Threads
from gradwarden_server.notify.webhook import Webhook


def connect(receivers: Iterable[Receiver], threads: Threads | None = None) -> dict[str, Sender]:
    """A sender for each receiver, by name. Nothing is called yet.

    Without ``threads`` those of chats last as long as the senders.
    """
    kept = HeldThreads() if threads is None else threads
    return {receiver.name: _sender(receiver, kept) for receiver in receivers}


def _sender(receiver: Receiver, threads: Threads) -> Sender:
    match receiver.options:
        case apprise.Options() as options:
            return apprise.Apprise(options)
        case email.Options() as options:
            return email.Email(
                options,
                threads,
                allow_private=receiver.allow_private,
                timeout_seconds=receiver.timeout_seconds,
            )
        case pagerduty.Options() as options:
            return pagerduty.PagerDuty(_poster(receiver, receiver.url), options)
        case slack.Options(token=""):
            return slack.SlackHook(_poster(receiver, receiver.url))
        case slack.Options() as options:
            # A try has two calls.
            poster = _poster(receiver, receiver.url, receiver.timeout_seconds / 2)
            return slack.SlackBot(poster, options, threads)
    if receiver.type == "alertmanager":
        base = receiver.url.rstrip("/")
        return alertmanager.AlertmanagerPush(_poster(receiver, base + alertmanager.PATH))
    return Webhook(_poster(receiver, receiver.url), receiver.secrets)


def _poster(receiver: Receiver, url: str, timeout_seconds: float | None = None) -> Poster:
    return Poster(
        url,
        allow_private=receiver.allow_private,
        timeout_seconds=timeout_seconds or receiver.timeout_seconds,
    )
