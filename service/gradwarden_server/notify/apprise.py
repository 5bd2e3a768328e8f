"""Receiver ``apprise``: whatever apprise has a URL for. For chats without a receiver of their own.

Apprise answers yes or no, without a reason, and connects by itself: neither the guard against
internal addresses nor Retry-After reach its URLs. It needs the extra ``gradwarden[apprise]``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from gradwarden_server.model import Queued
from gradwarden_server.notify.brief import Brief, brief, place
from gradwarden_server.notify.fields import Fields
from gradwarden_server.notify.message import Failed, Outcome, Sent

# Its messages may hold its URLs, which are credentials.
logging.getLogger("apprise").setLevel(logging.CRITICAL)

_KINDS = {"firing": "failure", "acknowledged": "info", "resolved": "success"}
_LISTED = 20


@dataclass(frozen=True, slots=True)
class Options:
    """Apprise's URLs; most are credentials."""

    urls: tuple[str, ...] = field(repr=False)


class Apprise:
    """Tells all URLs; one that fails fails the try, and all are told again."""

    def __init__(self, options: Options) -> None:
        self._urls = options.urls

    def send(self, queued: Queued, now_ns: int) -> Outcome:
        """Make one try."""
        told = brief(queued.notification.payload)
        title = f"{told.state.upper()}: {told.title}"
        every = _library().Apprise()
        for url in self._urls:
            every.add(url)
        if every.notify(title=title, body=_text(told), notify_type=_KINDS[told.state]):
            return Sent(f"apprise: taken by {len(self._urls)}")
        return Failed("apprise: not taken by all; it gives no reason", retry=True)


def read(fields: Fields) -> Options:
    """The fields of this type."""
    urls = fields.secrets("urls", "a list of apprise's URLs")
    if not urls and not fields.mistakes:
        fields.mistakes.append("urls: expected a list of apprise's URLs")
    try:
        library = _library()
    except ImportError:
        fields.mistakes.append("type: apprise needs pip install 'gradwarden[apprise]'")
        return Options(urls)
    for number, url in enumerate(urls, start=1):
        if library.Apprise.instantiate(url) is None:
            fields.mistakes.append(f"urls: apprise does not understand number {number}")
    return Options(urls)


def _library() -> Any:
    import apprise

    return apprise


def _text(told: Brief) -> str:
    lines = []
    for alert in told.alerts[:_LISTED]:
        where = ", ".join(f"{name} {value}" for name, value in place(alert).items())
        summary = alert["annotations"].get("summary", alert["labels"].get("alertname", ""))
        lines.append(f"{summary} ({where})" if where else summary)
    rest = len(told.alerts) - _LISTED + told.truncated
    if rest > 0:
        lines.append(f"and {rest} more")
    if told.acknowledged_by:
        lines.append(f"Acknowledged by {told.acknowledged_by}")
    if told.first_action and told.state != "resolved":
        lines.append(f"First: {told.first_action}")
    return "\n".join([*lines, *(f"{title}: {url}" for title, url in told.links.items())])
