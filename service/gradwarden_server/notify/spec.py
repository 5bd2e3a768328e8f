"""The receivers file: YAML in, frozen ``Receiver`` values out, every mistake reported at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gradwarden_server.model import Severity
from gradwarden_server.notify import apprise, email, pagerduty, slack, webhook
from gradwarden_server.notify.fields import Fields

DELIVERED: tuple[Severity, ...] = ("page", "ticket")  # notes show on the run page only
TYPES = ("webhook", "alertmanager", "pagerduty", "slack", "email", "apprise")
SHOWS_ACKS = frozenset({"pagerduty", "slack"})
LINKED = frozenset({"pagerduty", "slack", "email"})
NOBODY = "nobody"
"""A route's receiver where nobody is to be told."""
DEFAULT_TIMEOUT_SECONDS = 15.0
MAX_TIMEOUT_SECONDS = 30.0  # half the lease of a claimed message: a slow answer is not sent twice
_MOST_SECONDS = 366 * 86_400

_KEYS = ("receivers", "routes", "report")  # read in routefile and in weekly

Options = apprise.Options | email.Options | pagerduty.Options | slack.Options


class ReceiversError(ValueError):
    """The receivers file is wrong; ``mistakes`` has one line for each, with file and field."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


@dataclass(frozen=True, slots=True)
class Receiver:
    """One place to deliver to. What may be a credential stays out of ``repr``."""

    name: str
    type: str
    url: str = field(default="", repr=False)
    severities: tuple[Severity, ...] = DELIVERED
    # Keys that sign each webhook: the new one and, while it is rotated, the old one.
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    allow_private: bool = False
    # Set: a dead-man endpoint that gets the Watchdog alert at this interval, and nothing else.
    watchdog_seconds: int | None = None
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    # Whether messages carry signed links that acknowledge and silence.
    links: bool = False
    options: Options | None = field(default=None, repr=False)

    @property
    def shows_acks(self) -> bool:
        """Whether it is told when somebody takes care of an alert."""
        return self.type in SHOWS_ACKS


def load(path: Path, environ: Mapping[str, str]) -> tuple[Receiver, ...]:
    """Read the receivers of a receivers file.

    Raises:
        ReceiversError: The file cannot be read or has mistakes; all of them are told.
    """
    return parse(read(path), str(path), environ)


def read(path: Path) -> object:
    """The document in a receivers file.

    Raises:
        ReceiversError: It cannot be read.
    """
    try:
        document: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ReceiversError([f"{path}: cannot be read: {error}"]) from error
    except yaml.YAMLError as error:
        raise ReceiversError([f"{path}: not YAML: {error}"]) from error
    return document


def parse(document: object, source: str, environ: Mapping[str, str]) -> tuple[Receiver, ...]:
    """Make receivers of a parsed document; ``source`` names it in mistakes."""
    if document is None:
        return ()
    if not isinstance(document, dict):
        raise ReceiversError([f"{source}: expected a mapping with the key 'receivers'"])
    mistakes = [f"{source}: unknown key {key!r}" for key in document if key not in _KEYS]
    entries = document.get("receivers")
    if entries is None:
        entries = []
    if not isinstance(entries, list):
        raise ReceiversError([*mistakes, f"{source}: receivers: expected a list"])
    receivers: list[Receiver] = []
    seen: set[str] = set()
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            mistakes.append(f"{source}: receiver {number}: expected a mapping")
            continue
        fields = Fields(entry, environ)
        receiver = _receiver(fields)
        label = repr(receiver.name) if receiver.name else str(number)
        if receiver.name == NOBODY:
            fields.mistakes.append(
                f"name: {NOBODY!r} is what a route says to tell no one; take another name"
            )
        if receiver.name and receiver.name in seen:
            fields.mistakes.append("name: used twice")
        seen.add(receiver.name)
        mistakes.extend(f"{source}: receiver {label}: {mistake}" for mistake in fields.mistakes)
        receivers.append(receiver)
    if mistakes:
        raise ReceiversError(mistakes)
    return tuple(receivers)


def _receiver(fields: Fields) -> Receiver:
    name = fields.text("name", "a text")
    kind = fields.text("type", f"one of {', '.join(TYPES)}")
    if kind not in TYPES:
        if kind:
            fields.mistakes.append(f"type: {kind!r} is not one of {', '.join(TYPES)}")
        return Receiver(name, kind)
    severities = _severities(fields)
    more: dict[str, Any] = {}
    allow_private = False
    if kind != "apprise":  # it connects by itself
        more["timeout_seconds"] = fields.number(
            "timeout_seconds", DEFAULT_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS
        )
        more["allow_private"] = allow_private = fields.flag("allow_private")
    if kind == "webhook":
        more["secrets"] = webhook.read_secrets(fields)
        more["watchdog_seconds"] = _watchdog_seconds(fields)
    if kind != "alertmanager":  # it would keep an expired link with the alert
        more["links"] = fields.flag("links", kind in LINKED)
        if more["links"] and more.get("watchdog_seconds") is not None:
            fields.mistakes.append("links: the Watchdog is not to be acknowledged or silenced")
    if kind in ("webhook", "alertmanager"):
        more["url"] = fields.url(allow_private)
    elif kind == "pagerduty":
        more["options"] = pagerduty.read(fields)
        more["url"] = fields.url(allow_private, pagerduty.address(fields))
    elif kind == "slack":
        more["options"] = options = slack.read(fields)
        more["url"] = fields.url(allow_private, slack.API if options.token else None)
    elif kind == "email":
        more["options"] = email.read(fields, allow_private)
    elif kind == "apprise":
        more["options"] = apprise.read(fields)
    fields.finish(kind)
    return Receiver(name, kind, severities=severities, **more)


def _severities(fields: Fields) -> tuple[Severity, ...]:
    if not fields.has("severities"):
        return DELIVERED
    given = fields.texts("severities", "a list of page and ticket")
    if given and any(s not in DELIVERED for s in given):
        fields.mistakes.append("severities: expected a list of page and ticket")
    return tuple(s for s in DELIVERED if s in given) or DELIVERED


def _watchdog_seconds(fields: Fields) -> int | None:
    wanted = "a whole number of seconds from 1 up"
    seconds = fields.whole("watchdog_seconds", wanted, _MOST_SECONDS)
    if seconds is not None and fields.has("severities"):
        fields.mistakes.append("severities: a watchdog receiver gets the Watchdog alone")
    return seconds
