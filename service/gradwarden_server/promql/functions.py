"""The functions of PromQL by their names: what each takes, and who computes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import promql_parser as parser

from gradwarden_server.promql import elementwise, histograms, labelling, ranges
from gradwarden_server.promql.errors import QueryError
from gradwarden_server.promql.parse import Node, plain, selector
from gradwarden_server.promql.reading import moments, ranged, read
from gradwarden_server.promql.scope import LOOKBACK_MS, Scope, Value, number_of, text_of, vector_of
from gradwarden_server.promql.storage import Block, look, windows
from gradwarden_server.promql.vector import Floats, Millis, Vector, named, single, stacked


def call(node: Node, scope: Scope) -> Value:
    """The value of a function."""
    name = node.func.name
    arguments = list(node.args)
    if name in ranges.RANGE_FUNCTIONS:
        return _over_range(name, arguments, scope)
    special = FUNCTIONS.get(name)
    if special is not None:
        return special(arguments, scope)
    if name in elementwise.CALENDAR and not arguments:
        return single(elementwise.CALENDAR[name](scope.seconds))
    function = elementwise.ELEMENTWISE.get(name) or elementwise.CALENDAR.get(name)
    if function is None:
        raise QueryError(f"the function {name} is not known here")
    vector = vector_of(scope.value(arguments[0]), name)
    numbers = [number_of(scope.value(argument), name) for argument in arguments[1:]]
    present = vector.present
    if name == "clamp":
        present = present & ~(numbers[0] > numbers[1])
    with np.errstate(all="ignore"):
        values = np.asarray(function(vector.values, *numbers), np.float64)
    return vector.changed(values, present)


def _over_range(name: str, arguments: Sequence[Node], scope: Scope) -> Value:
    held: tuple[list[Block], Millis, int] | None = None
    numbers: list[Floats] = []
    for argument in arguments:
        if isinstance(plain(argument), parser.MatrixSelector | parser.SubqueryExpr):
            held = ranged(argument, scope)
        else:
            numbers.append(number_of(scope.value(argument), name))
    if held is None:
        raise QueryError(f"{name} expects a range, such as metric[5m]")
    blocks, at, width = held
    parts = []
    for block in blocks:
        if not len(block.times):
            continue
        frame = windows(block, at, width)
        values, present = ranges.RANGE_FUNCTIONS[name](frame, numbers, scope.seconds)
        rows = np.flatnonzero(present.any(axis=1)).tolist()
        if rows:
            labels = [dict(block.labels[row]) for row in rows]
            drop = [name not in ranges.KEEPS_NAME] * len(rows)
            parts.append(Vector(labels, values[rows], present[rows], drop))
    return stacked(parts, len(at))


def _absent(arguments: Sequence[Node], scope: Scope) -> Value:
    vector = vector_of(scope.value(arguments[0]), "absent")
    there = vector.present.any(axis=0) if len(vector) else np.zeros(len(scope.times), np.bool_)
    return single(scope.constant(1.0), _lacking(arguments[0]), np.asarray(~there, np.bool_))


def _absent_over_time(arguments: Sequence[Node], scope: Scope) -> Value:
    blocks, at, width = ranged(arguments[0], scope)
    there = np.zeros(len(at), np.bool_)
    for block in blocks:
        there |= windows(block, at, width).counts > 0
    return single(scope.constant(1.0), _lacking(arguments[0]), ~there)


def _lacking(node: Node) -> dict[str, str]:
    node = plain(node)
    if isinstance(node, parser.MatrixSelector):
        node = node.vector_selector
    if not isinstance(node, parser.VectorSelector):
        return {}
    return labelling.labels_of_absence(selector(node))


def _to_scalar(arguments: Sequence[Node], scope: Scope) -> Value:
    vector = vector_of(scope.value(arguments[0]), "scalar")
    if not len(vector):
        return scope.constant(np.nan)
    alone = vector.present.sum(axis=0) == 1
    sums = np.where(vector.present, vector.values, 0.0).sum(axis=0)
    return np.asarray(np.where(alone, sums, np.nan), np.float64)


def _timestamp(arguments: Sequence[Node], scope: Scope) -> Value:
    node = plain(arguments[0])
    if isinstance(node, parser.VectorSelector):
        at = moments(node, scope)
        looked = look(read(selector(node), at, LOOKBACK_MS, scope), at, LOOKBACK_MS)
        return looked.vector.changed(looked.taken / 1000.0)
    vector = vector_of(scope.value(node), "timestamp")
    return vector.changed(np.broadcast_to(scope.seconds, vector.values.shape).copy())


def _label_replace(arguments: Sequence[Node], scope: Scope) -> Value:
    vector, *words = (scope.value(argument) for argument in arguments)
    to, replacement, source, pattern = (text_of(word, "label_replace") for word in words)
    vector = vector_of(vector, "label_replace")
    return labelling.label_replace(vector, to, replacement, source, pattern)


def _label_join(arguments: Sequence[Node], scope: Scope) -> Value:
    vector, *words = (scope.value(argument) for argument in arguments)
    to, separator, *sources = (text_of(word, "label_join") for word in words)
    return labelling.label_join(vector_of(vector, "label_join"), to, separator, sources)


def _sort(descending: bool) -> Callable[[Sequence[Node], Scope], Value]:
    return lambda arguments, scope: labelling.sort(
        named(vector_of(scope.value(arguments[0]), "sort")), descending
    )


def _sort_by_label(descending: bool) -> Callable[[Sequence[Node], Scope], Value]:
    def sort(arguments: Sequence[Node], scope: Scope) -> Value:
        names = [text_of(scope.value(argument), "sort_by_label") for argument in arguments[1:]]
        vector = vector_of(scope.value(arguments[0]), "sort_by_label")
        return labelling.sort_by_label(vector, names, descending)

    return sort


def _extreme(of: np.ufunc) -> Callable[[Sequence[Node], Scope], Value]:
    def extreme(arguments: Sequence[Node], scope: Scope) -> Value:
        numbers = [number_of(scope.value(argument), "min_of and max_of") for argument in arguments]
        return np.asarray(of.reduce(numbers), np.float64)

    return extreme


def _histogram_quantile(arguments: Sequence[Node], scope: Scope) -> Value:
    q = number_of(scope.value(arguments[0]), "histogram_quantile")
    return histograms.quantile(q, vector_of(scope.value(arguments[1]), "histogram_quantile"))


def _histogram_quantiles(arguments: Sequence[Node], scope: Scope) -> Value:
    vector = vector_of(scope.value(arguments[0]), "histogram_quantiles")
    label = text_of(scope.value(arguments[1]), "histogram_quantiles")
    qs = [number_of(scope.value(a), "histogram_quantiles") for a in arguments[2:]]
    return histograms.quantiles(qs, vector, label)


def _histogram_fraction(arguments: Sequence[Node], scope: Scope) -> Value:
    low, high = (number_of(scope.value(a), "histogram_fraction") for a in arguments[:2])
    vector = vector_of(scope.value(arguments[2]), "histogram_fraction")
    return histograms.fraction(low, high, vector)


FUNCTIONS: dict[str, Callable[[Sequence[Node], Scope], Value]] = {
    "absent": _absent,
    "absent_over_time": _absent_over_time,
    "end": lambda arguments, scope: scope.constant(scope.end_ms / 1000),
    "histogram_fraction": _histogram_fraction,
    "histogram_quantile": _histogram_quantile,
    "histogram_quantiles": _histogram_quantiles,
    "label_join": _label_join,
    "max_of": _extreme(np.maximum),
    "min_of": _extreme(np.minimum),
    "label_replace": _label_replace,
    "pi": lambda arguments, scope: scope.constant(np.pi),
    "range": lambda arguments, scope: scope.constant((scope.end_ms - scope.start_ms) / 1000),
    "scalar": _to_scalar,
    "sort": _sort(False),
    "sort_by_label": _sort_by_label(False),
    "sort_by_label_desc": _sort_by_label(True),
    "sort_desc": _sort(True),
    "start": lambda arguments, scope: scope.constant(scope.start_ms / 1000),
    "step": lambda arguments, scope: scope.constant(scope.step_ms / 1000),
    "time": lambda arguments, scope: scope.seconds,
    "timestamp": _timestamp,
    "vector": lambda arguments, scope: single(number_of(scope.value(arguments[0]), "vector")),
}
