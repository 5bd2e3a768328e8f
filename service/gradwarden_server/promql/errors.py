"""How a query fails. The texts are for whoever wrote it."""

from __future__ import annotations


class QueryError(ValueError):
    """The query is no PromQL, or of types that do not fit."""


class ExecutionError(ValueError):
    """The query cannot be answered on this data, such as a match that is not unique."""


class LimitExceeded(ExecutionError):
    """The query asks for more samples, points or time than it may."""
