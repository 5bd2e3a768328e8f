"""What a query is made of, for those who must say it in another language or split it up."""

from __future__ import annotations

from dataclasses import dataclass

import promql_parser as parser

from gradwarden_server.promql.parse import parse, plain


@dataclass(frozen=True, slots=True)
class Summed:
    """``sum by (labels) (function(metric[...]))``: its parts."""

    metric: str
    labels: tuple[str, ...]


def summed(query: str) -> Summed | None:
    """The parts of a sum of increases or rates of one metric; None of any other query.

    Raises:
        QueryError: it is no PromQL.
    """
    tree = plain(parse(query))
    if not isinstance(tree, parser.AggregateExpr) or str(tree.op) != "sum":
        return None
    inner = plain(tree.expr)
    named = isinstance(inner, parser.Call) and inner.func.name in ("increase", "rate")
    if not named or not isinstance(inner.args[0], parser.MatrixSelector):
        return None
    labels = tuple(tree.modifier.labels) if tree.modifier is not None else ()
    return Summed(str(inner.args[0].vector_selector.prettify()), labels)


def split(query: str, labels: tuple[str, ...]) -> str | None:
    """The query with its outermost ``sum`` or ``count`` by these labels; None of any other.

    Raises:
        QueryError: it is no PromQL.
    """
    tree = plain(parse(query))
    if not isinstance(tree, parser.AggregateExpr) or str(tree.op) not in ("sum", "count"):
        return None
    return f"{tree.op} by ({', '.join(labels)}) ({tree.expr.prettify()})"
