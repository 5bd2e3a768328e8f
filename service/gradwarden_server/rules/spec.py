"""Reads ``alert_rules/``: native detector rules, the baseline, and Prometheus rule files.

Strict: an unknown key, a missing parameter or a wrong type is a mistake, and all mistakes of
all files are told together with file, line and rule. A file is known by its top-level key:
``detectors:``, ``baseline:``, ``inhibit:`` or ``groups:`` (Prometheus; checked for shape and kept
beside).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from gradwarden_server.model import SEVERITIES, Severity

Schemas = Mapping[str, Mapping[str, str]]
"""Per detector, the name and type (int, float, str) of each of its parameters."""

_RULE_KEYS = {
    "alert", "detector", "params", "severity", "runbook", "source", "labels", "shadow",
}  # fmt: skip
_TOPS = {"detectors", "baseline", "groups", "inhibit"}
_BASELINE_KEYS = {"params", "source"}
_INHIBIT_KEYS = {"cause", "effects", "params", "source"}
_INHIBIT_PARAMS = {"grace_seconds": "float"}
_GROUP_KEYS = {"name", "interval", "query_offset", "limit", "labels", "rules"}
_PROMETHEUS_KEYS = {
    "alert", "record", "expr", "for", "keep_firing_for", "labels", "annotations",
}  # fmt: skip


class RulesError(ValueError):
    """Rules files are wrong; ``mistakes`` has one line for each, with file, line and rule."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


