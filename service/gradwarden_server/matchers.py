"""Label matchers as Prometheus and Alertmanager have them: ``=``, ``!=``, ``=~``, ``!~``.

Expressions are RE2's, anchored at both ends, and run in time linear in the label: whoever may
write a silence cannot hang the service with it. A label that is absent counts as empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import re2

LONGEST = 1024
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*\Z")
_TEXT = re.compile(r"\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*(.*?)\s*\Z", re.DOTALL)
_OPERATORS = {"=": (False, True), "!=": (False, False), "=~": (True, True), "!~": (True, False)}


class BadMatcher(ValueError):
    """Not a matcher; the text names what is wrong."""


@dataclass(frozen=True, slots=True)
class Matcher:
    """One condition on one label."""

    name: str
    value: str
    is_regex: bool = False
    is_equal: bool = True

    def __post_init__(self) -> None:
        """Check it.

        Raises:
            BadMatcher: no label has that name, or the expression is none.
        """
        if not _NAME.match(self.name):
            raise BadMatcher(f"{self.name!r} is no label name")
        if len(self.value) > LONGEST:
            raise BadMatcher(f"{self.name}: the value is longer than {LONGEST} characters")
        if self.is_regex:
            _compiled(self.value)

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a label set satisfies it."""
        held = labels.get(self.name, "")
        if self.is_regex:
            return (_compiled(self.value).fullmatch(held) is not None) == self.is_equal
        return (held == self.value) == self.is_equal

    def __str__(self) -> str:
        sign = next(s for s, kind in _OPERATORS.items() if kind == (self.is_regex, self.is_equal))
        escaped = self.value.replace("\\", "\\\\").replace('"', '\\"')
        return f'{self.name}{sign}"{escaped}"'


def parse(text: str) -> Matcher:
    """A matcher as people write it, ``name=value`` with or without quotes.

    Raises:
        BadMatcher: it is none.
    """
    found = _TEXT.match(text)
    if found is None:
        raise BadMatcher(f"{text!r} is no matcher; write NAME=VALUE, or with !=, =~ or !~")
    name, sign, value = found.groups()
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    return Matcher(name, value, *_OPERATORS[sign])


def all_match(matchers: Iterable[Matcher], labels: Mapping[str, str]) -> bool:
    """Whether a label set satisfies every one."""
    return all(matcher.matches(labels) for matcher in matchers)


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options=options)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        raise BadMatcher(f"{pattern!r} is no RE2 expression: {reason}") from None
