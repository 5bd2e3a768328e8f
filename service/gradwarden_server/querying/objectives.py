"""Objectives as groups of rules, to be evaluated beside those of rule files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gradwarden_server.rules.groups import PromGroup, PromRule
from gradwarden_server.slo import compile as compiling
from gradwarden_server.slo.objective import Objective


def groups_of(objectives: Iterable[Objective], url: str) -> Iterator[PromGroup]:
    """The groups of every objective that is on; ``url`` is where runbooks are served."""
    for objective in objectives:
        if objective.on:
            for group in compiling.groups(objective, url):
                yield _group(group, f"slo/{objective.file}")


def _group(group: compiling.Group, file: str) -> PromGroup:
    rules = tuple(
        PromRule(
            alert=rule.get("alert", ""),
            record=rule.get("record", ""),
            expr=rule["expr"],
            labels=rule.get("labels", {}),
            annotations=rule.get("annotations", {}),
            at=f"{file}: {group['name']}",
        )
        for rule in group["rules"]
    )
    return PromGroup(group["name"], rules, group["interval"], file)
