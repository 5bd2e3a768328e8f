"""The shadow period: pages of a young project are tickets, are counted, and page once promoted."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradwarden_server.alerting import lifecycle
from gradwarden_server.alerting.promotion import Shadows
from gradwarden_server.alerting.shadow import OPEN, Shadow
from gradwarden_server.model import DRILL, PROOF, SHADOW, Alert, Change, Condition
from gradwarden_server.store.judging.promotions import Promotions
from tests.server.detection import RULES, engine, held, step
from tests.server.pager import LocalReceiver, run_facts
from tests.server.test_store import LAYOUT, NOW, PROJECT, Store
from tests.server.test_store import batch as stored
from tests.server.test_store import frame as logged
from tests.server.traffic import batch, begin, frame, send
from tests.service import Service, gradwarden

DAY = 86_400 * 1_000_000_000
PERIOD = Shadow(period=True)
RECEIVER = """\
receivers:
  - name: pager
    type: webhook
    url: {url}
    allow_private: true
"""


def say(alertname: str = "LossDivergence", **words: str) -> list[Condition]:
    """A detector that knows pages and tickets sees something worth a page."""
    return [
        Condition(alertname, "page", True, {"step": "7", **words}),
        Condition(alertname, "ticket", False, reason="escalated"),
    ]


def calm(alertname: str = "LossDivergence") -> list[Condition]:
    return [Condition(alertname, s, False, reason="cleared") for s in ("page", "ticket")]


class Bell:
    """The alerts of one run, moment by moment."""

    def __init__(self, **labels: str) -> None:
        facts = run_facts()
        self.facts = replace(facts, labels={**facts.labels, **labels})
        self.open: dict[str, Alert] = {}
        self.now = 0

    def hear(self, shadow: Shadow, conditions: list[Condition]) -> list[str]:
        """Transitions in words."""
        self.now += 1
        said = []
        for some in (shadow.promotions(self.open), conditions):
            turned = shadow.turn(some, self.open, self.facts)
            new = lifecycle.advance(self.open, self.facts, turned, self.now)
            self.open = lifecycle.settle(self.open, new)
            said += new
        return [_words(change) for change in said if change.to_state != "pending"]

    @property
    def marked(self) -> list[str]:
        return [alert.annotations.get(SHADOW, "") for alert in self.open.values()]


def _words(change: Change) -> str:
    return f"{change.alert.severity} {change.to_state}: {change.reason}"


def test_a_page_is_a_ticket_that_says_that_it_would_have_paged() -> None:
    bell = Bell()
    assert bell.hear(PERIOD, say()) == ["ticket firing: condition"]
    assert bell.marked == ["would have paged"]
    assert bell.hear(PERIOD, say()) == []
    assert bell.hear(PERIOD, calm()) == ["ticket resolved: cleared"]


def test_its_ticket_ends_with_it_where_the_detector_knows_no_tickets() -> None:
    bell = Bell()
    bell.hear(PERIOD, [Condition("NonFiniteLoss", "page", True)])
    over = [Condition("NonFiniteLoss", "page", False, reason="cleared")]
    assert bell.hear(PERIOD, over) == ["ticket resolved: cleared"]


def test_what_was_proved_pages_and_so_does_a_drill() -> None:
    assert Bell().hear(PERIOD, say(**{PROOF: "applied"})) == ["page firing: condition"]
    assert Bell(**{DRILL: "true"}).hear(PERIOD, say()) == ["page firing: condition"]


def test_what_is_proved_later_pages_and_its_ticket_is_over() -> None:
    bell = Bell()
    page = Condition("Nan", "page", True, {"step": "7"})
    bell.hear(PERIOD, [page])
    told = bell.hear(PERIOD, [replace(page, annotations={**page.annotations, PROOF: "applied"})])
    assert sorted(told) == ["page firing: condition", "ticket resolved: promoted"]
    assert bell.hear(PERIOD, [page]) == []


def test_tickets_and_notes_stay_what_they_are() -> None:
    bell = Bell()
    assert bell.hear(PERIOD, [Condition("X", "ticket", True), Condition("X", "note", True)]) == [
        "ticket firing: condition",
        "note firing: condition",
    ]
    assert bell.marked == ["", ""]


def test_a_promotion_within_an_incident_pages_once_and_loses_nothing() -> None:
    bell = Bell()
    bell.hear(PERIOD, say())
    told = bell.hear(OPEN, [])
    assert sorted(told) == ["page firing: promoted", "ticket resolved: promoted"]
    assert [a.annotations for a in bell.open.values()] == [{"step": "7"}]
    assert bell.hear(OPEN, say()) == []
    assert bell.hear(OPEN, calm()) == ["page resolved: cleared"]


def test_a_promotion_at_the_moment_of_the_next_step_pages_once_too() -> None:
    bell = Bell()
    bell.hear(PERIOD, say())
    told = bell.hear(OPEN, say())
    assert told.count("page firing: promoted") == 1
    assert len(told) == 2


def test_an_incident_that_paged_stays_a_page_when_its_rule_goes_on_probation() -> None:
    bell = Bell()
    bell.hear(OPEN, say())
    assert bell.hear(PERIOD, say()) == []
    assert bell.hear(PERIOD, calm()) == ["page resolved: cleared"]


def test_a_rule_on_probation_and_one_that_was_promoted_alone() -> None:
    shadow = Shadow(period=False, rules=frozenset({"New"}))
    assert Bell().hear(shadow, say("New")) == ["ticket firing: condition"]
    assert Bell().hear(shadow, say("Old")) == ["page firing: condition"]
    early = Shadow(period=True, rules=frozenset({"New"}), promoted=frozenset({"New"}))
    assert Bell().hear(early, say("New")) == ["page firing: condition"]
    assert Bell().hear(early, say("Old")) == ["ticket firing: condition"]


def test_an_applied_nan_is_proved_and_skipped_ones_are_not() -> None:
    applied = engine(["NonFiniteGradient"]).advance([step(1, nan=[3])])
    assert PROOF in held(applied)["NonFiniteGradient", "page"].annotations
    detectors = engine(["NonFiniteGradient"])
    skipped = [step(n, nan=[3], stepped=False) for n in range(10)]
    page = held(detectors.advance(skipped))["NonFiniteGradient", "page"]
    assert PROOF not in page.annotations
    late = held(detectors.advance([step(10, nan=[3])]))["NonFiniteGradient", "page"]
    assert PROOF in late.annotations


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    made = Store(store_url)
    made.runs.put_layout(PROJECT, LAYOUT).result()
    yield made
    made.database.close()


def _finish(store: Store, run: str, environment: str = "prod") -> None:
    store.start(run, environment=environment)
    end = stored(logged(1, events=({"kind": "finish", "status": "finished"},)))
    key = replace(end.stream, run=run, nonce="n-a1-0")
    store.send(replace(end, stream=key))


def test_a_period_lasts_seven_days_and_three_finished_runs(store: Store) -> None:
    promotions = Promotions(store.database)
    shadows = Shadows(promotions, RULES, 7)
    store.start("r")
    created = promotions.youth(PROJECT).created_ns
    assert created is not None
    soon, late = created + DAY, created + 8 * DAY
    assert shadows.of(PROJECT, soon).period
    _finish(store, "drill-1", DRILL)
    for n in (1, 2):
        _finish(store, f"r{n}")
    assert shadows.of(PROJECT, late).period, "two runs finished; the drill is none"
    assert "2 of 3 finished runs" in shadows.report(PROJECT, late).progress.words
    _finish(store, "r3")
    assert shadows.of(PROJECT, soon + 2).period, "three runs in one day are too soon"
    assert not shadows.of(PROJECT, late + DAY).period
    assert not Shadows(promotions, RULES, 7).of(PROJECT, soon).period, "over is over"
    report = shadows.report(PROJECT, late)
    assert report.ended is not None
    assert all(rule.pages and not rule.would_have_paged for rule in report.rules)


def test_a_project_that_was_there_before_shadow_periods_pages_as_it_did(tmp_path: Path) -> None:
    from gradwarden_server.store.database import Database

    database = Database(f"sqlite:///{tmp_path}/gw.sqlite")
    database.migrate()
    database.downgrade("0003")
    database.close()
    with sqlite3.connect(tmp_path / "gw.sqlite") as connection:
        connection.execute("INSERT INTO project VALUES ('old', 1)")
    store = Store(f"sqlite:///{tmp_path}/gw.sqlite")
    try:
        assert not Shadows(Promotions(store.database), RULES, 7).of("old", NOW).period
    finally:
        store.database.close()


@pytest.fixture(scope="module")
def receiver() -> Iterator[LocalReceiver]:
    listening = LocalReceiver()
    yield listening
    listening.close()


@pytest.fixture(scope="module")
def young(tmp_path_factory: pytest.TempPathFactory, receiver: LocalReceiver) -> Iterator[Service]:
    """A service as it is installed: its first project is in its shadow period."""
    running = Service(
        tmp_path_factory.mktemp("young"),
        receivers=RECEIVER.format(url=receiver.url),
        env={"GRADWARDEN_SHADOW_DAYS": "7"},
    )
    yield running
    running.close()


def _alerts(body: bytes) -> list[tuple[str, str, str, str | None]]:
    return [
        (
            alert["labels"]["alertname"],
            alert["labels"]["severity"],
            alert["status"],
            alert["annotations"].get(SHADOW),
        )
        for alert in json.loads(body)["alerts"]
    ]


def test_from_ticket_to_page_through_a_service_that_dies_on_the_way(
    young: Service, receiver: LocalReceiver
) -> None:
    begin(young, "shadowed")
    bad = [frame(n, scalars={"loss": math.nan}) for n in (1, 2)]
    send(young, batch("shadowed", bad))
    first = receiver.wait(1)[0]
    assert _alerts(first.body) == [("NonFiniteLoss", "ticket", "firing", "would have paged")]
    told = young.get("/v1/shadow")
    assert told["state"] == "shadow"
    assert "0 of 3 finished runs" in told["why"]
    assert _rule(told, "NonFiniteLoss")["would_have_paged"] == told["would_have_paged"] == 1
    assert not _rule(told, "NonFiniteLoss")["pages"]
    young.restart()
    send(young, batch("shadowed", [frame(3, scalars={"loss": math.nan})]))
    shown = gradwarden("promote", "--show", "--url", young.url)
    assert shown.stdout.startswith("shadow: 0.0 of 7 days"), shown.stderr
    assert "NonFiniteLoss" in shown.stdout
    done = gradwarden("promote", "NonFiniteLoss", "--json", "--url", young.url)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["state"] == "shadow", "the project's other rules wait on"
    assert _rule(told, "NonFiniteLoss")["pages"]
    news = sorted(_alerts(request.body)[0] for request in receiver.wait(3)[1:3])
    assert news == [
        ("NonFiniteLoss", "page", "firing", None),
        ("NonFiniteLoss", "ticket", "resolved", "would have paged"),
    ]
    send(young, batch("shadowed", [frame(4, scalars={"loss": math.nan})]))
    end = frame(5, events=({"kind": "finish", "status": "finished"},))
    send(young, batch("shadowed", [end]))
    assert _alerts(receiver.wait(4)[3].body) == [("NonFiniteLoss", "page", "resolved", None)]
    with sqlite3.connect(young.path) as connection:
        acts = connection.execute("SELECT action, subject, actor FROM audit").fetchall()
    assert ("shadow.promote", "NonFiniteLoss", "loopback") in acts
    assert young.get("/v1/shadow")["would_have_paged"] == 1


def test_an_applied_nan_pages_a_project_on_its_first_day(
    young: Service, receiver: LocalReceiver
) -> None:
    before = len(receiver.requests)
    begin(young, "poisoned")
    send(young, batch("poisoned", [frame(1), frame(2, bad_row=2)]))
    told = _alerts(receiver.wait(before + 1)[before].body)
    assert ("NonFiniteGradient", "page", "firing", None) in told


def test_promoting_a_project_and_what_is_no_name_at_all(young: Service) -> None:
    wrong = gradwarden("promote", "NonFiniteLos", "--url", young.url)
    assert wrong.returncode == 2
    assert "neither a rule nor a project" in wrong.stderr
    answer = young.call("POST", "/v1/shadow/promote", json={"alert": "NonFiniteLos"})
    assert answer.status_code == 404
    done = gradwarden("promote", "default", "--url", young.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("live: promoted by loopback at ")


def _rule(told: dict[str, Any], alert: str) -> dict[str, Any]:
    found: dict[str, Any] = next(rule for rule in told["rules"] if rule["alert"] == alert)
    return found
