"""Instant and range queries, with the limits that keep one of them from taking the service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import promql_parser as parser

from gradwarden_server.promql.errors import LimitExceeded, QueryError
from gradwarden_server.promql.evaluate import evaluate
from gradwarden_server.promql.parse import parse, plain
from gradwarden_server.promql.reading import ranged
from gradwarden_server.promql.scope import Budget, Scope, Value
from gradwarden_server.promql.storage import Block, Storage
from gradwarden_server.promql.vector import Millis, Vector, named, single

Kind = Literal["vector", "scalar", "string", "matrix"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one query may use; Prometheus's defaults, but for its samples.

    Attributes:
        samples: Read and made, of all nodes together.
        points: Evaluation times of a range query.
    """

    samples: int = 50_000_000
    points: int = 11_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query found.

    Attributes:
        kind: As the HTTP API calls it.
        times: [T] evaluation times in milliseconds.
        vector: Of a vector, a scalar (one series) or a range query's matrix.
        text: Of a string.
        blocks: Of an instant query of a range, its raw samples.
    """

    kind: Kind
    times: Millis
    vector: Vector | None = None
    text: str = ""
    blocks: tuple[Block, ...] = ()


class Engine:
    """Evaluates queries over one storage.

    Args:
        storage: What is read.
        limits: Of each query.
        expired: Asked on the way whether the query's time is over.
    """

    def __init__(
        self,
        storage: Storage,
        limits: Limits | None = None,
        expired: Callable[[], bool] = lambda: False,
    ) -> None:
        self._storage = storage
        self._limits = limits or Limits()
        self._expired = expired

    def instant(self, query: str, at_ms: int) -> Answer:
        """The value of a query at one moment.

        Raises:
            QueryError: it is no PromQL.
            ExecutionError: it cannot be answered, or asks for too much.
        """
        tree = parse(query)
        scope = self._scope(np.array([at_ms], np.int64), at_ms, at_ms, 0)
        inner = plain(tree)
        if isinstance(inner, parser.MatrixSelector | parser.SubqueryExpr):
            blocks, at, width = ranged(inner, scope)
            held = tuple(_within(block, int(at[0]) - width, int(at[0])) for block in blocks)
            return Answer("matrix", scope.times, blocks=tuple(b for b in held if len(b.times)))
        return _answer(evaluate(tree, scope), scope.times, "vector")

    def range(self, query: str, start_ms: int, end_ms: int, step_ms: int) -> Answer:
        """The values of a query at each step from ``start_ms`` to ``end_ms``.

        Raises:
            QueryError: it is no PromQL, or gives no numbers.
            ExecutionError: it cannot be answered, or asks for too much.
        """
        if step_ms <= 0:
            raise QueryError("step: zero or negative query resolution step widths are not accepted")
        if end_ms < start_ms:
            raise QueryError("end: the end is before the start")
        if (end_ms - start_ms) // step_ms + 1 > self._limits.points:
            raise LimitExceeded(
                f"exceeded maximum resolution of {self._limits.points:,} points per timeseries; "
                "try a larger step"
            )
        tree = parse(query)
        if isinstance(plain(tree), parser.MatrixSelector | parser.SubqueryExpr):
            raise QueryError("invalid expression type range vector for range query")
        times = np.arange(start_ms, end_ms + 1, step_ms, dtype=np.int64)
        value = evaluate(tree, self._scope(times, start_ms, end_ms, step_ms))
        if isinstance(value, str):
            raise QueryError("invalid expression type string for range query")
        return _answer(value, times, "matrix")

    def _scope(self, times: Millis, start_ms: int, end_ms: int, step_ms: int) -> Scope:
        budget = Budget(self._limits.samples, self._expired)
        return Scope(self._storage, times, start_ms, end_ms, step_ms, budget, evaluate)


def _answer(value: Value, times: Millis, kind: Kind) -> Answer:
    if isinstance(value, str):
        return Answer("string", times, text=value)
    if isinstance(value, Vector):
        vector = named(value)
        rows = [int(row) for row in np.flatnonzero(vector.present.any(axis=1))]
        return Answer(kind, times, vector.taken(rows))
    return Answer("scalar" if kind == "vector" else kind, times, single(value))


def _within(block: Block, after_ms: int, until_ms: int) -> Block:
    inside = (block.times > after_ms) & (block.times <= until_ms)
    return Block(block.labels, block.times[inside], block.values[:, inside])
