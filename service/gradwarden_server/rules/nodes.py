"""Nodes of a rules file read strictly: what is wrong is told with file, line and rule."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import yaml


class RulesError(ValueError):
    """Rules files are wrong; ``mistakes`` has one line for each, with file, line and rule."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class Nodes:
    """Goes on after each mistake, so that one run tells them all."""

    def __init__(self) -> None:
        self.mistakes: list[str] = []
        self._path = Path()

    def compose(self, path: Path) -> yaml.Node | None:
        """The tree of a file; mistakes are of this file from now on."""
        self._path = path
        try:
            root = yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)
            at = f":{mark.line + 1}" if mark is not None else ""
            problem = getattr(error, "problem", None) or error
            self.mistakes.append(f"{path.name}{at}: not YAML: {problem}")
            return None
        if root is None:
            self.wrong(None, "file", "expected keys and values")
        return root

    def mapping(
        self, node: yaml.Node | None, where: str, known: set[str] | None, optional: bool = False
    ) -> dict[str, yaml.Node]:
        """The keys of a mapping with their nodes; ``known`` None takes any key."""
        if node is None and optional:
            return {}
        if not isinstance(node, yaml.MappingNode):
            self.wrong(node, where, "expected keys and values")
            return {}
        held: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value)
            if known is not None and name not in known:
                self.wrong(
                    key, where, f"unknown key {name!r}; known are {', '.join(sorted(known))}"
                )
            elif name in held:
                self.wrong(key, where, f"key {name!r} is given twice")
            else:
                held[name] = value
        return held

    def items(self, node: yaml.Node | None, where: str) -> Iterable[yaml.Node]:
        """The nodes of a list."""
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            self.wrong(node, where, "expected a list")
            return []
        return cast("list[yaml.Node]", node.value)

    def text(self, node: yaml.Node | None, around: yaml.Node, where: str, name: str) -> str:
        """The text of a scalar; empty where it is wrong."""
        if node is None:
            self.wrong(around, where, f"{name} is missing")
            return ""
        value = scalar(node)
        if not isinstance(value, str) or not value.strip():
            self.wrong(node, where, f"{name} is {value!r}, expected text")
            return ""
        return value

    def at(self, node: yaml.Node | None) -> str:
        """File and line."""
        line = f":{node.start_mark.line + 1}" if node is not None else ""
        return f"{self._path.name}{line}"

    def wrong(self, node: yaml.Node | None, where: str, what: str) -> None:
        """Keep a mistake."""
        self.mistakes.append(f"{self.at(node)}: {where}: {what}")


def named(node: yaml.Node, otherwise: str = "rule") -> str:
    """What to call a rule in a mistake, before its keys are checked."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((str(v.value) for k, v in pairs if k.value in ("alert", "record")), otherwise)


def scalar(node: yaml.Node) -> Any:
    """The value of a scalar node as YAML reads it; None for a list or mapping."""
    if not isinstance(node, yaml.ScalarNode):
        return None
    return yaml.safe_load(yaml.serialize(node))
