"""Text to a syntax tree, by the package ``promql-parser``; and what its nodes say, typed."""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache
from typing import Any, cast

import promql_parser as parser

from gradwarden_server.matchers import BadMatcher, Matcher
from gradwarden_server.promql.errors import QueryError
from gradwarden_server.promql.vector import NAME

LONGEST = 65_536
_SIGNS = {
    "Equal": (False, True),
    "NotEqual": (False, False),
    "Re": (True, True),
    "NotRe": (True, False),
}
Node = Any
"""A node of the tree; the package's classes share no useful base."""


@lru_cache(maxsize=512)
def parse(query: str) -> Node:
    """The tree of a query.

    Raises:
        QueryError: it is no PromQL.
    """
    if len(query) > LONGEST:
        raise QueryError(f"the query is longer than {LONGEST} characters")
    if not query.strip():
        raise QueryError("no expression found in input")
    try:
        return parser.parse(query)
    except ValueError as error:
        raise QueryError(f"parse error: {error}") from None


def formatted(query: str) -> str:
    """The query as its tree is written."""
    return str(cast(Any, parse(query)).prettify())


def plain(node: Node) -> Node:
    """The node within its parentheses."""
    while isinstance(node, parser.ParenExpr):
        node = node.expr
    return node


def selector(node: Node) -> tuple[Matcher, ...]:
    """What a selector asks of labels.

    Raises:
        QueryError: an expression is none, or nothing is asked at all.
    """
    if node.matchers.or_matchers:
        raise QueryError("matchers joined by 'or' are no PromQL of Prometheus")
    try:
        matchers = [Matcher(NAME, node.name)] if node.name else []
        matchers += [Matcher(m.name, m.value, *_SIGNS[word(m.op)]) for m in node.matchers.matchers]
    except BadMatcher as error:
        raise QueryError(str(error)) from None
    if all(matcher.matches({}) for matcher in matchers):
        raise QueryError("vector selector must contain at least one non-empty matcher")
    return tuple(matchers)


def word(member: Any) -> str:
    """The name of a member of one of the package's enumerations, which cannot be hashed."""
    return str(member).rpartition(".")[2]


def millis(span: timedelta | None) -> int:
    """A span of the tree; none is zero."""
    return 0 if span is None else round(span / timedelta(milliseconds=1))


def span(text: str) -> timedelta:
    """A duration such as ``5m`` or ``1h30m``.

    Raises:
        ValueError: it is none.
    """
    return parser.parse_duration(text)
