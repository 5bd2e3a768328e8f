"""Reads one entry of the receivers file; writes down what is wrong, so that all is told at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradwarden_server.notify.guard import Refused, check_url

_LONGEST = 128
_LONGEST_SECRET = 4096


class Fields:
    """The fields of one entry. What nobody asked for is a mistake: see ``finish``."""

    def __init__(self, entry: Mapping[Any, Any], environ: Mapping[str, str]) -> None:
        self._entry = entry
        self._environ = environ
        self._known: list[str] = []
        self.mistakes: list[str] = []

    def has(self, key: str) -> bool:
        """Whether the entry gives it."""
        self._know(key)
        return self._entry.get(key) is not None

    def text(self, key: str, wanted: str, default: str | None = None) -> str:
        """A text of 1 to 128 characters; without a default it must be there."""
        self._know(key)
        value = self._entry.get(key, default)
        if isinstance(value, str) and value and len(value) <= _LONGEST and value.isprintable():
            return value
        self.mistakes.append(f"{key}: expected {wanted}")
        return ""

    def texts(self, key: str, wanted: str) -> tuple[str, ...]:
        """A list of at least one text."""
        self._know(key)
        value = self._entry.get(key)
        if isinstance(value, list) and value and all(isinstance(v, str) and v for v in value):
            return tuple(value)
        self.mistakes.append(f"{key}: expected {wanted}")
        return ()

    def choice(self, key: str, known: tuple[str, ...], default: str) -> str:
        """One of a few words."""
        self._know(key)
        value = self._entry.get(key, default)
        if value in known:
            return str(value)
        self.mistakes.append(f"{key}: {value!r} is not one of {', '.join(known)}")
        return default

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        self._know(key)
        value = self._entry.get(key, default)
        if not isinstance(value, bool):
            self.mistakes.append(f"{key}: expected true or false")
            return default
        return value

    def whole(self, key: str, wanted: str, most: int) -> int | None:
        """A whole number from 1 up, or None where there is none."""
        self._know(key)
        value = self._entry.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            self.mistakes.append(f"{key}: expected {wanted}")
            return None
        return value

    def number(self, key: str, default: float, most: float) -> float:
        """A number above 0."""
        self._know(key)
        value = self._entry.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
            self.mistakes.append(f"{key}: expected a number up to {most:g}")
            return default
        return float(value)

    def url(self, allow_private: bool, default: str | None = None) -> str:
        """``url``, or ``url_env`` for one that is a credential; judged as far as is possible."""
        given = self.secret("url", "a URL", needed=default is None)
        if not given:
            return default or ""
        try:
            check_url(given, allow_private)
        except Refused as refused:
            self.mistakes.append(f"url: {refused}")
        return given

    def secret(self, key: str, wanted: str, needed: bool = True) -> str:
        """One credential: in the file, or in the environment variable that ``KEY_env`` names."""
        given = self.secrets(key, wanted)
        if len(given) == 1:
            return given[0]
        if given or (needed and not self._said(key)):
            self.mistakes.append(f"{key}: expected {wanted}")
        return ""

    def secrets(self, key: str, wanted: str = "a text, or a list of texts") -> tuple[str, ...]:
        """Credentials: one or a list, in the file or by the names of environment variables."""
        variable = f"{key}_env"
        self._know(key)
        self._know(variable)
        plain, named = self._entry.get(key), self._entry.get(variable)
        if named is None:
            return self._listed(key, plain, wanted)
        if plain is not None:
            self.mistakes.append(f"{variable}: give this or {key}, not both")
            return ()
        found = []
        for name in self._listed(variable, named, "the name of a variable, or a list"):
            value = self._environ.get(name, "").strip()
            if value:
                found.append(value)
            else:
                self.mistakes.append(f"{variable}: the environment variable {name!r} is empty")
        return tuple(found)

    def finish(self, type_name: str) -> None:
        """Tell the fields that this type does not know, before all other mistakes."""
        unknown = [key for key in self._entry if key not in self._known]
        known = ", ".join(self._known)
        self.mistakes[:0] = [
            f"{key}: unknown field; type {type_name} knows {known}" for key in unknown
        ]

    def _listed(self, key: str, value: object, wanted: str) -> tuple[str, ...]:
        if value is None:
            return ()
        values = value if isinstance(value, list) else [value]
        if all(isinstance(v, str) and 0 < len(v) <= _LONGEST_SECRET for v in values):
            return tuple(values)
        self.mistakes.append(f"{key}: expected {wanted}")
        return ()

    def _said(self, key: str) -> bool:
        return any(mistake.startswith((f"{key}:", f"{key}_env:")) for mistake in self.mistakes)

    def _know(self, key: str) -> None:
        if key not in self._known:
            self._known.append(key)
