"""Rule files of Prometheus as data: groups of rules that alert or record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import yaml

from gradwarden_server.rules.nodes import Nodes, RulesError, named, scalar

_GROUP_KEYS = {"name", "interval", "query_offset", "limit", "labels", "rules"}
_RULE_KEYS = {
    "alert", "record", "expr", "for", "keep_firing_for", "labels", "annotations",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PromRule:
    """One rule: ``alert`` or ``record`` is its name, the other is empty. Times are as written.

    ``at`` is the file and line where it begins.
    """

    alert: str
    record: str
    expr: str
    hold: str = "0s"
    keep: str = "0s"
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    at: str = ""

    @property
    def name(self) -> str:
        """The name of its alert or series."""
        return self.alert or self.record


@dataclass(frozen=True, slots=True)
class PromGroup:
    """Rules that are evaluated one after the other, at one moment.

    ``limit`` is the most alerts or series that one of them may give; 0 is none.
    """

    name: str
    rules: tuple[PromRule, ...]
    interval: str = ""
    file: str = ""
    limit: int = 0
    query_offset: str = ""

    @property
    def key(self) -> str:
        """Its name among all groups; that of the file is a part of it, as with Prometheus."""
        return f"{self.file};{self.name}"


class Critic(Protocol):
    """What of a rule can only be judged by one who knows PromQL: each finding is a mistake."""

    def group(self, group: PromGroup) -> Iterable[str]: ...
    def rule(self, rule: PromRule) -> Iterable[str]: ...


def load_groups(path: Path) -> tuple[PromGroup, ...]:
    """The groups of one file, which holds nothing else.

    Raises:
        RulesError: the file is wrong; all its mistakes are told.
    """
    nodes = Nodes()
    root = nodes.compose(path)
    groups: list[PromGroup] = []
    if root is not None:
        top = nodes.mapping(root, "file", {"groups"})
        if "groups" in top:
            groups = GroupReader(nodes, path.name).read(top["groups"])
        elif not nodes.mistakes:
            nodes.wrong(root, "file", "holds no groups of Prometheus's rules")
    if nodes.mistakes:
        raise RulesError(nodes.mistakes)
    return tuple(groups)


class GroupReader:
    """Reads the groups of one file and keeps what is wrong with ``nodes``."""

    def __init__(self, nodes: Nodes, file: str, critic: Critic | None = None) -> None:
        self._nodes = nodes
        self._file = file
        self._critic = critic

    def read(self, node: yaml.Node) -> list[PromGroup]:
        """All groups, those with mistakes as well as they can be read."""
        return [self._group(held) for held in self._distinct(node)]

    def _distinct(self, node: yaml.Node) -> Iterator[yaml.Node]:
        names: set[str] = set()
        for held in self._nodes.items(node, "groups"):
            pairs = held.value if isinstance(held, yaml.MappingNode) else []
            name = next((str(v.value) for k, v in pairs if k.value == "name"), "")
            if name and name in names:
                self._nodes.wrong(held, f"group {name}", "is given twice in this file")
            names.add(name)
            yield held

    def _group(self, node: yaml.Node) -> PromGroup:
        nodes = self._nodes
        held = nodes.mapping(node, "group", _GROUP_KEYS)
        name = nodes.text(held.get("name"), node, "group", "name")
        where = f"group {name}"
        common = self._texts(held.get("labels"), node, where, "labels")
        limit = scalar(held["limit"]) if "limit" in held else 0
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
            nodes.wrong(held["limit"], where, f"limit is {limit!r}, expected 0 or more")
            limit = 0
        group = PromGroup(
            name=name,
            rules=tuple(self._rules(held.get("rules"), where, common)),
            interval=_raw(held.get("interval")),
            file=self._file,
            limit=limit,
            query_offset=_raw(held.get("query_offset")),
        )
        for wrong in self._critic.group(group) if self._critic else ():
            nodes.wrong(node, where, wrong)
        return group

    def _rules(
        self, node: yaml.Node | None, where: str, common: Mapping[str, str]
    ) -> Iterator[PromRule]:
        nodes = self._nodes
        for held in nodes.items(node, where):
            before = len(nodes.mistakes)
            rule = nodes.mapping(held, named(held, where), _RULE_KEYS)
            kinds = [kind for kind in ("alert", "record") if kind in rule]
            if len(kinds) != 1:
                nodes.wrong(held, where, "a rule has either alert or record")
                continue
            name = nodes.text(rule[kinds[0]], held, where, kinds[0])
            made = PromRule(
                alert=name if kinds[0] == "alert" else "",
                record=name if kinds[0] == "record" else "",
                expr=nodes.text(rule.get("expr"), held, name, "expr"),
                hold=_raw(rule.get("for")) or "0s",
                keep=_raw(rule.get("keep_firing_for")) or "0s",
                labels={**common, **self._texts(rule.get("labels"), held, name, "labels")},
                annotations=self._texts(rule.get("annotations"), held, name, "annotations"),
                at=nodes.at(held),
            )
            for part in ("for", "keep_firing_for", "annotations"):
                if made.record and part in rule:
                    nodes.wrong(rule[part], name, f"{part} has no meaning for a recorded series")
            if self._critic and len(nodes.mistakes) == before:
                for wrong in self._critic.rule(made):
                    nodes.wrong(held, name, wrong)
            yield made

    def _texts(
        self, node: yaml.Node | None, around: yaml.Node, where: str, part: str
    ) -> dict[str, str]:
        held = self._nodes.mapping(node, where, None, optional=True)
        return {
            key: self._nodes.text(value, around, where, f"{part}.{key}")
            for key, value in held.items()
        }


def _raw(node: yaml.Node | None) -> str:
    """A scalar as it is written."""
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""
