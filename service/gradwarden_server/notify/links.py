"""Signed links that acknowledge or silence what a message spoke of, without a login.

A token says what it does, to which labels, and until when; the project's secret signs it. So
nothing is kept for a link, and a new secret makes every link that was sent worthless.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from gradwarden_server.model import Labels, Queued
from gradwarden_server.notify.brief import ACK_URL, ACKED_BY, SILENCE_URL
from gradwarden_server.notify.groups import STORM_ALERT
from gradwarden_server.notify.message import Outcome, Sender

log = logging.getLogger(__name__)
Action = Literal["ack", "silence"]
LIFETIME_SECONDS = 3 * 86_400  # over a weekend
SECOND_NS = 1_000_000_000
_URLS: Mapping[Action, str] = {"ack": ACK_URL, "silence": SILENCE_URL}
# What tells a group from others, where all its alerts share it.
_NAMING = ("project", "run", "alertname", "severity")


class BadLink(Exception):
    """Not a link of ours."""


class ExpiredLink(Exception):
    """A link of ours that is too old."""


@dataclass(frozen=True, slots=True)
class Link:
    """What a link does: to the open alerts of the project that carry these labels."""

    project: str
    receiver: str
    action: Action
    labels: Labels
    expires_seconds: int


def seal(secret: bytes, link: Link) -> str:
    """The token of a link: letters, digits, ``-``, ``_`` and one dot."""
    facts = [link.project, link.receiver, link.action, dict(link.labels), link.expires_seconds]
    body = _text(json.dumps(facts, separators=(",", ":"), ensure_ascii=False).encode())
    return f"{body}.{_text(_mac(secret, body))}"


def unseal(token: str, secret_of: Callable[[str], bytes | None], now_ns: int) -> Link:
    """The link behind a token.

    Args:
        token: From a stranger.
        secret_of: The secret of a project, or None where it has none.
        now_ns: By our clock.

    Raises:
        BadLink: Nobody who knows the secret made it.
        ExpiredLink: It was made too long ago.
    """
    body, _, mac = token.partition(".")
    try:
        project, receiver, action, labels, expires = json.loads(_bytes(body))
        given = _bytes(mac)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadLink from error
    secret = secret_of(project) if isinstance(project, str) else None
    if secret is None or not hmac.compare_digest(_mac(secret, body), given):
        raise BadLink
    if now_ns >= expires * SECOND_NS:
        raise ExpiredLink
    return Link(project, receiver, action, labels, expires)


def labels_of(payload: Mapping[str, Any]) -> dict[str, str]:
    """The labels that name what a message speaks of; empty where nothing but a project would."""
    common = payload.get("commonLabels", {})
    labels = {name: common[name] for name in _NAMING if name in common}
    labels |= payload.get("groupLabels", {})
    return labels if set(labels) - {"project", "severity"} else {}


class Informed:
    """A sender whose messages say who takes care of each alert and, if asked to, carry links.

    Both are added as a message leaves: an acknowledgement may be younger than the message, and
    no link rests in the outbox. A try more of the same message carries the same links.
    """

    def __init__(
        self,
        sender: Sender,
        ackers: Callable[[str, list[str]], Mapping[str, str]],
        sign: Callable[[Link], str] | None,
    ) -> None:
        """Wrap a sender.

        Args:
            sender: What sends.
            ackers: Who acknowledged, by fingerprint, of a project's open alerts.
            sign: The URL of a link; None for a receiver whose messages carry none.
        """
        self._sender = sender
        self._ackers = ackers
        self._sign = sign

    def send(self, queued: Queued, now_ns: int) -> Outcome:
        """Make one try."""
        try:
            payload = self._informed(queued)
        except Exception:
            # The database may be away. The page goes out all the same.
            log.exception("a message goes out without links and acknowledgements")
            payload = queued.notification.payload
        told = replace(queued.notification, payload=payload)
        return self._sender.send(replace(queued, notification=told), now_ns)

    def _informed(self, queued: Queued) -> Mapping[str, Any]:
        told = queued.notification
        firing = [a["fingerprint"] for a in told.payload["alerts"] if a["status"] == "firing"]
        if not firing:
            return told.payload
        ackers = self._ackers(told.project, firing)
        urls = {}
        labels = labels_of(told.payload)
        if self._sign is not None and labels:
            expires = queued.created_ns // SECOND_NS + LIFETIME_SECONDS
            for action, name in _URLS.items():
                if action == "silence" and labels.get("alertname") == STORM_ALERT:
                    continue  # it stands for alerts of other names
                link = Link(told.project, told.receiver, action, labels, expires)
                urls[name] = self._sign(link)
        return _annotated(told.payload, ackers, urls)


def _annotated(
    payload: Mapping[str, Any], ackers: Mapping[str, str], urls: Mapping[str, str]
) -> dict[str, Any]:
    alerts = []
    for alert in payload["alerts"]:
        more: dict[str, str] = {}
        if alert["status"] == "firing":
            acked_by = ackers.get(alert["fingerprint"])
            more = dict(urls) if acked_by is None else {ACKED_BY: acked_by}
            if acked_by is not None and SILENCE_URL in urls:
                more[SILENCE_URL] = urls[SILENCE_URL]
        alerts.append({**alert, "annotations": {**alert["annotations"], **more}})
    common = dict(payload["commonAnnotations"])
    for name in (ACKED_BY, *urls):
        values = {alert["annotations"].get(name) for alert in alerts}
        if len(values) == 1 and None not in values:
            common[name] = values.pop()
    return {**payload, "alerts": alerts, "commonAnnotations": common}


def _mac(secret: bytes, body: str) -> bytes:
    return hmac.new(secret, b"gradwarden link\n" + body.encode(), hashlib.sha256).digest()


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
