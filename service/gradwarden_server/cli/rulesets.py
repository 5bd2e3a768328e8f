"""Rules to try: a folder of them, or one file over the shipped ones."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import yaml

from gradwarden_server import assets
from gradwarden_server.cli.faults import USAGE, CommandError
from gradwarden_server.detect import registry
from gradwarden_server.rules import spec
from gradwarden_server.rules.nodes import RulesError
from gradwarden_server.rules.spec import RuleSet


def load(path: Path | None) -> RuleSet:
    """The rules at a path; None are the shipped ones.

    A file stands over the shipped rules: its rules take the place of those with their names,
    the others stay.

    Raises:
        CommandError: it cannot be read, or has mistakes; all of them are told.
    """
    try:
        if path is None or path.is_dir():
            return _folder(path or assets.ALERT_RULES)
        return _over(_folder(assets.ALERT_RULES), path)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}; name a folder or a file", USAGE) from None
    except RulesError as error:
        raise CommandError(f"these rules cannot be used:\n{error}", USAGE) from None


def _folder(path: Path) -> RuleSet:
    return spec.load(path, registry.schemas(), registry.BASELINE_SCHEMA)


def _over(shipped: RuleSet, path: Path) -> RuleSet:
    """One file over the shipped rules; a folder of its own lets the loader say what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"{path.stem}.yaml"
        shutil.copy(path, copy)
        schema = registry.BASELINE_SCHEMA if _has_baseline(copy) else {}
        own = spec.load(Path(folder), registry.schemas(), schema)
    named = {rule.alert for rule in own.detectors}
    kept = tuple(rule for rule in shipped.detectors if rule.alert not in named)
    return replace(
        shipped,
        detectors=(*kept, *own.detectors),
        baseline=own.baseline or shipped.baseline,
    )


def _has_baseline(path: Path) -> bool:
    try:
        top = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return False  # the loader tells what is wrong
    return isinstance(top, dict) and "baseline" in top
