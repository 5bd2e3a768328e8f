"""Drills: a fault is injected into a run of its own, and its page must arrive."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradwarden import wire
from gradwarden_server.alerting.findings import of_changes
from gradwarden_server.alerting.replay import Process, Replay
from gradwarden_server.cli.drill_faults import FAULTS, LAYOUT, ROWS, Fault
from tests.conftest import free_port
from tests.server.detection import ROOT, RULES
from tests.server.pager import LocalReceiver, run_facts
from tests.service import Service, gradwarden

SECOND = 1_000_000_000
NOW = 1_800_000_000 * SECOND
RECEIVERS = """\
receivers:
  - name: pager
    type: webhook
    url: {url}
    allow_private: true
"""
# The shipped rules with a clock that a test can wait for: two seconds, eight seconds, one.
HASTE = {
    "silent_run.yaml": {
        " ticket_seconds: 300.0": " ticket_seconds: 1.0",
        " page_seconds: 600.0": " page_seconds: 2.0",
        " ticket_seconds: 120.0": " ticket_seconds: 6.0",
        " page_seconds: 300.0": " page_seconds: 8.0",
        "standing_page_seconds: 120.0": "standing_page_seconds: 8.0",
    },
    "failed_run.yaml": {
        "grace_seconds: 600.0": "grace_seconds: 1.0",
        "settle_seconds: 60.0": "settle_seconds: 0.0",
    },
}
KNOWN = {rule.alert for rule in RULES.detectors}


def judged(fault: Fault) -> list[tuple[str, str]]:
    """What the shipped rules say of a fault's frames, beyond notes, in order."""
    facts = replace(run_facts(), world_size=fault.ranks)
    last_ns = NOW + (fault.before + fault.sick) * SECOND // 50
    processes = [Process(1, rank, NOW, last_ns, fault.ranks) for rank in range(fault.ranks)]
    replay = Replay(RULES, facts, {LAYOUT.hash: LAYOUT}.get, processes)
    for step in range(fault.before + fault.sick):
        at_ns = NOW + step * SECOND // 50
        for rank in range(fault.ranks):
            key = wire.StreamKey("drill", "drill", rank, "n")
            frame = fault.frame(rank, step, at_ns)
            replay.hear(wire.Batch(key, (frame,), LAYOUT.hash, ROWS), 1, at_ns)
    found = [(f.alert, f.severity) for f in of_changes(replay.changes)]
    return [one for one in found if one[1] != "note"]


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.sick], ids=lambda fault: fault.name)
def test_the_shipped_rules_find_each_fault_and_nothing_else(fault: Fault) -> None:
    assert fault.alert in KNOWN
    found = judged(fault)
    assert (fault.alert, fault.severity) in found
    assert {alert for alert, _ in found} == {fault.alert}


def test_before_its_fault_a_drill_is_a_healthy_run() -> None:
    for fault in FAULTS:
        assert judged(replace(fault, sick=0)) == [], fault.name


@pytest.fixture(scope="module")
def pager() -> Iterator[LocalReceiver]:
    listening = LocalReceiver()
    yield listening
    listening.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, pager: LocalReceiver) -> Iterator[Service]:
    """A young service, with hasty rules and one receiver."""
    folder = tmp_path_factory.mktemp("house")
    rules = folder / "rules"
    shutil.copytree(ROOT / "alert_rules", rules)
    for name, values in HASTE.items():
        text = (rules / name).read_text()
        for shipped, hasty in values.items():
            assert shipped in text
            text = text.replace(shipped, hasty)
        (rules / name).write_text(text)
    running = Service(
        folder,
        receivers=RECEIVERS.format(url=pager.url),
        env={"GRADWARDEN_SHADOW_DAYS": "7", "GRADWARDEN_RULES": str(rules)},
    )
    yield running
    running.close()


def drill(service: Service, *words: str) -> Any:
    done = gradwarden("drill", *words, "--json", "--url", service.url)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_nan_pages_in_the_shadow_period_too_and_counts_nowhere(
    house: Service, pager: LocalReceiver
) -> None:
    told = drill(house)
    assert (told["fault"], told["ok"], told["cleaned"]) == ("nan", True, True)
    hops = [told["hops"][h] for h in ("left", "acked", "judged", "fired", "queued", "delivered")]
    assert hops == sorted(hops)
    assert hops[0] == 0
    body = json.loads(pager.wait(1)[0].body)
    [alert] = [a for a in body["alerts"] if a["labels"]["alertname"] == "NonFiniteGradient"]
    assert (alert["labels"]["drill"], alert["labels"]["severity"]) == ("true", "page")
    assert alert["annotations"]["layer"] == "blocks.2.fc"
    run = house.get(f"/v1/runs/{told['run']}")
    assert (run["environment"], run["status"]) == ("drill", "cancelled")
    shadow = house.get("/v1/shadow")
    assert (shadow["finished_runs"], shadow["would_have_paged"]) == (0, 0)
    assert 'gradwarden_runs{status="cancelled"}' not in house.call("GET", "/metrics").text
    nothing = gradwarden("backtest", str(ROOT / "alert_rules"), "--url", house.url)
    assert (nothing.returncode, "no stored run" in nothing.stderr) == (2, True)


@pytest.mark.parametrize("fault", ["stalled", "rank_silent", "failed"])
def test_what_time_alone_tells_pages_as_well(house: Service, fault: str) -> None:
    told = drill(house, fault)
    assert told["ok"]
    assert told["cleaned"]
    assert told["hops"]["fired"] >= 1
    assert [d["receiver"] for d in told["deliveries"]] == ["pager"]


def test_it_can_be_the_receiver_itself_and_leave_nothing_behind(tmp_path: Path) -> None:
    port = free_port()
    service = Service(tmp_path, receivers=RECEIVERS.format(url=f"http://127.0.0.1:{port}/page"))
    try:
        done = gradwarden(
            "drill", "nan_loss", "--listen", str(port), "--delete", "--url", service.url
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "arrived at --listen" in done.stdout
        assert "the page arrived at pager" in done.stdout
        assert done.stdout.endswith("the run is deleted\n")
        assert service.get("/v1/runs")["items"] == []
    finally:
        service.close()


def test_a_page_that_nobody_gets_is_told(tmp_path: Path, house: Service) -> None:
    service = Service(tmp_path / "deaf")
    try:
        deaf = gradwarden("drill", "--url", service.url)
        assert (deaf.returncode, "--receivers FILE" in deaf.stderr) == (2, True)
    finally:
        service.close()
    away = RECEIVERS.format(url=f"http://127.0.0.1:{free_port()}/page")
    service = Service(tmp_path / "away", receivers=away)
    try:
        lost = gradwarden("drill", "--patience", "2", "--url", service.url)
        assert lost.returncode == 1
        assert "the page did NOT arrive: nothing was seen of: delivered" in lost.stdout
        assert "its alerts are resolved" in lost.stdout
    finally:
        service.close()
    wrong = gradwarden("drill", "flood", "--url", house.url)
    assert (wrong.returncode, "there are nan, nan_loss" in wrong.stderr) == (2, True)
    listed = gradwarden("drill", "--list", "--url", house.url)
    assert listed.returncode == 0
    assert all(fault.name in listed.stdout for fault in FAULTS)
