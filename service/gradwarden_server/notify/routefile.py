"""The ``routes`` of the receivers file: YAML in, frozen routes out, every mistake at once."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradwarden_server.matchers import BadMatcher, Matcher
from gradwarden_server.matchers import parse as parse_matcher
from gradwarden_server.notify import spec
from gradwarden_server.notify.routes import (
    REPEAT_SECONDS,
    Escalation,
    Route,
    Routing,
    Storm,
)
from gradwarden_server.notify.spec import NOBODY, Receiver, ReceiversError

_FIELDS = {
    "receiver",
    "matchers",
    "group_by",
    "group_wait_seconds",
    "group_interval_seconds",
    "repeat_interval_seconds",
    "cool_down_seconds",
    "continue",
    "escalate",
    "storm",
}
_MOST_SECONDS = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Paging:
    """A whole receivers file."""

    receivers: tuple[Receiver, ...] = ()
    routes: tuple[Route, ...] = ()

    @property
    def routing(self) -> Routing:
        """Its ways from alerts to people."""
        return Routing(self.receivers, self.routes)


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Paging:
    """Read a receivers file.

    Raises:
        ReceiversError: it cannot be read or has mistakes; all of them are told.
    """
    return parse(spec.read(path), str(path), environ)


def parse(document: object, source: str, environ: Mapping[str, str]) -> Paging:
    """Make receivers and routes of a parsed document; ``source`` names it in mistakes.

    Raises:
        ReceiversError: it has mistakes; all of them are told.
    """
    mistakes: list[str] = []
    receivers: tuple[Receiver, ...] = ()
    try:
        receivers = spec.parse(document, source, environ)
    except ReceiversError as error:
        mistakes += error.mistakes
    routes, wrong = _routes(document)
    mistakes += [f"{source}: {mistake}" for mistake in wrong]
    if mistakes:
        raise ReceiversError(mistakes)
    return Paging(receivers, routes)


def _routes(document: object) -> tuple[tuple[Route, ...], list[str]]:
    entries = document.get("routes") if isinstance(document, dict) else None
    if entries is None:
        return (), []
    if not isinstance(entries, list) or not entries:
        return (), ["routes: expected a list; leave it out for one route to every receiver"]
    known, dogs = _names(document)
    routes, mistakes = [], []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            mistakes.append(f"route {number}: expected a mapping, not {entry!r}")
            continue
        reader = _Entry(entry, known, dogs)
        routes.append(reader.route())
        mistakes += [f"route {number}: {mistake}" for mistake in reader.mistakes]
        if not routes[-1].matchers and not routes[-1].goes_on and number < len(entries):
            mistakes.append(
                f"route {number}: takes everything, so those behind it are never asked: give it "
                "matchers, or continue: true, or put it last"
            )
    last = entries[-1]
    if isinstance(last, dict) and last.get("matchers"):
        mistakes.append(
            f"route {len(entries)}: matchers: the last route must have none, so that no page falls "
            f"through; its receiver may be {NOBODY!r}"
        )
    return tuple(routes), mistakes


def _names(document: object) -> tuple[set[str], set[str]]:
    """Names of receivers, and those that hear of the Watchdog alone; whatever else is wrong."""
    assert isinstance(document, dict)
    entries = document.get("receivers")
    held = [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
    names = {str(entry.get("name")) for entry in held}
    return names, {str(e.get("name")) for e in held if e.get("watchdog_seconds") is not None}


class _Entry:
    """Reads one route; writes down what is wrong and goes on, so that all is told at once."""

    def __init__(
        self, entry: Mapping[Any, Any], known: Collection[str], dogs: Collection[str]
    ) -> None:
        self._entry = entry
        self._known = known
        self._dogs = dogs
        self.mistakes = _unknown(entry, _FIELDS)

    def route(self) -> Route:
        receiver = self._receiver(self._entry.get("receiver"), "receiver", {NOBODY})
        goes_on = self._entry.get("continue", False)
        if not isinstance(goes_on, bool):
            self.mistakes.append(f"continue: {goes_on!r}; expected true or false")
        repeat = self._seconds(self._entry, "repeat_interval_seconds")
        return Route(
            receiver=receiver,
            matchers=self._matchers(),
            group_by=self._group_by(),
            group_wait_seconds=self._seconds(self._entry, "group_wait_seconds"),
            group_interval_seconds=self._seconds(self._entry, "group_interval_seconds"),
            repeat_interval_seconds=REPEAT_SECONDS if repeat is None else repeat,
            cool_down_seconds=self._seconds(self._entry, "cool_down_seconds") or 0.0,
            goes_on=goes_on is True,
            escalate=self._escalate(receiver),
            storm=self._storm(),
        )

    def _receiver(self, value: object, field: str, more: Collection[str] = ()) -> str:
        if not isinstance(value, str) or (value not in self._known and value not in more):
            known = ", ".join(sorted({*self._known, *more} - set(self._dogs))) or "none yet"
            self.mistakes.append(
                f"{field}: {value!r} is no receiver of this file; there are {known}"
            )
            return ""
        if value in self._dogs:
            self.mistakes.append(
                f"{field}: {value!r} hears of the Watchdog alone; name another one"
            )
        return value

    def _matchers(self) -> tuple[Matcher, ...]:
        value = self._entry.get("matchers", [])
        if not isinstance(value, list) or any(not isinstance(text, str) for text in value):
            self.mistakes.append(f"matchers: {value!r}; expected a list such as [severity=page]")
            return ()
        found = []
        for text in value:
            try:
                found.append(parse_matcher(text))
            except BadMatcher as error:
                self.mistakes.append(f"matchers: {error}")
        return tuple(found)

    def _group_by(self) -> tuple[str, ...] | None:
        value = self._entry.get("group_by")
        if value is None:
            return None
        if not isinstance(value, list) or any(not isinstance(name, str) for name in value):
            self.mistakes.append(
                f"group_by: {value!r}; expected a list of labels such as [cluster]"
            )
            return None
        for name in value:
            try:
                Matcher(name, "")
            except BadMatcher as error:
                self.mistakes.append(f"group_by: {error}")
        return tuple(dict.fromkeys(value))

    def _seconds(self, entry: Mapping[Any, Any], field: str, where: str = "") -> float | None:
        value = entry.get(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.mistakes.append(f"{where}{field}: {value!r}; expected a number of seconds")
            return None
        if not 0 <= value <= _MOST_SECONDS:
            self.mistakes.append(f"{where}{field}: {value!r}; expected 0 to {_MOST_SECONDS:g}")
            return None
        return float(value)

    def _escalate(self, receiver: str) -> Escalation | None:
        value = self._entry.get("escalate")
        if value is None:
            return None
        if not isinstance(value, dict):
            self.mistakes.append("escalate: expected {receiver: NAME, after_seconds: 900}")
            return None
        self.mistakes += [
            f"escalate: {mistake}"
            for mistake in _unknown(value, {"receiver", "after_seconds", "unless"})
        ]
        second = self._receiver(value.get("receiver"), "escalate: receiver")
        if second and second == receiver:
            self.mistakes.append(
                f"escalate: receiver: {second!r} is told already; name another one"
            )
        if value.get("unless", "acknowledged") != "acknowledged":
            self.mistakes.append(f"escalate: unless: {value['unless']!r}; expected acknowledged")
        after = self._seconds(value, "after_seconds", "escalate: ")
        return Escalation(second) if after is None else Escalation(second, after)

    def _storm(self) -> Storm | None:
        value = self._entry.get("storm", {})
        if value is False:
            return None
        if not isinstance(value, dict):
            self.mistakes.append(f"storm: {value!r}; expected {{groups: 10, seconds: 60}} or false")
            return None
        self.mistakes += [f"storm: {m}" for m in _unknown(value, {"groups", "seconds"})]
        groups = value.get("groups", Storm().groups)
        if isinstance(groups, bool) or not isinstance(groups, int) or not 1 <= groups <= 10_000:
            self.mistakes.append(
                f"storm: groups: {groups!r}; expected a whole number from 1 to 10000"
            )
            groups = Storm().groups
        seconds = self._seconds(value, "seconds", "storm: ")
        return Storm(groups) if seconds is None else Storm(groups, seconds)


def _unknown(entry: Mapping[Any, Any], fields: Collection[str]) -> list[str]:
    known = ", ".join(sorted(fields))
    return [f"unknown field {key!r}; there are {known}" for key in entry if key not in fields]
