"""Rule files of Prometheus as data: groups of rules that alert or record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gradwarden_server.rules.spec import RulesError, group_mistakes


@dataclass(frozen=True, slots=True)
class PromRule:
    """One rule: ``alert`` or ``record`` is its name, the other is empty. Times are as written."""

    alert: str
    record: str
    expr: str
    hold: str = "0s"
    keep: str = "0s"
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PromGroup:
    """Rules that are evaluated one after the other, at one moment."""

    name: str
    rules: tuple[PromRule, ...]
    interval: str = ""
    file: str = ""


def load_groups(path: Path) -> tuple[PromGroup, ...]:
    """The groups of a file.

    Raises:
        RulesError: the file is wrong; all its mistakes are told.
    """
    mistakes = group_mistakes(path)
    if mistakes:
        raise RulesError(mistakes)
    document = yaml.safe_load(path.read_text("utf-8"))
    return tuple(_group(group, path.name) for group in document["groups"])


def _group(group: Mapping[str, Any], file: str) -> PromGroup:
    common = _texts(group.get("labels"))
    return PromGroup(
        name=str(group["name"]),
        rules=tuple(_rule(rule, common) for rule in group["rules"]),
        interval=str(group.get("interval") or ""),
        file=file,
    )


def _rule(rule: Mapping[str, Any], common: Mapping[str, str]) -> PromRule:
    return PromRule(
        alert=str(rule.get("alert") or ""),
        record=str(rule.get("record") or ""),
        expr=str(rule["expr"]),
        hold=str(rule.get("for") or "0s"),
        keep=str(rule.get("keep_firing_for") or "0s"),
        labels={**common, **_texts(rule.get("labels"))},
        annotations=_texts(rule.get("annotations")),
    )


def _texts(held: Mapping[str, Any] | None) -> dict[str, str]:
    return {str(name): str(value) for name, value in (held or {}).items()}
