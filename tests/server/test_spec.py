"""Rules files: what is shipped is right, and what is wrong is told all at once."""

from __future__ import annotations

import ast
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from gradwarden_server.detect import registry
from gradwarden_server.detect.engine import RunDetectors
from gradwarden_server.model import Condition
from gradwarden_server.rules import spec
from tests.server.detection import LAYOUTS, ROOT, RULES, SECOND, step

HERE = Path(__file__).parent / "rules"


def mistakes(directory: Path, **files: str) -> list[str]:
    """What is wrong with a directory that holds these files and the shipped baseline."""
    for name, text in files.items():
        (directory / f"{name}.yaml").write_text(text)
    (directory / "zz-baseline.yaml").write_text((ROOT / "alert_rules/baseline.yaml").read_text())
    try:
        spec.load(directory, registry.schemas(), registry.BASELINE_SCHEMA)
    except spec.RulesError as error:
        return error.mistakes
    return []


def test_every_shipped_rule_names_a_detector_and_gives_all_of_its_parameters() -> None:
    assert {rule.detector for rule in RULES.detectors} == set(registry.DETECTORS)
    for rule in RULES.detectors:
        assert set(rule.params) == set(registry.schemas()[rule.detector]), rule.alert
        assert registry.build(rule).alert == rule.alert


def test_every_shipped_rule_has_a_source_and_a_runbook() -> None:
    for rule in RULES.detectors:
        assert len(rule.source) > 20, rule.alert
        assert (ROOT / "docs/runbooks" / f"{rule.runbook}.md").exists(), rule.alert


def test_no_threshold_has_a_default_in_code() -> None:
    for name, kind in registry.DETECTORS.items():
        fields = kind.parameters.__dataclass_fields__.values()
        assert not [f.name for f in fields if f.default is not f.default_factory], name
    settings = ast.parse((ROOT / "service/gradwarden_server/detect/baseline.py").read_text())
    (found,) = [
        node for node in settings.body
        if isinstance(node, ast.ClassDef) and node.name == "BaselineSettings"
    ]  # fmt: skip
    assert not [line for line in found.body if isinstance(line, ast.AnnAssign) and line.value]


def test_runbooks_say_what_a_tired_person_needs_in_this_order() -> None:
    wanted = ["**What it means.**", "**Check first**", "**Mitigate, safest first**"]
    wanted += ["**Recovered when**", "**Escalate**"]
    for rule in RULES.detectors:
        text = (ROOT / "docs/runbooks" / f"{rule.runbook}.md").read_text()
        places = [text.find(heading) for heading in wanted]
        assert -1 not in places, (rule.runbook, places)
        assert places == sorted(places), rule.runbook


def test_all_mistakes_are_told_together_with_file_line_and_rule(tmp_path: Path) -> None:
    for path in sorted((HERE / "bad").glob("*.yaml")):
        text = path.with_suffix(".out").read_text()
        expected = text.replace("{detectors}", ", ".join(sorted(registry.DETECTORS))).splitlines()
        assert mistakes(tmp_path, **{path.stem: path.read_text()}) == expected, path.stem


def test_a_rule_of_a_site_is_read_with_its_labels_and_its_cap(tmp_path: Path) -> None:
    text = (HERE / "good/one-rule.yaml").read_text()
    assert mistakes(tmp_path, rule=text) == []
    rules = spec.load(tmp_path, registry.schemas(), registry.BASELINE_SCHEMA)
    (rule,) = rules.detectors
    assert (rule.alert, rule.labels, rule.severity) == (
        "LossNotANumber",
        {"team": "vision"},
        "ticket",
    )
    detectors = RunDetectors(LAYOUTS.get, rules.detectors, rules.baseline)
    (verdict,) = detectors.advance([step(0, loss=float("nan"))])
    active: list[Condition] = [c for c in verdict.conditions if c.active]
    assert [c.severity for c in active] == ["ticket"]
    assert verdict.time_ns == 0 * SECOND


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "rule.yaml: file: expected keys and values"),
        ("[]", "rule.yaml:1: file: expected keys and values"),
        ("rules: []", "rule.yaml:1: file: unknown key 'rules'"),
        ("detectors: []\ngroups: []", "rule.yaml:1: file: exactly one of"),
        ("detectors:\n  alert: A", "rule.yaml:2: detectors: expected a list"),
        ("detectors: [\n", "rule.yaml:2: not YAML"),
        ("detectors:\n- alert: A\n  alert: B", "rule.yaml:3: A: key 'alert' is given twice"),
        ("groups:\n- name: g\n  rules:\n  - expr: up", "rule.yaml:4: group g: a rule has either"),
        ("groups:\n- name: g\n  rules:\n  - alert: A", "rule.yaml:4: A: expr is missing"),
        (
            "groups:\n- name: g\n  rules:\n  - {alert: A, expr: up, four: 5m}",
            "rule.yaml:4: A: unknown key 'four'",
        ),
        ("baseline:\n  source: s\n  params: {}", "baseline: is given twice"),
    ],
)
def test_a_file_that_is_wrong_says_where(tmp_path: Path, text: str, said: str) -> None:
    assert any(said in m for m in mistakes(tmp_path, rule=text)), mistakes(tmp_path, rule=text)


def test_a_directory_without_a_baseline_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rule.yaml").write_text((HERE / "good/one-rule.yaml").read_text())
    with pytest.raises(spec.RulesError, match="no file has a baseline"):
        spec.load(tmp_path, registry.schemas(), registry.BASELINE_SCHEMA)


def test_negative_and_nan_thresholds_are_refused(tmp_path: Path) -> None:
    text = (ROOT / "alert_rules/exploding.yaml").read_text()
    text = text.replace("z: 6.0 ", "z: -6.0 ").replace("ratio: 10.0 ", "ratio: .nan ")
    assert len([m for m in mistakes(tmp_path, rule=text) if "expected 0 or more" in m]) == 4


def test_files_of_prometheus_pass_promtool() -> None:
    files = sorted((ROOT / "alert_rules").rglob("*.rules.yml"))
    assert "gradwarden-self.rules.yml" in [path.name for path in files]
    assert not [group for group in RULES.groups if group.name.startswith("gradwarden-self")]
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    for path in files:
        run = subprocess.run([promtool, "check", "rules", path], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert yaml.safe_load(path.read_text())["groups"]
