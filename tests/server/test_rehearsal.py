"""Rules tried on stored runs: replay, backtest and tune against a real service."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradwarden_server.alerting.findings import Finding, compare, counts
from tests.server.pager import LocalReceiver
from tests.server.traffic import batch, begin, frame, send
from tests.service import Service, gradwarden

RECEIVER = """\
receivers:
  - name: pager
    type: webhook
    url: {url}
    allow_private: true
"""
QUIET = """\
detectors:
  - alert: NonFiniteLoss
    detector: nonfinite_loss
    runbook: NonFiniteLoss
    source: "For a test."
    severity: note
    params:
      skipped_in_a_row: 10
      clean_steps: 20
"""
STEPS = 40


def train(service: Service, run: str, sick: int = -1, **facts: Any) -> None:
    """A run of a step each tenth of a second that ended just now; NaN losses from ``sick`` on."""
    begin(service, run, **facts)
    began = time.time_ns() - STEPS * 10**8
    frames = [
        frame(
            seq,
            time_ns=began + seq * 10**8,
            scalars={"loss": math.nan if 0 <= sick < seq else 2.0 / seq, "lr": 1e-3},
            events=({"kind": "finish", "status": "finished"},) if seq == STEPS else (),
        )
        for seq in range(1, STEPS + 1)
    ]
    for at in range(0, STEPS, 8):
        assert send(service, batch(run, frames[at : at + 8])).status_code == 200


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that saw a healthy run, a sick one, and a drill."""
    pager = LocalReceiver()
    running = Service(tmp_path_factory.mktemp("house"), receivers=RECEIVER.format(url=pager.url))
    train(running, "healthy")
    train(running, "drilled", sick=2, environment="drill")
    pager.wait(2)  # fired and resolved
    train(running, "sick", sick=20)
    pager.wait(4)
    yield running
    running.close()
    pager.close()


@pytest.fixture
def quiet(tmp_path: Path) -> Path:
    """A rule of which NaN losses are a note."""
    path = tmp_path / "quiet.yaml"
    path.write_text(QUIET)
    return path


def say(service: Service, *words: str) -> Any:
    done = gradwarden(*words, "--json", "--url", service.url)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_replay_by_the_same_rules_finds_what_was_raised_live(house: Service) -> None:
    told = say(house, "replay", "sick")
    [found] = told["alerts"]
    assert (found["alert"], found["severity"], found["step"]) == ("NonFiniteLoss", "page", 20)
    assert found["ended"] == "run_finished"
    assert told["frames"] == STEPS
    assert told["only_live"] == told["only_replayed"] == told["moved"] == []
    shown = gradwarden("replay", "sick", "--url", house.url)
    assert "loss is NaN at step 20" in shown.stdout
    assert shown.stdout.endswith("the same alerts were raised live\n")


def test_a_replay_by_other_rules_tells_the_difference(house: Service, quiet: Path) -> None:
    told = say(house, "replay", "sick", "--rules", str(quiet))
    assert [f["severity"] for f in told["alerts"]] == ["note"]
    assert [f["severity"] for f in told["only_live"]] == ["page"]
    assert [f["severity"] for f in told["only_replayed"]] == ["note"]
    shown = gradwarden("replay", "sick", "--rules", str(quiet), "--url", house.url).stdout
    assert "raised live, and not by these rules:" in shown


def test_a_replay_says_what_is_wrong(house: Service, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(QUIET.replace("clean_steps", "cleen_steps"))
    refused = gradwarden("replay", "sick", "--rules", str(wrong), "--url", house.url)
    assert refused.returncode == 2
    assert "wrong.yaml:9: NonFiniteLoss: unknown key 'cleen_steps'" in refused.stderr
    unknown = gradwarden("replay", "nobody", "--url", house.url)
    assert unknown.returncode == 2
    assert "nobody" in unknown.stderr
    nothing = gradwarden("replay", "--url", house.url)
    assert (nothing.returncode, "--spool DIR" in nothing.stderr) == (2, True)
    away = gradwarden("replay", "--spool", str(tmp_path / "away"))
    assert (away.returncode, "away" in away.stderr) == (2, True)


def test_a_backtest_counts_each_rule_old_and_new_and_leaves_drills_out(
    house: Service, quiet: Path
) -> None:
    told = say(house, "backtest", str(quiet))
    assert {one["run"] for one in told["runs"]} == {"healthy", "sick"}
    [row] = told["rules"]
    assert row["alert"] == "NonFiniteLoss"
    assert row["old"] == {"pages": 1, "tickets": 0, "notes": 0, "runs": 1}
    assert row["new"] == {"pages": 0, "tickets": 0, "notes": 1, "runs": 1}
    shown = gradwarden("backtest", str(quiet), "--runs", "sick", "--url", house.url).stdout
    assert "1 runs, 40 frames" in shown
    assert "1 -> 0" in shown
    assert "- sick (finished): page NonFiniteLoss at step 20" in shown
    same = gradwarden("backtest", str(quiet), "--against", str(quiet), "--url", house.url).stdout
    assert "->" not in same.partition("\n")[2]


def test_findings_at_one_place_are_the_same_and_others_are_paired_in_order() -> None:
    def at(step: int, alert: str = "A", words: str = "") -> Finding:
        return Finding(alert, "ticket", 1, step, words)

    before = [at(5, words="one way"), at(9), at(3, "B")]
    apart = compare(before, [at(5, words="another"), at(12), at(1, "C")])
    assert apart.moved == ((at(9), at(12)),)
    assert (apart.gone, apart.new) == ((at(3, "B"),), (at(1, "C"),))
    assert not compare(before, before)
    assert counts(before)["A"] == {"page": 0, "ticket": 2, "note": 0}


def test_a_replay_owns_up_to_what_no_log_holds(house: Service) -> None:
    """The run never said its end, so by the replay's reckoning its process was killed."""
    begin(house, "vanished")
    began = time.time_ns() - 3_600 * 10**9
    frames = [frame(n, time_ns=began + n * 10**8, scalars={"loss": 1.0}) for n in (1, 2, 3)]
    send(house, batch("vanished", frames))
    shown = gradwarden("replay", "vanished", "--url", house.url).stdout
    assert shown.endswith("the same alerts were raised live\n"), "it may still train"
    with sqlite3.connect(house.path) as connection:
        connection.execute("UPDATE run SET last_seen_ns = ? WHERE run = 'vanished'", (began,))
    shown = gradwarden("replay", "vanished", "--url", house.url).stdout
    assert "RunFailed" in shown
    assert "heartbeats are not kept: when RankSilent, RunFailed spoke" in shown
