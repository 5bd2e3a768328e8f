"""Objectives as rules: what the shipped ones alert on and when, here and in Prometheus itself."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradwarden_server.promql.parse import parse
from gradwarden_server.promql.shape import summed
from gradwarden_server.querying import trials
from gradwarden_server.rules.groups import load_groups
from gradwarden_server.slo import compile as compiling
from gradwarden_server.slo import export, openslo, windows
from gradwarden_server.slo.objective import Objective, Period
from tests.needs import needs
from tests.server.burn_forecast import Forecast
from tests.service import gradwarden

FOLDER = Path(__file__).parents[2] / "alert_rules" / "slo"
OBJECTIVES = {one.id: one for one in openslo.load(FOLDER, parse)}
HEALTHY = 30
"""Minutes before the budget burns."""

# Of each objective: what its bad events and all events are counted by.
COUNTERS = {
    "finite-steps": (
        'gradwarden_nonfinite_steps_total{project="p",environment="prod",run="r"}',
        'gradwarden_steps_total{project="p",environment="prod",run="r"}',
    ),
    "telemetry-freshness": (
        'gradwarden_silent_minutes_total{project="p",environment="prod",run="r"}',
        'gradwarden_run_minutes_total{project="p",environment="prod",run="r"}',
    ),
    "detection-delay": (
        "",
        'gradwarden_detection_delay_seconds_count{project="p",alert="NonFiniteLoss",run="r"}',
    ),
}


def first_told(name: str, share: float, a_minute: int, most: int = 600) -> dict[str, int]:
    """The minute of the burn in which each urgency is first told, by arithmetic alone.

    ``a_minute`` events happen in each, of which ``share`` are bad after ``HEALTHY`` minutes.
    """
    allowed, least = {
        "finite-steps": (0.001, 1000),
        "telemetry-freshness": (0.005, 200),
        "detection-delay": (0.05, 20),
    }[name]
    forecast = Forecast(allowed, least)
    bad = 0
    told: dict[str, int] = {}
    for minute in range(HEALTHY + most):
        bad += round(a_minute * share) if minute > HEALTHY else 0
        total, at_s = a_minute * minute, minute * 60
        forecast.point("total", "r", at_s, total)
        if name == "detection-delay":
            forecast.point("good", "r", at_s, total - bad)
        else:
            forecast.point("bad", "r", at_s, bad)
        for urgency in forecast.minute(at_s):
            told.setdefault(urgency, minute - HEALTHY)
    return told


def counters(name: str, share: float, a_minute: int, minutes: int) -> list[dict[str, str]]:
    """Input series of a unit test: counters that go on minute by minute."""
    bad, total = COUNTERS[name]
    whole = f"0+{a_minute}x{HEALTHY + minutes}"
    spoilt = round(a_minute * share)
    begin = f"0+0x{HEALTHY} {spoilt}+{spoilt}x{minutes - 1}"
    if bad:
        return [{"series": bad, "values": begin}, {"series": total, "values": whole}]
    good = a_minute - spoilt
    level = a_minute * HEALTHY
    bucket = total.replace("_count{", '_bucket{le="10",')
    healthy = f"0+{a_minute}x{HEALTHY} {level + good}+{good}x{minutes - 1}"
    return [{"series": bucket, "values": healthy}, {"series": total, "values": whole}]


def month(objective: Objective) -> dict[str, str]:
    """More events in the month so far than the guard of a new install asks for."""
    labels = 'project="p",environment="prod"' if "environment" in objective.total else 'project="p"'
    named = ",".join(f'{k}="{v}"' for k, v in compiling.identity(objective).items())
    return {"series": f"slo:period_events:total{{{labels},{named}}}", "values": "1000000+0x700"}


def asked(name: str, minute: int, urgency: str, holds: bool) -> dict[str, Any]:
    """Whether an alert of that urgency fires so many minutes into the burn."""
    labels = f'alertname="{compiling.ALERT}",slo="{name}",severity="{urgency}",alertstate="firing"'
    samples = [{"labels": "{}", "value": 1}] if holds else []
    return {
        "expr": f"clamp_max(count(ALERTS{{{labels}}}), 1)",
        "eval_time": f"{HEALTHY + minute}m",
        "exp_samples": samples,
    }


def through_both(folder: Path, objective: Objective, test: dict[str, Any]) -> None:
    """Run one unit test of an objective's rules through promtool and through our own rules."""
    rules = folder / "slo.yaml"
    groups = [g for g in compiling.groups(objective) if not g["name"].endswith("-period")]
    rules.write_text(yaml.safe_dump({"groups": groups}))
    document = {"rule_files": ["slo.yaml"], "evaluation_interval": "1m", "tests": [test]}
    document["group_eval_order"] = [group["name"] for group in groups]
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [needs("promtool"), "test", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [trial] = trials.run(document, load_groups(rules))
    assert trial.wrong == ()


@pytest.mark.parametrize(
    ("name", "share", "a_minute", "urgency"),
    [
        ("finite-steps", 0.05, 60, "page"),
        ("finite-steps", 0.01, 60, "ticket"),
        ("telemetry-freshness", 0.25, 8, "page"),
        ("telemetry-freshness", 0.25, 4, "ticket"),
        ("detection-delay", 1.0, 2, "page"),
    ],
)
def test_a_shipped_objective_tells_at_the_computed_minute(
    tmp_path: Path, name: str, share: float, a_minute: int, urgency: str
) -> None:
    objective = OBJECTIVES[name]
    computed = first_told(name, share, a_minute)[urgency]
    test = {
        "interval": "1m",
        "input_series": [*counters(name, share, a_minute, computed + 1), month(objective)],
        "promql_expr_test": [
            asked(name, computed - 1, urgency, False),
            asked(name, computed, urgency, True),
        ],
    }
    through_both(tmp_path, objective, test)


def test_a_second_bad_run_of_the_last_fifty_is_a_ticket(tmp_path: Path) -> None:
    """Seven runs, one an hour; the ill ones are the third and the sixth."""
    series = []
    for number in range(7):
        labels = f'{{project="p",environment="prod",run="r{number}"}}'
        late = "_x" + str(59) + " " if number == 0 else f"_x{number * 60 - 1} "
        wait = "" if number == 0 else late
        good = 0 if number in (2, 5) else 1
        series.append(
            {"series": f"gradwarden_run_ended_seconds{labels}", "values": f"{wait}{number * 3600}"}
        )
        series.append({"series": f"gradwarden_run_good{labels}", "values": f"{wait}{good}"})
    name = "training-success"
    test = {
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [
            asked(name, 4 * 60 - HEALTHY, "ticket", False),
            asked(name, 5 * 60 + 2 - HEALTHY, "ticket", True),
            asked(name, 6 * 60 - HEALTHY, "page", False),
        ],
    }
    through_both(tmp_path, OBJECTIVES[name], test)


def test_too_few_events_tell_nobody(tmp_path: Path) -> None:
    """Half of the steps are bad, yet there are fewer than the guard asks for."""
    objective = OBJECTIVES["finite-steps"]
    minutes = 30
    events = 4 * (HEALTHY + minutes)
    assert events < objective.min_events
    test = {
        "interval": "1m",
        "input_series": counters("finite-steps", 0.5, 4, minutes),
        "promql_expr_test": [
            asked("finite-steps", minutes - 2, urgency, False) for urgency in ("page", "ticket")
        ],
    }
    through_both(tmp_path, objective, test)


def test_slices_of_time_are_good_or_bad_as_a_whole(tmp_path: Path) -> None:
    """All-reduce is slow after an hour: one bad slice of thirteen is over 4 times 1 %."""
    name = "all-reduce-p95"
    series = 'gradwarden_scalar{project="p",run="r",quantity="allreduce_total_seconds"}'
    test = {
        "interval": "1m",
        "input_series": [{"series": series, "values": "0.1+0x60 0.3+0x20"}],
        "promql_expr_test": [
            asked(name, 60 - HEALTHY, "page", False),
            asked(name, 75 - HEALTHY, "page", True),
        ],
    }
    through_both(tmp_path, OBJECTIVES[name], test)


def test_outside_production_a_fast_burn_is_a_ticket() -> None:
    rules = [r for g in compiling.groups(OBJECTIVES["finite-steps"]) for r in g["rules"]]
    told = {
        (rule["labels"]["severity"], rule["labels"]["burn"]): rule["expr"]
        for rule in rules
        if "alert" in rule
    }
    assert set(told) == {("page", "fast"), ("ticket", "fast"), ("ticket", "slowly")}
    assert 'environment="prod"' in told["page", "fast"]
    assert 'environment!="prod"' in told["ticket", "fast"]
    assert "environment" not in told["ticket", "slowly"]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_promtool_reads_every_exported_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(export.prometheus([OBJECTIVES[name]]).documents[0]))
    done = subprocess.run(
        [needs("promtool"), "check", "rules", path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_windows_are_those_of_the_workbook() -> None:
    """The Site Reliability Workbook, table 5-8, for 30 days; and scaled to a week."""
    pairs = [(p.urgency, p.long_s, p.short_s, p.factor) for p in windows.workbook(30)]
    assert pairs == [
        ("page", 3600, 300, 14.4),
        ("page", 21600, 1800, 6.0),
        ("ticket", 86400, 7200, 3.0),
        ("ticket", 259200, 21600, 1.0),
    ]
    assert [p.factor for p in windows.workbook(28)] == [13.44, 5.6, 2.8, 0.933333]
    training = windows.preset("training", 30) or ()
    assert [(p.long_s, p.factor) for p in training] == [(3600, 4.0), (86400, 2.0)]


def test_a_calendar_month_begins_where_its_people_are() -> None:
    at = 1_772_323_200.0  # 2026-03-01T00:00:00Z, still February in New York
    berlin = Period("calendar", 30, "M", "Europe/Berlin").since(at)
    york = Period("calendar", 30, "M", "America/New_York").since(at)
    assert at - berlin == 3600
    assert at - york == 28 * 86400 - 5 * 3600
    assert Period("calendar", 90, "Q").since(at) == at - 59 * 86400
    assert Period("rolling", 30).since(at) == at - 30 * 86400


FINITE = (FOLDER / "training.yaml").read_text().split("\n---\n")[2]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("targetPercent: 99.9", "targetPercent: 100", "objectives[0].target: is 1"),
        ("targetPercent: 99.9", "goal: 99.9", "objectives[0].goal: is not known"),
        ("service: training", "service: other", "spec.service: is 'other'"),
        ("Occurrences", "Sometimes", "budgetingMethod: is 'Sometimes'; one of Occurrences"),
        ("duration: 30d", "duration: 2y", "timeWindow[0].duration: is '2y'"),
        ("isRolling: true", "isRolling: false", "write true, or give the calendar"),
        ("[{{.window}}]", "[5m]", "query: has no {{.window}}"),
        ("increase(", "increase((", "query: is no PromQL"),
        ("unit: steps", "unitt: steps", "gradwarden.dev/unitt: is not known"),
        ("unit: steps", "windows: page 5m/1h x3", "the long window stands first"),
        ("unit: steps", "min-events: some", "min-events: is 'some'"),
        ("budgetingMethod", "alertPolicies: [a]\n  budgetingMethod", "annotation gradwarden.dev/w"),
        ("openslo/v1", "openslo/v1alpha", "apiVersion: is 'openslo/v1alpha'; write openslo/v1"),
        ("kind: SLO", "kind: AlertPolicy", "kind: is 'AlertPolicy'; say when"),
        ("type: Prometheus", "type: Datadog", "type: is 'Datadog'; Prometheus is read"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in FINITE
    head = (FOLDER / "training.yaml").read_text().split("\n---\n")[0]
    (tmp_path / "mine.yaml").write_text(f"{head}\n---\n{FINITE.replace(old, new)}")
    with pytest.raises(openslo.SloError) as told:
        openslo.load(tmp_path, parse)
    assert any(line.startswith("mine.yaml document 2: ") for line in told.value.mistakes)
    assert words in str(told.value)


def test_all_mistakes_of_all_files_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(FINITE.replace("duration: 30d", "duration: never"))
    (tmp_path / "b.yaml").write_text("kind: [")
    done = gradwarden("slo", "check", str(tmp_path))
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert any("a.yaml document 1: spec.service" in line for line in lines)
    assert any("a.yaml document 1: spec.timeWindow[0].duration" in line for line in lines)
    assert any(line.startswith("b.yaml:") and "not YAML" in line for line in lines)


def test_an_indicator_may_stand_by_itself(tmp_path: Path) -> None:
    body = yaml.safe_load(FINITE)
    sli = {
        "apiVersion": openslo.VERSION,
        "kind": "SLI",
        "metadata": {"name": "steps"},
        "spec": body["spec"].pop("indicator")["spec"],
    }
    body["spec"]["indicatorRef"] = "steps"
    head = yaml.safe_load((FOLDER / "training.yaml").read_text().split("\n---\n")[0])
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all([head, body, sli]))
    [found] = openslo.load(tmp_path, parse)
    assert found.bad == OBJECTIVES["finite-steps"].bad


def test_other_tools_get_their_own_files() -> None:
    done = gradwarden("slo", "export", "--format", "sloth")
    [sloth] = yaml.safe_load_all(done.stdout)
    assert sloth["version"] == "prometheus/v1"
    finite = next(slo for slo in sloth["slos"] if slo["name"] == "finite-steps")
    assert finite["objective"] == 99.9
    assert finite["sli"]["events"]["total_query"].count("{{.window}}") == 1
    assert "training-success: Sloth has no budget by count" in done.stderr
    made = {
        one["metadata"]["name"]: one
        for one in export.pyrra(list(OBJECTIVES.values()), summed).documents
    }
    ratio = made["finite-steps"]["spec"]["indicator"]["ratio"]
    assert ratio["errors"]["metric"] == 'gradwarden_nonfinite_steps_total{environment!="drill"}'
    assert ratio["grouping"] == ["project", "environment"]
    assert 'le="10"' in made["detection-delay"]["spec"]["indicator"]["latency"]["success"]["metric"]
    assert math.isclose(float(made["finite-steps"]["spec"]["target"]), 99.9)


def test_recorded_names_are_sloths() -> None:
    rules = [r for g in compiling.groups(OBJECTIVES["finite-steps"]) for r in g["rules"]]
    names = {rule["record"] for rule in rules if "record" in rule}
    assert {
        f"slo:sli_error:ratio_rate{w}" for w in ("5m", "30m", "1h", "2h", "6h", "1d", "3d", "30d")
    } <= names
    assert {"slo:objective:ratio", "slo:error_budget:ratio", "sloth_slo_info"} <= names
