"""Alerts pushed to a real Alertmanager, as amtool and a receiver behind it see them."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradwarden_server.alerting.lifecycle import advance, settle
from gradwarden_server.model import Alert, Condition, Notification, Queued
from gradwarden_server.notify.alertmanager import LIFETIME_NS, REPEAT_SECONDS
from gradwarden_server.notify.links import Informed
from gradwarden_server.notify.message import Failed, Sender, Sent
from gradwarden_server.notify.payload import rfc3339
from gradwarden_server.notify.registry import connect
from gradwarden_server.notify.routes import Routing
from gradwarden_server.notify.spec import Receiver
from tests.needs import needs
from tests.server.board import Board
from tests.server.pager import (
    PATIENCE,
    SECOND,
    Desk,
    LocalReceiver,
    local_receiver,
    run_facts,
    sick,
    sqlite_url,
    well,
)

CONFIG = """
route: {{receiver: behind, group_wait: 0s, group_interval: 1s, group_by: ['...']}}
receivers:
  - name: behind
    webhook_configs: [{{url: '{url}', send_resolved: true}}]
"""


class Alertmanager:
    """A real daemon, which can die and come back, and the receiver that it notifies."""

    def __init__(
        self, folder: Path, behind: LocalReceiver, config: str = CONFIG, *flags: str
    ) -> None:
        self.behind = behind
        self._flags = flags
        self._folder = folder
        self._address = "127.0.0.1:0"
        self._daemon: subprocess.Popen[str] | None = None
        (folder / "alertmanager.yml").write_text(config.format(url=behind.url))

    @property
    def url(self) -> str:
        return f"http://{self._address}"

    def start(self) -> None:
        self._daemon = subprocess.Popen(
            [
                needs("prometheus-alertmanager"),
                f"--config.file={self._folder / 'alertmanager.yml'}",
                f"--storage.path={self._folder / 'data'}",
                f"--web.listen-address={self._address}",
                "--cluster.listen-address=",
                *self._flags,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self._folder,
        )
        assert self._daemon.stderr is not None
        for line in self._daemon.stderr:
            if found := re.search(r"Listening on.*address=(127\.0\.0\.1:\d+)", line):
                self._address = found[1]
                return
        pytest.fail("Alertmanager ended before it listened")

    def stop(self) -> None:
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.communicate(timeout=PATIENCE)

    def firing(self) -> list[dict[str, Any]]:
        """What amtool says is firing."""
        words = [needs("amtool"), f"--alertmanager.url={self.url}", "alert", "query", "-o", "json"]
        done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=PATIENCE)
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Alertmanager]:
    with local_receiver() as behind:
        daemon = Alertmanager(tmp_path, behind)
        try:
            daemon.start()
            yield daemon
        finally:
            daemon.stop()


class Caller:
    """Sends what the line says straight to the sender."""

    def __init__(self, peer: Alertmanager) -> None:
        receiver = Receiver("am", "alertmanager", peer.url + "/", allow_private=True)
        self.line = Board(Routing([receiver]), "http://gw.example")
        self.sender: Sender = connect([receiver])["am"]
        self.alerts: dict[str, Alert] = {}

    def say(self, *conditions: Condition) -> list[Sent]:
        now = time.time_ns()
        changes = advance(self.alerts, run_facts(), conditions, now)
        told = self.line.news(changes, now)
        self.alerts = settle(self.alerts, changes)
        return [self.send(notification, now) for notification in told]

    def send(self, notification: Notification, now: int) -> Sent:
        outcome = self.sender.send(Queued(1, notification, 1, 1, now), now)
        assert isinstance(outcome, Sent), outcome
        return outcome


def test_an_alert_appears_and_resolves_in_a_real_alertmanager(peer: Alertmanager) -> None:
    caller = Caller(peer)
    (sent,) = caller.say(sick(step="40", layer="fc2", summary="NaN"))
    assert sent.repeat_seconds == REPEAT_SECONDS
    (alert,) = peer.firing()
    assert alert["labels"] == {
        "alertname": "NonFiniteGradient",
        "severity": "page",
        "project": "default",
        "run": "r1",
    }
    assert alert["annotations"] == {"step": "40", "layer": "fc2", "summary": "NaN"}
    assert alert["generatorURL"] == "http://gw.example"
    (sent,) = caller.say(well())
    assert sent.repeat_seconds is None, "a resolve is told once"
    assert peer.firing() == []


def test_a_real_alertmanager_notifies_of_both(peer: Alertmanager) -> None:
    caller = Caller(peer)
    caller.say(sick(step="40"))
    fired = json.loads(peer.behind.wait(1)[0].body)
    caller.say(well())
    over = json.loads(peer.behind.wait(2)[1].body)
    assert [(x["status"], x["alerts"][0]["annotations"]) for x in (fired, over)] == [
        ("firing", {"step": "40"}),
        ("resolved", {"step": "40"}),
    ]
    # Its body is the model of ours: the same keys, on top and in each alert.
    line = Board(Routing([Receiver("w", "webhook", "https://w.example")]), "http://gw.example")
    now = time.time_ns()
    (ours,) = line.news(advance({}, run_facts(), [sick()], now), now)
    assert set(fired) == set(ours.payload)
    assert set(fired["alerts"][0]) == set(ours.payload["alerts"][0])


def test_telling_it_again_pushes_the_end_of_the_same_alert(peer: Alertmanager) -> None:
    caller = Caller(peer)
    now = time.time_ns()
    changes = advance({}, run_facts(), [sick()], now)
    (told,) = caller.line.news(changes, now)
    later = now + int(REPEAT_SECONDS) * SECOND
    for at in (now, later):
        caller.send(told, at)
        (alert,) = peer.firing()
        assert alert["endsAt"] == rfc3339(at + LIFETIME_NS)
        assert alert["startsAt"] == rfc3339(now)


def test_an_alertmanager_that_does_not_know_the_alert_takes_its_resolve(
    peer: Alertmanager,
) -> None:
    caller = Caller(peer)
    before = time.time_ns() - SECOND
    fired = advance({}, run_facts(), [sick()], before)
    assert caller.line.news(fired, before), "told to nobody here"
    caller.alerts = settle({}, fired)
    caller.say(well())
    assert peer.firing() == []


def test_a_resolve_from_a_clock_that_is_ahead_is_believed(peer: Alertmanager) -> None:
    caller = Caller(peer)
    caller.say(sick())
    ahead = time.time_ns() + 30 * SECOND
    over = advance(caller.alerts, run_facts(), [well()], ahead)
    (told,) = caller.line.news(over, ahead)
    caller.send(told, ahead)
    assert peer.firing() == []


def test_a_group_arrives_whole_whatever_its_labels_say(peer: Alertmanager) -> None:
    caller = Caller(peer)
    odd = 'NaN in "fc\\2" <b>&\nü \N{SNOWMAN}'
    caller.say(
        sick(summary=odd),
        sick("ExplodingGradient", summary="2"),
        sick("RunStalled", "ticket", summary="3"),
    )
    firing = {alert["labels"]["alertname"]: alert for alert in peer.firing()}
    assert set(firing) == {"NonFiniteGradient", "ExplodingGradient", "RunStalled"}
    assert firing["NonFiniteGradient"]["annotations"]["summary"] == odd
    assert firing["RunStalled"]["labels"]["severity"] == "ticket"
    caller.say(well("ExplodingGradient"), sick(summary=odd), sick("RunStalled", "ticket"))
    assert {a["labels"]["alertname"] for a in peer.firing()} == {"NonFiniteGradient", "RunStalled"}


def test_who_takes_care_stands_with_the_alert(peer: Alertmanager) -> None:
    caller = Caller(peer)
    caller.sender = Informed(
        caller.sender, lambda project, prints: dict.fromkeys(prints, "ada"), None
    )
    caller.say(sick(step="40"))
    (alert,) = peer.firing()
    assert alert["annotations"] == {"step": "40", "acknowledged_by": "ada"}


def test_what_it_does_not_take_is_final_and_one_that_is_away_is_not(peer: Alertmanager) -> None:
    caller = Caller(peer)
    now = time.time_ns()
    changes = advance({}, run_facts(), [sick()], now)
    (told,) = caller.line.news(changes, now)
    nameless = {**told.payload, "alerts": [{**told.payload["alerts"][0], "labels": {}}]}
    refused = Queued(1, replace(told, payload=nameless), 1, 1, now)
    assert caller.sender.send(refused, now) == Failed("HTTP 400", retry=False)
    peer.stop()
    outcome = caller.sender.send(Queued(1, told, 1, 1, now), now)
    assert isinstance(outcome, Failed)
    assert outcome.retry


def test_an_alertmanager_that_forgot_is_told_again_within_a_minute(
    peer: Alertmanager, tmp_path: Path
) -> None:
    receiver = Receiver("am", "alertmanager", peer.url, allow_private=True)
    line = Board(Routing([receiver]), "http://gw.example")
    desk = Desk(sqlite_url(tmp_path))
    desk.now_ns = time.time_ns()
    fired = advance({}, run_facts(), [sick()], desk.now_ns)
    over = advance(settle({}, fired), run_facts(), [well()], desk.now_ns + SECOND)
    try:
        desk.courier(connect([receiver]))
        desk.send(*line.news(fired, desk.now_ns))
        desk.until(standing=1)
        assert len(peer.firing()) == 1
        peer.stop()
        peer.start()
        assert peer.firing() == []
        desk.later(REPEAT_SECONDS)
        assert len(desk.quiet().receipts()) == 1, "repeats are not written down each time"
        assert len(peer.firing()) == 1
        desk.send(*line.news(over, desk.now_ns))
        desk.until(sent=2)
        assert peer.firing() == []
    finally:
        desk.close()
