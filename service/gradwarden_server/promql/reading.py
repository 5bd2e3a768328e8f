"""What selectors and ranges read: when they look, and the samples that they find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import promql_parser as parser

from gradwarden_server.promql.errors import QueryError
from gradwarden_server.promql.parse import Node, millis, plain, selector, word
from gradwarden_server.promql.scope import SUBQUERY_STEP_MS, Scope
from gradwarden_server.promql.storage import Block, live
from gradwarden_server.promql.vector import Millis, Vector, single, without_name


def ranged(node: Node, scope: Scope) -> tuple[list[Block], Millis, int]:
    """The samples of a range, the right edges of its windows and their width in ms.

    Raises:
        QueryError: the node is no range.
    """
    node = plain(node)
    if isinstance(node, parser.MatrixSelector):
        inner = node.vector_selector
        at, width = moments(inner, scope), millis(node.range)
        blocks = read(selector(inner), at, width, scope)
        return list(live(blocks)), at, width
    if isinstance(node, parser.SubqueryExpr):
        return _subquery(node, scope)
    raise QueryError("expected a range, such as metric[5m]")


def _subquery(node: Node, scope: Scope) -> tuple[list[Block], Millis, int]:
    at, width = moments(node, scope), millis(node.range)
    step = millis(node.step) or SUBQUERY_STEP_MS
    first = (int(at.min()) - width) // step * step
    if first <= int(at.min()) - width:
        first += step
    times = np.arange(first, int(at.max()) + 1, step, dtype=np.int64)
    if not len(times):
        return [], at, width
    value = replace(scope, times=times).value(node.expr)
    if isinstance(value, str):
        raise QueryError("a subquery needs numbers")
    vector = value if isinstance(value, Vector) else single(value)
    blocks: list[Block] = []
    by_presence: dict[bytes, list[int]] = {}
    for row in range(len(vector)):
        by_presence.setdefault(vector.present[row].tobytes(), []).append(row)
    for rows in by_presence.values():
        there = vector.present[rows[0]]
        if there.any():
            labels = [
                without_name(vector.labels[row]) if vector.nameless[row] else vector.labels[row]
                for row in rows
            ]
            blocks.append(Block(labels, times[there], vector.values[rows][:, there]))
    return blocks, at, width


def moments(node: Node, scope: Scope) -> Millis:
    """When a selector looks, [T]: ``@`` first, then ``offset``."""
    times = scope.times
    if node.at is not None:
        kind = word(node.at.type)
        if kind == "Start":
            moment = scope.start_ms
        elif kind == "End":
            moment = scope.end_ms
        else:
            moment = round(node.at.at.timestamp() * 1000)
        times = np.full(len(times), moment, np.int64)
    return times - millis(node.offset)


def read(matchers: Any, at: Millis, width_ms: int, scope: Scope) -> Sequence[Block]:
    """The samples of all series that match, as far back from every moment as asked."""
    asked = matchers, int(at.min()) - width_ms, int(at.max())
    blocks = scope.selected.get(asked)
    if blocks is None:
        blocks = list(scope.storage.select(*asked))
        scope.budget.spend(sum(block.values.size for block in blocks))
        scope.selected[asked] = blocks
    return blocks
