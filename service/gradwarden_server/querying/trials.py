"""Unit tests of rules as data, in the file format of ``promtool test rules``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradwarden_server.promql.engine import Engine
from gradwarden_server.promql.errors import ExecutionError, QueryError
from gradwarden_server.promql.memory import Memory
from gradwarden_server.promql.notation import Unreadable, labels_of, points, span
from gradwarden_server.promql.vector import Key, key
from gradwarden_server.querying.ruling import ALERTNAME, GroupState
from gradwarden_server.querying.templates import BadTemplate
from gradwarden_server.rules.groups import PromGroup

_DEFAULT_INTERVAL = "1m"
_KEYS = {"alert_rule_test", "input_series", "interval", "name", "promql_expr_test"}


@dataclass(frozen=True, slots=True)
class Trial:
    """How one test of a file went: what was wrong, line by line; nothing where all held."""

    name: str
    wrong: tuple[str, ...] = field(default=())


def run(document: Mapping[str, Any], groups: Sequence[PromGroup]) -> Iterator[Trial]:
    """Run the tests of a file over rules.

    Args:
        document: The parsed file.
        groups: The rules that its ``rule_files`` name.
    """
    interval = str(document.get("evaluation_interval") or _DEFAULT_INTERVAL)
    order = [str(name) for name in document.get("group_eval_order") or ()]
    ranked = sorted(groups, key=lambda g: order.index(g.name) if g.name in order else len(order))
    for number, test in enumerate(document.get("tests") or (), start=1):
        name = str(test.get("name") or f"test {number}")
        unknown = sorted(set(test) - _KEYS)
        if unknown:
            yield Trial(name, (f"the field {unknown[0]!r} is not known here",))
            continue
        try:
            yield Trial(name, tuple(_tried(test, ranked, span(interval))))
        except (QueryError, ExecutionError, BadTemplate, Unreadable) as error:
            yield Trial(name, (str(error),))
        except KeyError as error:
            yield Trial(name, (f"the field {error} is missing",))


def _tried(test: Mapping[str, Any], groups: Sequence[PromGroup], interval_ms: int) -> Iterator[str]:
    memory = Memory()
    every_ms = span(str(test.get("interval") or _DEFAULT_INTERVAL))
    for series in test.get("input_series") or ():
        labels = labels_of(str(series["series"]))
        told = enumerate(points(str(series["values"])))
        memory.add(labels, [(i * every_ms, v) for i, v in told if v is not None])
    alert_tests = list(test.get("alert_rule_test") or ())
    expression_tests = list(test.get("promql_expr_test") or ())
    last_ms = max(
        (span(str(t.get("eval_time") or "0s")) for t in (*alert_tests, *expression_tests)),
        default=0,
    )
    states = [GroupState(group) for group in groups]
    engine = Engine(memory)
    for at_ms in range(0, last_ms + 1, interval_ms):  # as promtool: groups keep no time of theirs
        for state in states:
            _evaluate(state, at_ms, engine, memory)
        for asked in alert_tests:
            when_ms = span(str(asked.get("eval_time") or "0s"))
            if at_ms <= when_ms < at_ms + interval_ms:
                yield from _alerts_wrong(asked, states)
    for asked in expression_tests:
        yield from _samples_wrong(asked, engine)


def _evaluate(state: GroupState, at_ms: int, engine: Engine, memory: Memory) -> None:
    for held in state.rules:
        try:
            held.evaluate(at_ms, engine, memory)
        except ExecutionError as error:
            raise ExecutionError(f"{held.rule.name}: {error}") from None


def _alerts_wrong(asked: Mapping[str, Any], states: Sequence[GroupState]) -> Iterator[str]:
    name, when = str(asked["alertname"]), str(asked.get("eval_time") or "0s")
    wanted: dict[Key, dict[str, str]] = {}
    for alert in asked.get("exp_alerts") or ():
        labels = {**_texts(alert.get("exp_labels")), ALERTNAME: name}
        wanted[key(labels)] = _texts(alert.get("exp_annotations"))
    found = {
        key(alert.labels): alert.annotations
        for state in states
        for alert in state.alerts(name)
        if alert.state == "firing"
    }
    if found == wanted:
        return
    yield f"alertname: {name}, time: {when}, expected {_shown(wanted)}, got {_shown(found)}"


def _samples_wrong(asked: Mapping[str, Any], engine: Engine) -> Iterator[str]:
    query, when = str(asked["expr"]), str(asked.get("eval_time") or "0s")
    answer = engine.instant(query, span(when))
    vector = answer.vector
    found: dict[Key, float] = {}
    if vector is not None:
        found = {key(held): float(vector.values[i, 0]) for i, held in enumerate(vector.labels)}
    wanted = {
        key(labels_of(str(sample.get("labels") or "{}"))): float(sample["value"])
        for sample in asked.get("exp_samples") or ()
    }
    same = found.keys() == wanted.keys() and all(_equal(found[k], wanted[k]) for k in wanted)
    if not same:
        yield f"expr: {query!r}, time: {when}, expected {_shown(wanted)}, got {_shown(found)}"


def _equal(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-12)


def _texts(held: Mapping[str, Any] | None) -> dict[str, str]:
    return {str(name): str(value) for name, value in (held or {}).items()}


def _shown(held: Mapping[Key, Any]) -> str:
    return str([(dict(identity), value) for identity, value in sorted(held.items())])
