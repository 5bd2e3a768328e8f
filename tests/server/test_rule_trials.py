"""Unit tests of rules: the same files through promtool and through us, right and wrong ones."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gradwarden_server.querying.templates import BadTemplate, check, go_number, render
from tests.needs import needs
from tests.service import gradwarden

TRIALS = Path(__file__).parent / "trials"
ROOT = Path(__file__).parents[2]


def promtool(path: Path) -> tuple[bool, str]:
    command = [needs("promtool"), "test", "rules", path.name]
    done = subprocess.run(
        command, cwd=path.parent, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode == 0, done.stdout + done.stderr


def ours(path: Path) -> tuple[bool, str]:
    done = gradwarden("test", "rules", str(path))
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0, done.stdout + done.stderr


def test_what_holds_for_promtool_holds_for_us() -> None:
    path = TRIALS / "held.test.yml"
    theirs = promtool(path)
    assert theirs[0], theirs[1]
    mine = ours(path)
    assert mine[0], mine[1]
    assert "ok      loss goes up" in mine[1]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("loss of a is 10", "loss of a is 11"),
        ("{eval_time: 5m, alertname: LossHigh}", "{eval_time: 9m, alertname: LossHigh}"),
        ("eval_time: 17m", "eval_time: 4m"),
        ("severity: ticket, team", "severity: page, team"),
        ("{eval_time: 14m, alertname: RunLost}", "{eval_time: 13m, alertname: RunLost}"),
        ('window="5m"}\', value: 1}', 'window="5m"}\', value: 2}'),
        ("10.00, 10, 12.3%", "10.0, 10, 12.3%"),
        ("1/s over 5m 0s", "1/s over 300s"),
        ("summary: 1 of LossHigh", "summary: 2 of LossHigh"),
    ],
)
def test_what_does_not_hold_for_promtool_does_not_for_us(
    tmp_path: Path, old: str, new: str
) -> None:
    text = (TRIALS / "held.test.yml").read_text()
    assert old in text
    (tmp_path / "tests.yml").write_text(text.replace(old, new))
    shutil.copy(TRIALS / "rules.yml", tmp_path / "rules.yml")
    assert promtool(tmp_path / "tests.yml")[0] == ours(tmp_path / "tests.yml")[0]


def test_the_rules_about_ourselves_pass_their_tests_here_as_well(tmp_path: Path) -> None:
    shutil.copy(ROOT / "alert_rules" / "prometheus" / "gradwarden-self.rules.yml", tmp_path)
    shutil.copy(ROOT / "tests" / "deploy" / "self.rules.test.yml", tmp_path)
    held, told = ours(tmp_path / "self.rules.test.yml")
    assert held, told


def test_the_shipped_rules_are_quiet_on_healthy_runs_here_and_in_promtool(tmp_path: Path) -> None:
    shutil.copy(ROOT / "alert_rules" / "fleet.rules.yml", tmp_path)
    path = Path(shutil.copy(TRIALS / "fleet.test.yml", tmp_path))
    for held, told in (promtool(path), ours(path)):
        assert held, told
    path.write_text(path.read_text().replace("eval_time: 31m", "eval_time: 14m"))
    assert not promtool(path)[0]
    assert not ours(path)[0]


def test_wrong_files_are_told_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "tests.yml"
    path.write_text("rule_files: [none.yml]\ntests: []\n")
    done = gradwarden("test", "rules", str(path))
    assert (done.returncode, "no file matches 'none.yml'" in done.stderr) == (2, True)
    (tmp_path / "none.yml").write_text(
        "groups:\n- name: g\n  rules:\n  - alert: A\n    expr: up\n    annotations: "
        "{summary: '{{ template \"x\" }}'}\n"
    )
    path.write_text("rule_files: [none.yml]\ntests: [{input_series: []}]\n")
    told = gradwarden("test", "rules", str(path), "--json")
    assert told.returncode == 1
    assert "not known here" in json.loads(told.stdout)["files"][0]["tests"][0]["wrong"][0]
    path.write_text("rule_files: []\ntests: [{external_labels: {site: a}}]\n")
    told = gradwarden("test", "rules", str(path))
    assert (told.returncode, "'external_labels' is not known here" in told.stdout) == (1, True)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (0.25, "0.25"),
        (-12.5, "-12.5"),
        (123456.0, "123456"),
        (1e6, "1e+06"),
        (1234567.0, "1.234567e+06"),
        (0.0001, "0.0001"),
        (0.00001234, "1.234e-05"),
        (float("inf"), "+Inf"),
        (float("nan"), "NaN"),
    ],
)
def test_numbers_are_written_as_go_writes_them(value: float, shown: str) -> None:
    assert go_number(value) == shown


def test_templates_know_what_they_know() -> None:
    labels = {"run": "a"}
    assert render("{{ .Labels.run | toUpper }}{{$labels.none}}", labels, 1.0) == "A"
    assert render("{{ humanize1024 2048 }} {{ humanize 0.002 }}", labels, 1.0) == "2ki 2m"
    assert render("{{ humanizeDuration 90061 }}", labels, 1.0) == "1d 1h 1m 1s"
    for wrong in ("{{ if $value }}", "{{ range .X }}", "{{ $value ", "{{ }}", '{{ query "up" }}'):
        with pytest.raises(BadTemplate):
            check(wrong)
    assert re.match(r"\d", render("{{ $value }}", labels, 3.0))
