"""Thresholds from stored runs: the least change that quiets good ones and keeps the sick told."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gradwarden_server.alerting.tuning import Proposal, bound, proposals
from gradwarden_server.cli.rule_edit import diff
from gradwarden_server.detect import registry
from gradwarden_server.detect.knobs import KNOBS, Knob
from gradwarden_server.rules.spec import DetectorRule
from tests.server.detection import ROOT, RULES
from tests.server.traffic import batch, begin, frame, send
from tests.service import Service, gradwarden

STEPS = 40
BY_ALERT = {rule.alert: rule for rule in RULES.detectors}


def test_every_knob_is_a_number_of_a_detector() -> None:
    schemas = registry.schemas()
    for detector, knobs in KNOBS.items():
        for name, knob in knobs.items():
            assert schemas[detector][name] in ("int", "float"), (detector, name)
            if knob.within is not None:
                assert knob.within in schemas[detector]


def test_knobs_turn_the_quiet_way() -> None:
    assert Knob("up").turned(3.0, 2.0) == 6
    assert Knob("down").turned(0.01, 2.0) == 0.005
    assert Knob("towards one").turned(0.98, 2.0) == pytest.approx(0.99)


def quiet_above(**least: float) -> Any:
    """Quiet where any of these numbers is as large."""

    def quiet(rules: Sequence[DetectorRule]) -> list[bool]:
        return [any(rule.params[n] >= v for n, v in least.items()) for rule in rules]

    return quiet


def test_the_least_change_of_one_number_is_proposed() -> None:
    rule = BY_ALERT["ExplodingGradient"]  # z 6, ratio 10
    found = proposals(rule, quiet_above(z=14, ratio=13.7))
    assert [p.param for p in found][:1] == ["ratio"]
    assert found[0].old == 10
    assert 13.7 <= found[0].new <= 14
    assert found[0].rule.params == {**rule.params, "ratio": found[0].new}


def test_a_number_is_turned_ten_times_at_most_and_never_past_its_window() -> None:
    rule = BY_ALERT["ExplodingGradient"]  # ticket_steps 3 of 10
    assert proposals(rule, quiet_above(z=61)) == []
    assert proposals(rule, quiet_above(ticket_steps=11)) == []
    assert proposals(rule, quiet_above(ticket_steps=9))[0].new == 9


def test_what_nothing_quiets_gets_no_proposal() -> None:
    assert proposals(BY_ALERT["ReplicaMismatch"], lambda rules: [True] * len(rules)) == []
    assert proposals(BY_ALERT["ExplodingGradient"], lambda rules: [False] * len(rules)) == []


def test_few_runs_prove_little() -> None:
    assert bound(0) == 1
    assert bound(5) == pytest.approx(0.451, abs=1e-3)
    assert bound(300) == pytest.approx(0.01, abs=1e-3)


def test_a_diff_changes_one_number_and_leaves_its_comment(tmp_path: Path) -> None:
    rule = BY_ALERT["VanishingGradient"]
    made = [
        Proposal(rule.alert, "severe_ratio", 1.0e-4, 3e-05, 3.3, rule),
        Proposal(rule.alert, "steps", 200, 260, 1.3, rule),
    ]
    text = diff(None, made)
    changed = [line for line in text.splitlines() if line[:1] in "+-" and line[:3] not in _HEADS]
    assert text.startswith("--- a/alert_rules/vanishing.yaml\n+++ b/alert_rules/vanishing.yaml\n")
    assert [line.split("#")[0].split() for line in changed] == [
        ["-", "severe_ratio:", "1.0e-4"],
        ["-", "steps:", "200"],
        ["+", "severe_ratio:", "3.0e-05"],
        ["+", "steps:", "260"],
    ]
    assert all("#" in line for line in changed)
    own = tmp_path / "own.yaml"
    own.write_text((ROOT / "alert_rules/vanishing.yaml").read_text())
    assert diff(own, made).startswith(f"--- a/{tmp_path.name}/own.yaml\n")


_HEADS = ("---", "+++")


def train(service: Service, run: str, skips: int, status: str) -> None:
    """A run that skips every other step of its first ``2 * skips``, each for a NaN."""
    begin(service, run)
    began = time.time_ns() - STEPS * 10**8
    frames = []
    for seq in range(1, STEPS + 1):
        sick = seq % 2 == 0 and seq <= 2 * skips
        end = ({"kind": "finish", "status": status},) if seq == STEPS else ()
        at = began + seq * 10**8
        made = frame(seq, bad_row=2 if sick else None, stepped=not sick, time_ns=at, events=end)
        frames.append(made)
    assert send(service, batch(run, frames)).status_code == 200


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Five runs that finished, of which one skipped five steps, and two that failed."""
    running = Service(tmp_path_factory.mktemp("house"))
    for n in range(4):
        train(running, f"good-{n}", 0, "finished")
    train(running, "bumpy", 5, "finished")
    train(running, "bad", 9, "failed")
    train(running, "slight", 4, "failed")
    yield running
    running.close()


def test_a_false_ticket_becomes_a_diff_that_keeps_the_sick_run_told(house: Service) -> None:
    done = gradwarden("tune", "--sick", "bad", "--url", house.url)
    assert done.returncode == 0, done.stderr
    assert "5 good runs (200 frames), 1 sick ones" in done.stdout
    assert "NonFiniteGradient: spoke on 1 good runs (bumpy): skipped_ticket 3 -> 5" in done.stdout
    assert "still told of 1 of 1 sick runs" in done.stdout
    assert "quiet on 5 runs still leaves up to 45% of runs" in done.stdout
    assert "+      skipped_ticket: 5" in done.stdout


def test_no_number_is_proposed_that_would_miss_a_sick_run(house: Service) -> None:
    done = gradwarden("tune", "--json", "--url", house.url)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    [one] = told["proposals"]
    assert (one["alert"], one["param"], one["loses"]) == ("NonFiniteGradient", None, ["slight"])
    assert (told["diff"], told["sick"]) == ("", 2)


def test_too_few_runs_are_told_as_such(house: Service) -> None:
    done = gradwarden("tune", "--good", "good-0", "bumpy", "--url", house.url)
    assert done.returncode == 1
    assert "2 good runs (80 frames) are too few to move a threshold" in done.stdout
    assert "up to 78% of runs" in done.stdout
    both = gradwarden("tune", "--good", "bad", "--sick", "bad", "--url", house.url)
    assert (both.returncode, "not both" in both.stderr) == (2, True)