@dataclass(frozen=True, slots=True)
class DetectorRule:
    """One native rule.

    ``severity``, if set, is the most urgent that it may raise; ``runbook`` names a page of
    ``docs/runbooks``; the pages of one in ``shadow`` are tickets until it is promoted.
    """

    alert: str
    detector: str
    params: Mapping[str, Any]
    runbook: str
    source: str
    severity: Severity | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class Inhibition:
    """While the alert ``cause`` fires in a run, ``effects`` there are no news.

    Those of higher severity are told all the same. The rest stay untold for ``grace_seconds``
    behind it: an effect outlives its cause by some steps.
    """

    cause: str
    effects: frozenset[str]
    grace_seconds: float


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rules of a directory."""

    detectors: tuple[DetectorRule, ...]
    baseline: Mapping[str, Any]
    prometheus: tuple[Path, ...]
    inhibitions: tuple[Inhibition, ...] = ()


def load(directory: Path, schemas: Schemas, baseline: Mapping[str, str]) -> RuleSet:
    """Read every ``*.yaml`` and ``*.yml`` of a directory.

    Args:
        directory: Where the rules files lie.
        schemas: The parameters of each detector.
        baseline: The parameters of the baseline.

    Raises:
        RulesError: at least one file is wrong.
    """
    reader = _Reader(schemas, baseline)
    for path in sorted(p for p in directory.iterdir() if p.suffix in (".yaml", ".yml")):
        reader.read(path)
    reader.conclude(directory)
    if reader.mistakes:
        raise RulesError(reader.mistakes)
    return RuleSet(
        tuple(reader.detectors),
        reader.baseline,
        tuple(reader.prometheus),
        tuple(reader.inhibitions),
    )


def group_mistakes(path: Path) -> list[str]:
    """What is wrong with the shape of one rule file of Prometheus, with file, line and rule."""
    reader = _Reader({}, {})
    reader.read(path)
    if not reader.mistakes and not reader.prometheus:
        reader.mistakes.append(f"{path.name}: holds no groups of Prometheus's rules")
    return reader.mistakes


class _Reader:
    """Goes on after each mistake, so that one run tells them all."""

    def __init__(self, schemas: Schemas, baseline: Mapping[str, str]) -> None:
        self.mistakes: list[str] = []
        self.detectors: list[DetectorRule] = []
        self.baseline: dict[str, Any] = {}
        self.prometheus: list[Path] = []
        self.inhibitions: list[Inhibition] = []
        self._inhibited: list[tuple[str, str]] = []
        self._schemas = schemas
        self._baseline_schema = baseline
        self._lines: dict[str, str] = {}
        self._path = Path()

    def read(self, path: Path) -> None:
        self._path = path
        try:
            root = yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)
            at = f":{mark.line + 1}" if mark is not None else ""
            problem = getattr(error, "problem", None) or error
            self.mistakes.append(f"{path.name}{at}: not YAML: {problem}")
            return
        top = self._mapping(root, "file", _TOPS)
        if root is not None and isinstance(root, yaml.MappingNode) and len(top) != 1:
            self._wrong(root, "file", f"exactly one of {', '.join(sorted(_TOPS))} at the top")
        for node in self._list(top.get("detectors"), "detectors"):
            self._detector(node)
        for node in self._list(top.get("inhibit"), "inhibit"):
            self._inhibition(node)
        if "baseline" in top:
            self._baseline(top["baseline"])
        if "groups" in top:
            self.prometheus.append(path)
            for node in self._list(top["groups"], "groups"):
                self._group(node)

    def conclude(self, directory: Path) -> None:
        if not self.baseline and self._baseline_schema and not self.mistakes:
            self.mistakes.append(f"{directory.name}: no file has a baseline")
        known = {rule.alert for rule in self.detectors}
        for at, name in self._inhibited:
            if name not in known:
                self.mistakes.append(f"{at}: inhibit: no rule raises {name!r}")

    def _inhibition(self, node: yaml.Node) -> None:
        held = self._mapping(node, "inhibit", _INHIBIT_KEYS)
        cause = self._text(held.get("cause"), node, "inhibit", "cause")
        where = f"inhibit {cause}"
        self._text(held.get("source"), node, where, "source")
        nodes = self._list(held.get("effects"), where)
        effects = [self._text(effect, node, where, "effects") for effect in nodes]
        params = self._params(held.get("params"), node, where, _INHIBIT_PARAMS)
        self._inhibited += [(self._at(node), name) for name in (cause, *effects) if name]
        grace = params.get("grace_seconds", 0.0)
        self.inhibitions.append(Inhibition(cause, frozenset(effects), grace))

    def _detector(self, node: yaml.Node) -> None:
        where = _named(node)
        rule = self._mapping(node, where, _RULE_KEYS)
        alert = self._text(rule.get("alert"), node, where, "alert")
        detector = self._text(rule.get("detector"), node, where, "detector")
        runbook = self._text(rule.get("runbook"), node, where, "runbook")
        source = self._text(rule.get("source"), node, where, "source")
        severity = (
            self._text(rule["severity"], node, where, "severity") if "severity" in rule else None
        )
        if severity is not None and severity not in SEVERITIES:
            self._wrong(rule["severity"], where, f"severity is one of {', '.join(SEVERITIES)}")
        labels = {
            key: self._text(value, node, where, f"labels.{key}")
            for key, value in self._mapping(rule.get("labels"), where, None, optional=True).items()
        }
        shadow = _scalar(rule["shadow"]) if "shadow" in rule else False
        if not isinstance(shadow, bool):
            self._wrong(rule["shadow"], where, f"shadow is {shadow!r}, expected true or false")
        params: dict[str, Any] = {}
        if detector and detector not in self._schemas:
            known = ", ".join(sorted(self._schemas))
            self._wrong(rule["detector"], where, f"no detector {detector!r}; there are {known}")
        elif detector:
            params = self._params(rule.get("params"), node, where, self._schemas[detector])
        if alert:
            at = self._lines.setdefault(alert, self._at(node))
            if at != self._at(node):
                self._wrong(node, where, f"is named twice, first at {at}")
        self.detectors.append(
            DetectorRule(
                alert,
                detector,
                params,
                runbook,
                source,
                cast("Severity | None", severity),
                labels,
                shadow is True,
            )
        )

    def _baseline(self, node: yaml.Node) -> None:
        held = self._mapping(node, "baseline", _BASELINE_KEYS)
        self._text(held.get("source"), node, "baseline", "source")
        if self.baseline:
            self._wrong(node, "baseline", "is given twice")
        self.baseline = self._params(
            held.get("params"), node, "baseline", self._baseline_schema
        ) or {"": None}

    def _params(
        self, node: yaml.Node | None, around: yaml.Node, where: str, schema: Mapping[str, str]
    ) -> dict[str, Any]:
        given = self._mapping(node, where, set(schema), optional=not schema)
        for name in sorted(set(schema) - set(given)):
            self._wrong(node or around, where, f"params.{name} is missing")
        values: dict[str, Any] = {}
        for name, held in given.items():
            value = _scalar(held)
            wanted = schema.get(name)
            if wanted == "float" and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            if wanted is not None and type(value).__name__ != wanted:
                self._wrong(held, where, f"params.{name} is {value!r}, expected {wanted}")
            elif isinstance(value, (int, float)) and not value >= 0:
                self._wrong(held, where, f"params.{name} is {value!r}, expected 0 or more")
            values[name] = value
        return values

    def _group(self, node: yaml.Node) -> None:
        group = self._mapping(node, "group", _GROUP_KEYS)
        name = self._text(group.get("name"), node, "group", "name")
        for held in self._list(group.get("rules"), f"group {name}"):
            rule = self._mapping(held, _named(held, f"group {name}"), _PROMETHEUS_KEYS)
            kind = [k for k in ("alert", "record") if k in rule]
            if len(kind) != 1:
                self._wrong(held, f"group {name}", "a rule has either alert or record")
                continue
            where = self._text(rule[kind[0]], held, f"group {name}", kind[0])
            self._text(rule.get("expr"), held, where, "expr")
            for part in ("labels", "annotations"):
                for key, value in self._mapping(rule.get(part), where, None, True).items():
                    self._text(value, held, where, f"{part}.{key}")

    def _mapping(
        self, node: yaml.Node | None, where: str, known: set[str] | None, optional: bool = False
    ) -> dict[str, yaml.Node]:
        if node is None and optional:
            return {}
        if not isinstance(node, yaml.MappingNode):
            self._wrong(node, where, "expected keys and values")
            return {}
        held: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value)
            if known is not None and name not in known:
                self._wrong(
                    key, where, f"unknown key {name!r}; known are {', '.join(sorted(known))}"
                )
            elif name in held:
                self._wrong(key, where, f"key {name!r} is given twice")
            else:
                held[name] = value
        return held

    def _list(self, node: yaml.Node | None, where: str) -> Iterable[yaml.Node]:
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            self._wrong(node, where, "expected a list")
            return []
        return cast("list[yaml.Node]", node.value)

    def _text(self, node: yaml.Node | None, around: yaml.Node, where: str, name: str) -> str:
        if node is None:
            self._wrong(around, where, f"{name} is missing")
            return ""
        value = _scalar(node)
        if not isinstance(value, str) or not value.strip():
            self._wrong(node, where, f"{name} is {value!r}, expected text")
            return ""
        return value

    def _at(self, node: yaml.Node | None) -> str:
        line = f":{node.start_mark.line + 1}" if node is not None else ""
        return f"{self._path.name}{line}"

    def _wrong(self, node: yaml.Node | None, where: str, what: str) -> None:
        self.mistakes.append(f"{self._at(node)}: {where}: {what}")


def _named(node: yaml.Node, otherwise: str = "rule") -> str:
    """What to call a rule in a mistake, before its keys are checked."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((str(v.value) for k, v in pairs if k.value in ("alert", "record")), otherwise)


def _scalar(node: yaml.Node) -> Any:
    """The value of a scalar node as YAML reads it; None for a list or mapping."""
    if not isinstance(node, yaml.ScalarNode):
        return None
    return yaml.safe_load(yaml.serialize(node))
