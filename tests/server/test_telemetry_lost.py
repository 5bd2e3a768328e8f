"""Many runs that fall silent at once are one incident of their project, and not one each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden_server import assets
from gradwarden_server.alerting.telemetry_loss import Heard, loss
from gradwarden_server.detect import registry
from gradwarden_server.rules import spec
from tests.server.pager import LocalReceiver, eventually, local_receiver
from tests.server.test_silences import _RECEIVERS, told_of
from tests.server.traffic import batch, beat, begin, frame, send
from tests.service import Service

SECOND = 1_000_000_000
NOW = 10_000 * SECOND
RULES = spec.load(assets.ALERT_RULES, registry.schemas(), registry.BASELINE_SCHEMA)
RULE = RULES.telemetry
assert RULE is not None


def runs(*ages: float) -> list[Heard]:
    """Runs by how many seconds ago each was heard."""
    return [Heard(f"r{n}", NOW - round(age * SECOND), True) for n, age in enumerate(ages)]


def lost(*ages: float, since: float | None = None, listening: float = 5000) -> set[str]:
    assert RULE is not None
    since_ns = None if since is None else NOW - round(since * SECOND)
    found = loss(RULE, runs(*ages), since_ns, NOW - round(listening * SECOND), NOW)
    return set() if found is None else {run.run for run in found.runs}


def test_a_third_that_falls_silent_within_a_minute_is_lost() -> None:
    assert lost(61, 70, 118, 1, 2, 3, 4) == {"r0", "r1", "r2"}
    assert lost(61, 70, 118, *[1] * 7) == set(), "three of ten are no more than 30 %"
    assert lost(61, 70) == set(), "two runs that die are their own business"
    assert lost(61, 70, 1) == set()
    assert lost(61, 200, 700, 1) == set(), "they died one by one"
    assert lost(59, 59, 59, 59) == set(), "not silent for long enough"


def test_what_was_silent_before_is_a_matter_of_its_own() -> None:
    old = [5000.0] * 50
    assert lost(61, 62, 63, 1, *old) == {"r0", "r1", "r2"}


def test_it_stands_until_enough_are_heard_again() -> None:
    assert lost(400, 410, 420, 1, since=425) == {"r0", "r1", "r2"}
    assert lost(400, 410, 1, 1, since=425) == set()
    assert lost(400, 410, 420, *[1] * 8, since=425) == set()
    assert lost(400, 410, 420, 430, 1, since=425) == {"r0", "r1", "r2"}, "r3 was silent before"


def test_own_downtime_is_no_evidence() -> None:
    assert lost(500, 500, 500, listening=30) == set(), "nobody had the time to call yet"
    assert lost(500, 500, 500, listening=61) == {"r0", "r1", "r2"}
    assert lost(900, 900, 900, listening=61) == set(), "silent for long before we began"
    assert lost(500, 500, 500, since=510, listening=5) == {"r0", "r1", "r2"}, "it stands on"


@given(st.lists(st.floats(0, 300), max_size=12), st.floats(0, 300))
def test_it_is_never_said_of_few_and_always_of_silent_ones(
    ages: list[float], listening: float
) -> None:
    found = lost(*ages, listening=listening)
    assert not found or len(found) >= 3
    assert all(ages[int(name[1:])] > 60 for name in found)
    if listening > 200 and len(ages) >= 3 and all(60.001 < age < 119.9 for age in ages):
        assert len(found) == len(ages)


@pytest.fixture(scope="module")
def receiver() -> Iterator[LocalReceiver]:
    with local_receiver() as listening:
        yield listening


@pytest.fixture
def house(tmp_path: Path, receiver: LocalReceiver) -> Iterator[Service]:
    """A service that is less patient than the shipped rules."""
    rules = tmp_path / "rules"
    shutil.copytree(assets.ALERT_RULES, rules)
    hurried = {
        "telemetry_lost.yaml": ("silent_seconds: 60.0", "silent_seconds: 3.0"),
        "inhibition.yaml": ("grace_seconds: 120.0", "grace_seconds: 2.0"),
        "silent_run.yaml": ("ticket_seconds: 120.0", "ticket_seconds: 5.0"),
    }
    for name, (slow, fast) in hurried.items():
        text = (rules / name).read_text()
        assert slow in text
        (rules / name).write_text(text.replace(slow, fast))
    inhibition = (rules / "inhibition.yaml").read_text()
    (rules / "inhibition.yaml").write_text(
        inhibition.replace("grace_seconds: 120.0", "grace_seconds: 2.0")
    )
    running = Service(
        tmp_path / "service",
        receivers=_RECEIVERS.format(url=receiver.url),
        env={"GRADWARDEN_RULES": str(rules)},
    )
    yield running
    running.close()


def open_alerts(house: Service, name: str) -> list[dict[str, Any]]:
    query = {"state": "firing", "alertname": name, "limit": "100"}
    items: list[dict[str, Any]] = house.get("/v1/alerts", params=query)["items"]
    return items


def test_a_cut_network_is_one_page_that_outlives_a_restart(
    house: Service, receiver: LocalReceiver
) -> None:
    names = [f"cut-{n}" for n in range(4)]
    for name in (*names, "spared"):
        begin(house, name)
        assert send(house, batch(name, [frame(1), frame(2)])).status_code == 200
        assert beat(house, name).status_code == 200

    def said() -> Any:
        beat(house, "spared")
        return open_alerts(house, "TelemetryLost")

    [alert] = eventually(said)
    assert alert["severity"] == "page"
    assert "run" not in alert["labels"]
    assert alert["annotations"]["runs"].startswith("cut-0, cut-1, cut-2"), "the first to be missed"
    assert "spared" not in alert["annotations"]["runs"]
    assert alert["annotations"]["summary"].partition(" ")[2].startswith("of 5 runs")
    assert alert["impact"] is None, "no run is meant"

    def silent() -> Any:
        beat(house, "spared")
        found = open_alerts(house, "RankSilent")
        return found if len(found) == len(names) else None

    held = eventually(silent)
    assert {one["muted"] for one in held} == {"inhibited by TelemetryLost"}
    house.restart()
    beat(house, "spared")
    [again] = open_alerts(house, "TelemetryLost")
    assert again["id"] == alert["id"]
    requests = list(receiver.requests)
    assert not any(b"RankSilent" in request.body for request in requests), "not of each run"

    def over() -> Any:
        for name in (*names[1:], "spared"):
            beat(house, name)
        return not open_alerts(house, "TelemetryLost")

    eventually(over)
    closed = house.get(f"/v1/alerts/{alert['id']}")
    assert (closed["state"], closed["reason"]) == ("resolved", "heard_again")

    def late() -> Any:
        for name in (*names[1:], "spared"):
            beat(house, name)
        return ("RankSilent", "firing") in told_of(receiver, names[0])

    eventually(late)
    assert not any(told_of(receiver, name) for name in names[1:])
