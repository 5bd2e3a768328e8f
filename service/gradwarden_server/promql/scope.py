"""Where and when the nodes of a query are evaluated, and what they may use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradwarden_server.promql.errors import LimitExceeded, QueryError
from gradwarden_server.promql.parse import Node
from gradwarden_server.promql.storage import Block, Storage
from gradwarden_server.promql.vector import Floats, Millis, Vector

LOOKBACK_MS = 300_000
"""How old the newest sample of an instant vector may be."""
SUBQUERY_STEP_MS = 60_000
"""Of a subquery that names none."""
Value = Vector | Floats | str


@dataclass(slots=True)
class Budget:
    """What one query may still use. ``expired`` says that its time is over."""

    samples: int
    expired: Callable[[], bool]

    def spend(self, samples: int) -> None:
        """Count samples that are read or made.

        Raises:
            LimitExceeded: there are too many, or the time is over.
        """
        self.samples -= samples
        if self.samples < 0:
            raise LimitExceeded("query processing would load too many samples into memory")
        if self.expired():
            raise LimitExceeded("query timed out in expression evaluation")


@dataclass(frozen=True, slots=True)
class Scope:
    """Where and when a node is evaluated.

    Attributes:
        times: [T] evaluation times in milliseconds.
        start_ms, end_ms, step_ms: Of the whole query, for ``@ start()`` and the like.
        walk: Evaluates a node.
        selected: What was read before; a query may name a series several times.
    """

    storage: Storage
    times: Millis
    start_ms: int
    end_ms: int
    step_ms: int
    budget: Budget
    walk: Callable[[Node, Scope], Value]
    selected: dict[Any, Sequence[Block]] = field(default_factory=dict)

    @property
    def seconds(self) -> Floats:
        """The evaluation times, [T]."""
        return self.times / 1000.0

    def value(self, node: Node) -> Value:
        """The value of a node."""
        return self.walk(node, self)

    def constant(self, value: float) -> Floats:
        """A number at each time."""
        return np.full(len(self.times), value)


def vector_of(value: Value, where: str) -> Vector:
    """The value as a vector, or a QueryError."""
    if not isinstance(value, Vector):
        raise QueryError(f"{where} expects an instant vector")
    return value


def number_of(value: Value | None, where: str) -> Floats:
    """The value as a number at each time, or a QueryError."""
    if not isinstance(value, np.ndarray):
        raise QueryError(f"{where} expects a number")
    return value


def text_of(value: Value, where: str) -> str:
    """The value as a string, or a QueryError."""
    if not isinstance(value, str):
        raise QueryError(f"{where} expects a string")
    return value
