"""What can be said of a query without any data: what it reads, and which labels it keeps."""

from __future__ import annotations

from collections.abc import Iterator

import promql_parser as parser

from gradwarden_server.matchers import Matcher
from gradwarden_server.promql.parse import Node, parse, plain, selector, word

_KEEPING = ("topk", "bottomk", "limitk", "limit_ratio")
_ABSENT = ("absent", "absent_over_time")
_NUMBERS = ("scalar", "vector", "time", "pi")
_COMPARING = (">", "<", ">=", "<=", "==", "!=")


def selectors(query: str) -> list[tuple[Matcher, ...]]:
    """The matchers of every selector.

    Raises:
        QueryError: it is no PromQL.
    """
    return [selector(node) for node in _nodes(parse(query)) if _selects(node)]


def compared(query: str) -> list[tuple[Matcher, ...]]:
    """The matchers of every selector below a comparison."""
    found = []
    for node in _nodes(parse(query)):
        if isinstance(node, parser.BinaryExpr) and str(node.op) in _COMPARING:
            found += [selector(inner) for inner in _nodes(node) if _selects(inner)]
    return found


def keeps(query: str, label: str) -> bool:
    """Whether the result of a query can have a label of its series."""
    return _keeps(parse(query), label)


def grouped(query: str) -> set[str]:
    """The labels that aggregations and matches name."""
    found: set[str] = set()
    for node in _nodes(parse(query)):
        modifier = getattr(node, "modifier", None)
        held = getattr(modifier, "matching", modifier)
        found.update(getattr(held, "labels", None) or ())
    return found


def _selects(node: Node) -> bool:
    return isinstance(node, parser.VectorSelector)


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
        inner = getattr(node, name, None)
        if inner is not None:
            yield from _nodes(inner)
    for inner in getattr(node, "args", None) or ():
        yield from _nodes(inner)


def _keeps(node: Node, label: str) -> bool:
    node = plain(node)
    if isinstance(node, parser.VectorSelector):
        return True
    if isinstance(node, parser.MatrixSelector):
        return True
    if isinstance(node, parser.SubqueryExpr | parser.UnaryExpr):
        return _keeps(node.expr, label)
    if isinstance(node, parser.AggregateExpr):
        return _aggregated(node, label)
    if isinstance(node, parser.BinaryExpr):
        return _joined(node, label)
    if isinstance(node, parser.Call):
        name = node.func.name
        if name in _ABSENT:
            found = [selector(inner) for inner in _nodes(node) if _selects(inner)]
            return any(m.name == label and not m.is_regex for told in found for m in told)
        made = name in ("label_replace", "label_join")
        return name not in _NUMBERS and any(_keeps(arg, label) or made for arg in node.args)
    return False


def _aggregated(node: Node, label: str) -> bool:
    modifier = node.modifier
    if modifier is None:
        return str(node.op) in _KEEPING and _keeps(node.expr, label)
    named = label in modifier.labels
    by = word(modifier.type) == "By"
    return (named if by else not named) and _keeps(node.expr, label)


def _joined(node: Node, label: str) -> bool:
    left, right = plain(node.lhs), plain(node.rhs)
    if isinstance(left, parser.NumberLiteral):
        return _keeps(right, label)
    if isinstance(right, parser.NumberLiteral) or node.modifier is None:
        return _keeps(left, label)
    modifier = node.modifier
    card = word(modifier.card)
    if card == "OneToOne" and modifier.matching is not None:
        named = label in modifier.matching.labels
        included = word(modifier.matching.type) == "Include"
        return named == included and _keeps(left, label)
    many = right if card == "OneToMany" else left
    return _keeps(many, label) or label in (modifier.group_labels or ())
