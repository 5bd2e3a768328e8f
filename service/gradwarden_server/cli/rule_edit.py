"""One number in a rules file, changed in its place: comments and layout stay as they are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

import yaml

from gradwarden_server import assets
from gradwarden_server.alerting.tuning import Proposal


def diff(rules: Path | None, proposals: Iterable[Proposal]) -> str:
    """What the proposals change in the files that hold their rules, as a unified diff."""
    texts: dict[Path, tuple[str, str]] = {}
    for proposal in proposals:
        for path in _files(rules):
            before, now = texts.get(path) or 2 * (path.read_text(encoding="utf-8"),)
            place = _place(now, proposal.alert, proposal.param)
            if place is not None:
                start, end = place
                texts[path] = before, f"{now[:start]}{_text(proposal.new)}{now[end:]}"
                break
    return "".join(
        line
        for path, (before, now) in texts.items()
        for line in difflib.unified_diff(
            before.splitlines(keepends=True),
            now.splitlines(keepends=True),
            f"a/{path.parent.name}/{path.name}",
            f"b/{path.parent.name}/{path.name}",
        )
    )


def _files(rules: Path | None) -> list[Path]:
    """Where a rule may stand: a single file comes before the shipped ones that it overrides."""
    own = [rules] if rules is not None and rules.is_file() else []
    folder = rules if rules is not None and rules.is_dir() else assets.ALERT_RULES
    return [*own, *sorted(p for p in folder.iterdir() if p.suffix in (".yaml", ".yml"))]


def _place(text: str, alert: str, param: str) -> tuple[int, int] | None:
    """Where a number of a rule stands in a file, from its first character to behind its last."""
    for rule in _items(_member(yaml.compose(text, Loader=yaml.SafeLoader), "detectors")):
        named = _member(rule, "alert")
        found = _member(_member(rule, "params"), param)
        if isinstance(named, yaml.ScalarNode) and named.value == alert and found is not None:
            return found.start_mark.index, found.end_mark.index
    return None


def _member(node: yaml.Node | None, name: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for key, value in pairs if key.value == name), None)


def _items(node: yaml.Node | None) -> list[yaml.Node]:
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _text(value: float) -> str:
    """As YAML reads it back as the same type: 1.0e-07, not 1e-07."""
    if isinstance(value, int):
        return str(value)
    text = repr(value)
    return text if "e" not in text or "." in text else text.replace("e", ".0e")
