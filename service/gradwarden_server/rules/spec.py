"""Reads ``alert_rules/``: native detector rules, the baseline, and Prometheus rule files.

Strict: an unknown key, a missing parameter or a wrong type is a mistake, and all mistakes of
all files are told together with file, line and rule. A file is known by its top-level key:
``detectors:``, ``baseline:``, ``inhibit:`` or ``groups:`` (Prometheus's rules). Folders within it
are not read: ``prometheus/`` holds what a Prometheus beside the service evaluates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from gradwarden_server.model import SEVERITIES, Severity
from gradwarden_server.rules.groups import Critic, GroupReader, PromGroup
from gradwarden_server.rules.nodes import Nodes, RulesError, named, scalar

Schemas = Mapping[str, Mapping[str, str]]
"""Per detector, the name and type (int, float, str) of each of its parameters."""

_RULE_KEYS = {
    "alert", "detector", "params", "severity", "runbook", "source", "labels", "shadow",
}  # fmt: skip
_TOPS = {"detectors", "baseline", "groups", "inhibit", "telemetry"}
_BASELINE_KEYS = {"params", "source"}
_LOSS_KEYS = {"alert", "params", "runbook", "source"}
_LOSS_PARAMS = {
    "share": "float",
    "least_runs": "int",
    "within_seconds": "float",
    "silent_seconds": "float",
}
_INHIBIT_KEYS = {"cause", "effects", "params", "source"}
_INHIBIT_PARAMS = {"grace_seconds": "float"}


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
class LossRule:
    """When runs that fall silent are one incident of a project.

    More than ``share`` of its runs, and ``least_runs`` at least, were last heard within
    ``within_seconds`` of each other, each ``silent_seconds`` ago or more.
    """

    alert: str
    runbook: str
    share: float
    least_runs: int
    within_seconds: float
    silent_seconds: float


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rules of a directory."""

    detectors: tuple[DetectorRule, ...]
    baseline: Mapping[str, Any]
    groups: tuple[PromGroup, ...] = ()
    inhibitions: tuple[Inhibition, ...] = ()
    telemetry: LossRule | None = None


def load(
    place: Path, schemas: Schemas, baseline: Mapping[str, str], critic: Critic | None = None
) -> RuleSet:
    """Read every ``*.yaml`` and ``*.yml`` of a directory, or one file by itself.

    Args:
        place: Where the rules files lie. What a single file names of others is not looked for.
        schemas: The parameters of each detector.
        baseline: The parameters of the baseline.
        critic: Knows PromQL; without it only the shape of Prometheus's rules is looked at.

    Raises:
        RulesError: at least one file is wrong.
    """
    reader = _Reader(schemas, baseline, critic)
    if place.is_file():
        reader.read(place)
    else:
        for path in sorted(p for p in place.iterdir() if p.suffix in (".yaml", ".yml")):
            reader.read(path)
        reader.conclude(place)
    if reader.mistakes:
        raise RulesError(reader.mistakes)
    return RuleSet(
        tuple(reader.detectors),
        reader.baseline,
        tuple(reader.groups),
        tuple(reader.inhibitions),
        reader.telemetry,
    )


