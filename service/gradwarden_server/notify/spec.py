"""The receivers file: YAML in, frozen ``Receiver`` values out, every mistake reported at once."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from gradwarden_server.model import Severity
from gradwarden_server.notify.guard import Refused, check_url

DELIVERED: tuple[Severity, ...] = ("page", "ticket")  # notes show on the run page only
TYPES = ("webhook", "alertmanager")
DEFAULT_TIMEOUT_SECONDS = 15.0
MAX_TIMEOUT_SECONDS = 30.0  # half the lease of a claimed message: a slow answer is not sent twice
SECRET_PREFIX = "whsec_"

_FIELDS = {
    "name",
    "type",
    "url",
    "severities",
    "secret",
    "secret_env",
    "allow_private",
    "watchdog_seconds",
    "timeout_seconds",
}


class ReceiversError(ValueError):
    """The receivers file is wrong; ``mistakes`` has one line for each, with file and field."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


@dataclass(frozen=True, slots=True)
class Receiver:
    """One place to deliver to. URL and secret stay out of ``repr``: both may be credentials."""

    name: str
    type: Literal["webhook", "alertmanager"]
    url: str = field(repr=False)
    severities: tuple[Severity, ...] = DELIVERED
    secret: bytes | None = field(default=None, repr=False)
    allow_private: bool = False
    # Set: a dead-man endpoint that gets the Watchdog alert at this interval, and nothing else.
    watchdog_seconds: int | None = None
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS


def load(path: Path, environ: Mapping[str, str]) -> tuple[Receiver, ...]:
    """Read a receivers file.

    Raises:
        ReceiversError: The file cannot be read or has mistakes; all of them are told.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ReceiversError([f"{path}: cannot be read: {error}"]) from error
    except yaml.YAMLError as error:
        raise ReceiversError([f"{path}: not YAML: {error}"]) from error
    return parse(document, str(path), environ)


def parse(document: object, source: str, environ: Mapping[str, str]) -> tuple[Receiver, ...]:
    """Make receivers of a parsed document; ``source`` names it in mistakes."""
    if document is None:
        return ()
    if not isinstance(document, dict):
        raise ReceiversError([f"{source}: expected a mapping with the key 'receivers'"])
    mistakes = [f"{source}: unknown key {key!r}" for key in document if key != "receivers"]
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
        reader = _Entry(entry, environ)
        receiver = reader.receiver()
        label = repr(receiver.name) if receiver.name else str(number)
        if receiver.name and receiver.name in seen:
            reader.mistakes.append("name: used twice")
        seen.add(receiver.name)
        mistakes.extend(f"{source}: receiver {label}: {mistake}" for mistake in reader.mistakes)
        receivers.append(receiver)
    if mistakes:
        raise ReceiversError(mistakes)
    return tuple(receivers)


class _Entry:
    """Reads one receiver; writes down what is wrong and goes on, so that all is told at once."""

    def __init__(self, entry: Mapping[Any, Any], environ: Mapping[str, str]) -> None:
        self._entry = entry
        self._environ = environ
        self.mistakes = [f"{key}: unknown field" for key in entry if key not in _FIELDS]

    def receiver(self) -> Receiver:
        kind = self._text("type", "webhook or alertmanager")
        if kind and kind not in TYPES:
            self.mistakes.append(f"type: {kind!r} is not one of webhook, alertmanager")
        allow_private = self._flag("allow_private")
        receiver = Receiver(
            name=self._text("name", "a text"),
            type=cast(Literal["webhook", "alertmanager"], kind),
            url=self._url(allow_private),
            severities=self._severities(),
            secret=self._secret(),
            allow_private=allow_private,
            watchdog_seconds=self._watchdog_seconds(),
            timeout_seconds=self._timeout_seconds(),
        )
        if kind == "alertmanager" and receiver.secret is not None:
            self.mistakes.append("secret: only webhooks are signed")
        if receiver.watchdog_seconds is not None:
            if kind == "alertmanager":
                # A pushed alert outlives its sender there, so its absence would prove nothing.
                self.mistakes.append("watchdog_seconds: needs type webhook")
            if "severities" in self._entry:
                self.mistakes.append("severities: a watchdog receiver gets the Watchdog alone")
        return receiver

    def _text(self, key: str, wanted: str) -> str:
        value = self._entry.get(key)
        if isinstance(value, str) and value and len(value) <= 128:
            return value
        self.mistakes.append(f"{key}: expected {wanted}")
        return ""

    def _flag(self, key: str) -> bool:
        value = self._entry.get(key, False)
        if not isinstance(value, bool):
            self.mistakes.append(f"{key}: expected true or false")
        return value is True

    def _url(self, allow_private: bool) -> str:
        value = self._entry.get("url")
        if not isinstance(value, str):
            self.mistakes.append("url: expected a URL")
            return ""
        try:
            check_url(value, allow_private)
        except Refused as refused:
            self.mistakes.append(f"url: {refused}")
        return value

    def _severities(self) -> tuple[Severity, ...]:
        value = self._entry.get("severities", list(DELIVERED))
        if not isinstance(value, list) or not value or any(s not in DELIVERED for s in value):
            self.mistakes.append("severities: expected a list of page and ticket")
            return DELIVERED
        return tuple(s for s in DELIVERED if s in value)

    def _secret(self) -> bytes | None:
        text = self._entry.get("secret")
        variable = self._entry.get("secret_env")
        where = "secret"
        if variable is not None:
            where = "secret_env"
            if text is not None:
                self.mistakes.append("secret_env: give this or secret, not both")
                return None
            if not isinstance(variable, str) or not self._environ.get(variable):
                self.mistakes.append(f"secret_env: the environment variable {variable!r} is empty")
                return None
            text = self._environ[variable]
        if text is None:
            return None
        try:
            return decode_secret(text)
        except ValueError as error:
            self.mistakes.append(f"{where}: {error}")
            return None

    def _watchdog_seconds(self) -> int | None:
        value = self._entry.get("watchdog_seconds")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.mistakes.append("watchdog_seconds: expected a whole number of seconds from 1 up")
            return None
        return value

    def _timeout_seconds(self) -> float:
        value = self._entry.get("timeout_seconds", DEFAULT_TIMEOUT_SECONDS)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value <= MAX_TIMEOUT_SECONDS
        ):
            self.mistakes.append(
                f"timeout_seconds: expected a number up to {MAX_TIMEOUT_SECONDS:g}"
            )
            return DEFAULT_TIMEOUT_SECONDS
        return float(value)


def decode_secret(text: object) -> bytes:
    """The key behind a Standard Webhooks secret (``whsec_`` and base64 of 24 to 64 bytes)."""
    if not isinstance(text, str) or not text.startswith(SECRET_PREFIX):
        raise ValueError(f"expected a text that begins with {SECRET_PREFIX}")
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(f"expected base64 after {SECRET_PREFIX}") from error
    if not 24 <= len(key) <= 64:
        raise ValueError("expected 24 to 64 bytes in base64")
    return key
