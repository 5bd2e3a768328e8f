"""The health of a run in one word, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradwarden_server.api.summary import judge, spark
from gradwarden_server.model import Alert, Severity
from gradwarden_server.store.records import RunRecord

SECOND = 1_000_000_000
NOW = 1_000 * SECOND
RUN = RunRecord(
    id=1, project="p", run="r", name="r", training_job=None, model=None, dataset=None,
    cluster=None, queue=None, owner=None, team=None, environment="prod", git_commit=None,
    config={}, world_size=1, cost_per_hour=None, target_loss=None, status="running", page=False,
    started_ns=0, ended_ns=None, last_seen_ns=NOW, last_step=9, position=1,
)  # fmt: skip


def firing(severity: Severity, summary: str) -> Alert:
    """An open alert."""
    labels = {"alertname": "X", "severity": severity}
    return Alert(1, "p", "r", labels, {"summary": summary}, "firing", NOW)


@pytest.mark.parametrize(
    ("run", "alerts", "health", "reason"),
    [
        (RUN, [], "ok", ""),
        (RUN, [firing("page", "NaN at step 3")], "crit", "NaN at step 3"),
        (RUN, [firing("ticket", "slow")], "warn", "slow"),
        (RUN, [firing("note", "skipped a step")], "ok", "skipped a step"),
        (replace(RUN, last_seen_ns=NOW - 60 * SECOND), [], "ok", ""),
        (replace(RUN, last_seen_ns=NOW - 61 * SECOND), [], "silent", "nothing heard for 61 s"),
        (replace(RUN, last_seen_ns=0), [firing("page", "NaN")], "crit", "NaN"),
        (replace(RUN, last_seen_ns=0, status="finished"), [], "ok", ""),
        (replace(RUN, status="failed"), [firing("ticket", "OOM")], "warn", "OOM"),
        (replace(RUN, status="failed"), [], "warn", "the run failed"),
    ],
)
def test_a_runs_health_follows_its_worst_alert_then_its_silence(
    run: RunRecord, alerts: list[Alert], health: str, reason: str
) -> None:
    assert judge(run, alerts, NOW) == (health, reason)


def test_a_sparkline_keeps_each_spike_and_shows_each_nan_as_a_gap() -> None:
    norms = [1.0] * 240
    norms[100], norms[200] = 50.0, float("nan")
    line = spark(norms)
    assert len(line) == 48
    assert line[20] == 50.0
    assert line[40] is None
    assert spark([1.0, 2.0]) == (1.0, 2.0)
    assert spark([]) == ()
