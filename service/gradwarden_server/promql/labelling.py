"""Functions of labels and order: ``label_replace``, ``label_join``, ``sort``, ``absent``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import re2

from gradwarden_server.matchers import Matcher
from gradwarden_server.promql.errors import ExecutionError
from gradwarden_server.promql.vector import NAME, Labels, Vector, key, merged

_REFERENCE = re.compile(r"\$(?:\{(\w+)\}|(\w+)|(\$))")
_DIGITS = re.compile(r"(\d+)")


def label_replace(vector: Vector, to: str, replacement: str, source: str, pattern: str) -> Vector:
    """Set a label where another matches an expression that is anchored at both ends.

    Raises:
        ExecutionError: the name or the expression is none, or two series become one.
    """
    _check_name(to, "label_replace")
    options = re2.Options()
    options.log_errors = False
    options.dot_nl = True
    try:
        compiled = re2.compile(pattern, options=options)
    except re2.error:
        raise ExecutionError(f"invalid regular expression in label_replace(): {pattern}") from None
    labels, nameless = [], []
    for held, drop in zip(vector.labels, vector.nameless, strict=True):
        found = compiled.fullmatch(held.get(source, ""))
        if found is None:
            labels.append(held)
            nameless.append(drop)
            continue
        labels.append(_set(held, to, _expanded(replacement, found)))
        nameless.append(drop and to != NAME)
    return merged(Vector(labels, vector.values, vector.present, nameless, vector.ordered))


def label_join(vector: Vector, to: str, separator: str, sources: Sequence[str]) -> Vector:
    """Set a label to the values of others, joined.

    Raises:
        ExecutionError: a name is none, or two series become one.
    """
    _check_name(to, "label_join")
    for source in sources:
        _check_name(source, "label_join")
    labels = [
        _set(held, to, separator.join(held.get(source, "") for source in sources))
        for held in vector.labels
    ]
    nameless = [drop and to != NAME for drop in vector.nameless]
    return merged(Vector(labels, vector.values, vector.present, nameless, vector.ordered))


def sort(vector: Vector, descending: bool) -> Vector:
    """By value, NaN last; over a range the order says nothing and stays."""
    if vector.values.shape[1] != 1:
        return vector

    def place(row: int) -> tuple[bool, float]:
        value = float(vector.values[row, 0])
        return (value != value, 0.0 if value != value else -value if descending else value)

    rows = [row for row in range(len(vector)) if vector.present[row, 0]]
    ordered = vector.taken(sorted(rows, key=place))
    ordered.ordered = True
    return ordered


def sort_by_label(vector: Vector, names: Sequence[str], descending: bool) -> Vector:
    """By the values of labels, numbers in them as numbers, then by all labels."""
    if vector.values.shape[1] != 1:
        return vector

    def place(row: int) -> tuple[Any, ...]:
        labels = vector.labels[row]
        return (*(_natural(labels.get(name, "")) for name in names), key(labels))

    rows = [row for row in range(len(vector)) if vector.present[row, 0]]
    ordered = vector.taken(sorted(rows, key=place, reverse=descending))
    ordered.ordered = True
    return ordered


def labels_of_absence(matchers: Sequence[Matcher]) -> Labels:
    """What ``absent`` can say of series that are not there: their equalities."""
    labels: Labels = {}
    seen: set[str] = set()
    for matcher in matchers:
        if matcher.name == NAME:
            continue
        if matcher.is_equal and not matcher.is_regex and matcher.name not in seen:
            labels[matcher.name] = matcher.value
        else:
            labels.pop(matcher.name, None)
        seen.add(matcher.name)
    return {name: value for name, value in labels.items() if value}


def _set(labels: Labels, name: str, value: str) -> Labels:
    changed = {k: v for k, v in labels.items() if k != name}
    if value:
        changed[name] = value
    return changed


def _expanded(template: str, found: Any) -> str:
    """References to groups in the words of RE2; one to a group that is not there is empty."""

    def group(reference: re.Match[str]) -> str:
        braced, plain, dollar = reference.groups()
        if dollar:
            return "$"
        name = braced or plain
        try:
            return found.group(int(name) if name.isdigit() else name) or ""
        except (IndexError, KeyError):
            return ""

    return _REFERENCE.sub(group, template)


def _natural(text: str) -> list[tuple[int, int, str]]:
    parts = (part for part in _DIGITS.split(text) if part)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _check_name(name: str, function: str) -> None:
    if not name:
        raise ExecutionError(f"invalid destination label name in {function}(): {name!r}")