class _Reader(Nodes):
    """Reads file after file."""

    def __init__(
        self, schemas: Schemas, baseline: Mapping[str, str], critic: Critic | None
    ) -> None:
        super().__init__()
        self.detectors: list[DetectorRule] = []
        self.baseline: dict[str, Any] = {}
        self.groups: list[PromGroup] = []
        self.inhibitions: list[Inhibition] = []
        self.telemetry: LossRule | None = None
        self._inhibited: list[tuple[str, str]] = []
        self._schemas = schemas
        self._baseline_schema = baseline
        self._critic = critic
        self._lines: dict[str, str] = {}

    def read(self, path: Path) -> None:
        root = self.compose(path)
        if root is None:
            return
        top = self.mapping(root, "file", _TOPS)
        if isinstance(root, yaml.MappingNode) and len(top) != 1:
            self.wrong(root, "file", f"exactly one of {', '.join(sorted(_TOPS))} at the top")
        for node in self.items(top.get("detectors"), "detectors"):
            self._detector(node)
        for node in self.items(top.get("inhibit"), "inhibit"):
            self._inhibition(node)
        if "telemetry" in top:
            self._telemetry(top["telemetry"])
        if "baseline" in top:
            self._baseline(top["baseline"])
        if "groups" in top:
            self.groups += GroupReader(self, path.name, self._critic).read(top["groups"])

    def conclude(self, directory: Path) -> None:
        if not self.baseline and self._baseline_schema and not self.mistakes:
            self.mistakes.append(f"{directory.name}: no file has a baseline")
        known = {rule.alert for rule in self.detectors}
        known |= {rule.alert for group in self.groups for rule in group.rules}
        if self.telemetry is not None:
            known.add(self.telemetry.alert)
        for at, name in self._inhibited:
            if name not in known:
                self.mistakes.append(f"{at}: inhibit: no rule raises {name!r}")

    def _telemetry(self, node: yaml.Node) -> None:
        where = named(node)
        held = self.mapping(node, where, _LOSS_KEYS)
        alert = self.text(held.get("alert"), node, where, "alert")
        runbook = self.text(held.get("runbook"), node, where, "runbook")
        self.text(held.get("source"), node, where, "source")
        if self.telemetry is not None:
            self.wrong(node, where, "is given twice")
        mistakes = len(self.mistakes)
        params = self._params(held.get("params"), node, where, _LOSS_PARAMS)
        if len(self.mistakes) == mistakes:
            self.telemetry = LossRule(alert, runbook, **params)

    def _inhibition(self, node: yaml.Node) -> None:
        held = self.mapping(node, "inhibit", _INHIBIT_KEYS)
        cause = self.text(held.get("cause"), node, "inhibit", "cause")
        where = f"inhibit {cause}"
        self.text(held.get("source"), node, where, "source")
        nodes = self.items(held.get("effects"), where)
        effects = [self.text(effect, node, where, "effects") for effect in nodes]
        params = self._params(held.get("params"), node, where, _INHIBIT_PARAMS)
        self._inhibited += [(self.at(node), name) for name in (cause, *effects) if name]
        grace = params.get("grace_seconds", 0.0)
        self.inhibitions.append(Inhibition(cause, frozenset(effects), grace))

    def _detector(self, node: yaml.Node) -> None:
        where = named(node)
        rule = self.mapping(node, where, _RULE_KEYS)
        alert = self.text(rule.get("alert"), node, where, "alert")
        detector = self.text(rule.get("detector"), node, where, "detector")
        runbook = self.text(rule.get("runbook"), node, where, "runbook")
        source = self.text(rule.get("source"), node, where, "source")
        severity = (
            self.text(rule["severity"], node, where, "severity") if "severity" in rule else None
        )
        if severity is not None and severity not in SEVERITIES:
            self.wrong(rule["severity"], where, f"severity is one of {', '.join(SEVERITIES)}")
        labels = {
            key: self.text(value, node, where, f"labels.{key}")
            for key, value in self.mapping(rule.get("labels"), where, None, optional=True).items()
        }
        shadow = scalar(rule["shadow"]) if "shadow" in rule else False
        if not isinstance(shadow, bool):
            self.wrong(rule["shadow"], where, f"shadow is {shadow!r}, expected true or false")
        params: dict[str, Any] = {}
        if detector and detector not in self._schemas:
            known = ", ".join(sorted(self._schemas))
            self.wrong(rule["detector"], where, f"no detector {detector!r}; there are {known}")
        elif detector:
            params = self._params(rule.get("params"), node, where, self._schemas[detector])
        if alert:
            at = self._lines.setdefault(alert, self.at(node))
            if at != self.at(node):
                self.wrong(node, where, f"is named twice, first at {at}")
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
        held = self.mapping(node, "baseline", _BASELINE_KEYS)
        self.text(held.get("source"), node, "baseline", "source")
        if self.baseline:
            self.wrong(node, "baseline", "is given twice")
        self.baseline = self._params(
            held.get("params"), node, "baseline", self._baseline_schema
        ) or {"": None}

    def _params(
        self, node: yaml.Node | None, around: yaml.Node, where: str, schema: Mapping[str, str]
    ) -> dict[str, Any]:
        given = self.mapping(node, where, set(schema), optional=not schema)
        for name in sorted(set(schema) - set(given)):
            self.wrong(node or around, where, f"params.{name} is missing")
        values: dict[str, Any] = {}
        for name, held in given.items():
            value = scalar(held)
            wanted = schema.get(name)
            if wanted == "float" and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            if wanted is not None and type(value).__name__ != wanted:
                self.wrong(held, where, f"params.{name} is {value!r}, expected {wanted}")
            elif isinstance(value, (int, float)) and not value >= 0:
                self.wrong(held, where, f"params.{name} is {value!r}, expected 0 or more")
            values[name] = value
        return values
