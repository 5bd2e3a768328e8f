"""The health of a run in one word, and why."""

from __future__ import annotations

import pytest

from gradwarden_server.api.summary import judge, spark
from gradwarden_server.model import Severity
from gradwarden_server.store.fleet import Ailment, ListedRun

SECOND = 1_000_000_000
NOW = 1_000 * SECOND
RUN = ListedRun(
    id=1, project="p", run="r", name="r", training_job=None, owner=None, environment="prod",
    world_size=1, status="running", started_ns=0, ended_ns=None, last_seen_ns=NOW, last_step=9,
    position=1, latest=None, attempt=1,
)  # fmt: skip


def firing(severity: Severity, summary: str) -> Ailment:
    """An open alert."""
    return Ailment("X", severity, "firing", "condition", NOW, {"summary": summary})


@pytest.mark.parametrize(
    ("run", "alerts", "health", "reason"),
    [
        (RUN, [], "ok", ""),
        (RUN, [firing("page", "NaN at step 3")], "crit", "NaN at step 3"),
        (RUN, [firing("ticket", "slow")], "warn", "slow"),
        (RUN, [firing("note", "skipped a step")], "ok", "skipped a step"),
        (RUN._replace(last_seen_ns=NOW - 60 * SECOND), [], "ok", ""),
        (RUN._replace(last_seen_ns=NOW - 61 * SECOND), [], "silent", "nothing heard for 61 s"),
        (RUN._replace(last_seen_ns=0), [firing("page", "NaN")], "crit", "NaN"),
        (RUN._replace(last_seen_ns=0, status="finished"), [], "ok", ""),
        (RUN._replace(status="failed"), [firing("ticket", "OOM")], "warn", "OOM"),
        (RUN._replace(status="failed"), [], "warn", "the run failed"),
    ],
)
def test_a_runs_health_follows_its_worst_alert_then_its_silence(
    run: ListedRun, alerts: list[Ailment], health: str, reason: str
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
