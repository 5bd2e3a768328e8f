"""What is wrong or doubtful about Prometheus's rules, told without any data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from gradwarden_server.matchers import Matcher
from gradwarden_server.model import SEVERITIES
from gradwarden_server.promql import review
from gradwarden_server.promql.errors import QueryError
from gradwarden_server.promql.notation import Unreadable, span
from gradwarden_server.promql.parse import parse
from gradwarden_server.promql.vector import NAME
from gradwarden_server.querying import templates
from gradwarden_server.querying.series import LAYER, MEANINGS
from gradwarden_server.rules.groups import PromGroup, PromRule
from gradwarden_server.rules.spec import RuleSet

LEAST_INTERVAL_MS = 1000
LONGEST_KEY = 120
LONGEST_NAME = 128
"""Of an alert or a recorded series: what the tables of the ledger hold on every database."""
_METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*\Z")
_TEMPLATED = "{{"
_NONFINITE = "gradwarden_nonfinite_gradients"
_NONFINITE_DETECTOR = "nonfinite_gradient"
_COUNTS = ("nan", "inf", "zero", "tiny")
"""Quantities of layers that are never NaN themselves."""


class Grammar:
    """Judges rules that this service is to evaluate."""

    def group(self, group: PromGroup) -> Iterator[str]:
        """What is wrong with a group itself."""
        if len(group.key) > LONGEST_KEY:
            yield f"the names of file and group are longer than {LONGEST_KEY} characters together"
        for name, text in (("interval", group.interval), ("query_offset", group.query_offset)):
            try:
                lasts_ms = span(text or "0s")
            except Unreadable:
                yield f"{name} is {text!r}, expected a time such as 30s"
                continue
            if name == "interval" and text and lasts_ms < LEAST_INTERVAL_MS:
                yield f"interval is {text}, expected 1s or more"
            elif lasts_ms < 0:
                yield f"{name} is {text}, expected 0s or more"

    def rule(self, rule: PromRule) -> Iterator[str]:
        """What is wrong with one rule."""
        try:
            parse(rule.expr)
        except QueryError as error:
            yield f"expr: {error}"
        yield from _names(rule)
        for name, text in (("for", rule.hold), ("keep_firing_for", rule.keep)):
            try:
                wrong = span(text) < 0
            except Unreadable:
                wrong = True
            if wrong:
                yield f"{name} is {text!r}, expected a time such as 5m"
        for part, held in (("labels", rule.labels), ("annotations", rule.annotations)):
            for name, text in held.items():
                try:
                    templates.check(text)
                except templates.BadTemplate as error:
                    yield f"{part}.{name}: {error}"


def _names(rule: PromRule) -> Iterator[str]:
    if len(rule.name) > LONGEST_NAME:
        yield f"its name has {len(rule.name)} characters, expected {LONGEST_NAME} or fewer"
    if rule.record and not _METRIC.match(rule.record):
        yield f"record is {rule.record!r}, expected the name of a series"
    if rule.record in MEANINGS:
        yield f"record is {rule.record}, which the service writes itself; choose another name"
    for name in (*rule.labels, *rule.annotations):
        if not _LABEL.match(name) or name == NAME:
            yield f"{name!r} is no name of a label"
    severity = rule.labels.get("severity", SEVERITIES[0])
    if rule.alert and severity not in SEVERITIES and _TEMPLATED not in severity:
        yield f"labels.severity is {severity!r}, expected one of {', '.join(SEVERITIES)}"


def doubts(rules: RuleSet) -> list[str]:
    """What may be meant, and seldom is; one line for each, with file, line and rule."""
    held = [rule for group in rules.groups for rule in group.rules]
    counted = any(rule.detector == _NONFINITE_DETECTOR for rule in rules.detectors)
    counted = counted or any(
        matcher == Matcher(NAME, _NONFINITE)
        for rule in held
        if rule.alert
        for matchers in review.selectors(rule.expr)
        for matcher in matchers
    )
    return [f"{rule.at}: {rule.name}: {doubt}" for rule in held for doubt in _doubts(rule, counted)]


def _doubts(rule: PromRule, counted: bool) -> Iterator[str]:
    named = {m.name for matchers in review.selectors(rule.expr) for m in matchers}
    if "job" in named | review.grouped(rule.expr) | set(rule.labels):
        yield "there is no label job here, and a Prometheus writes its own; use training_job"
    if rule.alert and "run" not in rule.labels and not review.keeps(rule.expr, "run"):
        yield "the result has no label run, so the alert belongs to no run"
    if rule.alert and not counted and any(map(_may_be_nan, review.compared(rule.expr))):
        yield (
            "a comparison with NaN is false, so this goes quiet when the number becomes NaN, and "
            f"no rule watches for that; add one on {_NONFINITE} > 0"
        )


def _may_be_nan(matchers: Iterable[Matcher]) -> bool:
    asked = list(matchers)
    name = next((m.value for m in asked if m.name == NAME and m.is_equal), "")
    if name in ("gradwarden_gradient_norm", "gradwarden_loss"):
        return True
    counts = any(m.name == "quantity" and m.value in _COUNTS for m in asked)
    return name == LAYER and not counts
