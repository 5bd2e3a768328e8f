"""Walks the tree of a query; every node is evaluated for all evaluation times at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import promql_parser as parser

from gradwarden_server.promql import aggregate, binary
from gradwarden_server.promql.errors import QueryError
from gradwarden_server.promql.functions import call
from gradwarden_server.promql.parse import Node, selector, word
from gradwarden_server.promql.reading import moments, read
from gradwarden_server.promql.scope import LOOKBACK_MS, Scope, Value, number_of, vector_of
from gradwarden_server.promql.storage import look
from gradwarden_server.promql.vector import Vector, merged

_MANY: dict[str, Literal["left", "right"]] = {"ManyToOne": "left", "OneToMany": "right"}


def evaluate(node: Node, scope: Scope) -> Value:
    """The value of a node.

    Raises:
        QueryError: types do not fit.
        ExecutionError: it cannot be answered, or asks for too much.
    """
    kind = _NODES.get(type(node))
    if kind is None:
        raise QueryError(f"unexpected {type(node).__name__}; a range needs a function around it")
    value = kind(node, scope)
    if isinstance(value, Vector):
        scope.budget.spend(value.values.size)
    return value


def _selector(node: Node, scope: Scope) -> Value:
    at = moments(node, scope)
    blocks = read(selector(node), at, LOOKBACK_MS, scope)
    return look(blocks, at, LOOKBACK_MS).vector


def _paren(node: Node, scope: Scope) -> Value:
    return scope.value(node.expr)


def _number(node: Node, scope: Scope) -> Value:
    return scope.constant(node.val)


def _string(node: Node, scope: Scope) -> Value:
    return str(node.val)


def _negative(node: Node, scope: Scope) -> Value:
    value = scope.value(node.expr)
    if isinstance(value, str):
        raise QueryError("a string has no sign")
    return merged(value.changed(-value.values)) if isinstance(value, Vector) else -value


def _aggregation(node: Node, scope: Scope) -> Value:
    op = str(node.op).lower()
    vector = vector_of(scope.value(node.expr), op)
    by: Sequence[str] | None = ()
    without: Sequence[str] = ()
    if node.modifier is not None:
        if word(node.modifier.type) == "By":
            by = list(node.modifier.labels)
        else:
            by, without = None, list(node.modifier.labels)
    groups = aggregate.Groups(vector, by, without)
    parameter = None if node.param is None else scope.value(node.param)
    if op == "count_values":
        if not isinstance(parameter, str) or not parameter:
            raise QueryError(f"invalid label name {parameter!r} in count_values")
        return aggregate.count_values(vector, groups, parameter)
    if op in aggregate.CHOICES:
        return aggregate.choose(vector, groups, op, number_of(parameter, op))
    if op not in aggregate.AGGREGATES:
        raise QueryError(f"the aggregation {op} is not known here")
    numbers = number_of(parameter, op) if op == "quantile" else None
    return aggregate.aggregate(vector, groups, op, numbers)


def _binary(node: Node, scope: Scope) -> Value:
    op = str(node.op)
    left, right = scope.value(node.lhs), scope.value(node.rhs)
    if isinstance(left, str) or isinstance(right, str):
        raise QueryError("binary expression must contain only scalar and instant vector types")
    matching = _matching(node.modifier)
    if isinstance(left, Vector) and isinstance(right, Vector):
        if op in binary.SETS:
            return binary.sets(op, left, right, matching)
        return binary.vectors(op, left, right, matching)
    if isinstance(left, Vector):
        assert not isinstance(right, Vector)
        return binary.with_scalar(op, left, right, False, matching.keep_bool)
    if isinstance(right, Vector):
        return binary.with_scalar(op, right, left, True, matching.keep_bool)
    return binary.scalars(op, left, right)


def _matching(modifier: Any) -> binary.Matching:
    if modifier is None:
        return binary.Matching()
    on: tuple[str, ...] | None = None
    ignoring: tuple[str, ...] = ()
    if modifier.matching is not None:
        labels = tuple(modifier.matching.labels)
        if word(modifier.matching.type) == "Include":
            on = labels
        else:
            ignoring = labels
    card = word(modifier.card).partition("(")[0]
    fill = modifier.fill_values
    return binary.Matching(
        on=on,
        ignoring=ignoring,
        many=_MANY.get(card, "none"),
        include=tuple(modifier.group_labels or ()),
        fill=(None, None) if fill is None else (fill.lhs, fill.rhs),
        keep_bool=bool(modifier.return_bool),
    )


_NODES: dict[type, Callable[[Node, Scope], Value]] = {
    parser.AggregateExpr: _aggregation,
    parser.BinaryExpr: _binary,
    parser.Call: call,
    parser.NumberLiteral: _number,
    parser.ParenExpr: _paren,
    parser.StringLiteral: _string,
    parser.UnaryExpr: _negative,
    parser.VectorSelector: _selector,
}
