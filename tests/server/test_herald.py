"""Groups in real databases: what is told over runs and restarts, in storms, and to whom next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, delete, select, update

from gradwarden_server.alerting.herald import Herald
from gradwarden_server.alerting.lifecycle import advance, resolve_all, settle
from gradwarden_server.alerting.line import Line
from gradwarden_server.model import Alert, Condition, Queued, Receipt
from gradwarden_server.notify.routefile import Paging
from gradwarden_server.notify.routes import Escalation, Route, Routing, Storm
from gradwarden_server.notify.spec import Receiver
from gradwarden_server.store import tables
from gradwarden_server.store.alerts.casebook import Casebook
from gradwarden_server.store.alerts.groups import GroupStore
from gradwarden_server.store.alerts.ledger import AlertLedger
from gradwarden_server.store.alerts.letters import Letters
from gradwarden_server.store.alerts.outbox import Outbox
from gradwarden_server.store.database import Database
from tests.server.pager import (
    PATIENCE,
    SECOND,
    add_run,
    open_database,
    run_facts,
    sick,
    sqlite_url,
    well,
)

T = TypeVar("T")
DAY = 86_400 * SECOND
RECEIVERS = [Receiver(name, "webhook", f"https://{name}.example") for name in ("pager", "boss")]
RECEIVERS.append(Receiver("behind", "alertmanager", "https://behind.example"))
AT_ONCE = Route("pager", group_wait_seconds=0.0, group_interval_seconds=0.0)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        opened = open_database(sqlite_url(tmp_path))
    else:
        opened = _on_postgres(request.getfixturevalue("postgres_url"))
    yield opened
    opened.close()


def _on_postgres(url: str) -> Database:
    opened = Database(url)
    opened.migrate()
    opened.write(_empty).result(PATIENCE)
    opened.close()
    return open_database(url)


def _empty(conn: Connection) -> None:
    for table in reversed(tables.metadata.sorted_tables):
        conn.execute(delete(table))


class Office:
    """Evaluator, herald and courier of one service, moved by hand."""

    def __init__(self, database: Database, *routes: Route) -> None:
        self.database = database
        self.outbox = Outbox(database.engine)
        self.groups = GroupStore(database.engine)
        self.letters = Letters(database)
        self.now_ns = DAY
        self.runs: dict[str, int] = {}
        self.route(*routes)

    def route(self, *routes: Route) -> None:
        """The service starts anew with these routes."""
        self.routing = Routing(RECEIVERS, routes)
        self.ledger = AlertLedger(self.database.engine, self.routing.lanes)
        self.herald = Herald(
            self.database,
            self.groups,
            self.routing,
            "http://gw",
            lambda: ("default",),
            lambda: self.now_ns,
        )
        self.herald.adopt()

    def write(self, job: Callable[[Connection], T]) -> T:
        return self.database.write(job).result(PATIENCE)

    def say(self, run: str, *conditions: Condition) -> None:
        self.write(lambda conn: self._say(conn, run, conditions))

    def say_of_many(self, runs: Sequence[str], condition: Condition) -> None:
        def job(conn: Connection) -> None:
            for run in runs:
                self._say(conn, run, [condition])

        self.write(job)

    def _say(self, conn: Connection, run: str, conditions: Sequence[Condition]) -> None:
        if run not in self.runs:
            self.runs[run] = add_run(conn, run)
        row = self.runs[run]
        standing = self.ledger.open_alerts("default", conn, row)
        changes = advance(standing, run_facts(run, row), conditions, self.now_ns)
        self.ledger.apply("default", conn, row, changes, self.now_ns)

    def later(self, seconds: float) -> None:
        self.now_ns += round(seconds * SECOND)

    def tell(self, receiver: str = "pager") -> list[str]:
        """Let the herald speak, and deliver; each message as text."""
        self.herald.round(self.now_ns)
        told = []
        while claimed := self.claim(receiver):
            for queued in claimed:
                told.append(_text(queued))
                self.record(queued, Receipt(True, "HTTP 200", self.now_ns, 0.1))
        return told

    def claim(self, receiver: str = "pager") -> list[Queued]:
        return self.write(lambda conn: self.outbox.claim(conn, receiver, self.now_ns, 100))

    def record(self, queued: Queued, receipt: Receipt) -> None:
        self.write(lambda conn: self.outbox.record(conn, queued, receipt))

    def fail(self, queued: Queued, again: float | None = 5.0) -> None:
        retry_ns = None if again is None else self.now_ns + round(again * SECOND)
        self.record(queued, Receipt(False, "HTTP 503", self.now_ns, 0.1, retry_ns))

    def alerts(self) -> list[Alert]:
        return list(self.ledger.list("default", limit=10_000).items)

    def whys(self, alert: Alert) -> list[tuple[str, str]]:
        story = self.ledger.get("default", alert.id or 0)
        assert story is not None
        return [(one.receiver, one.why) for one in story.deliveries]


def _text(queued: Queued) -> str:
    payload = queued.notification.payload
    words = [f"{a['labels'].get('run', '-')}:{a['status']}" for a in payload["alerts"]]
    return f"{payload['status']} {' '.join(sorted(words))}"


@pytest.fixture
def office(database: Database) -> Office:
    return Office(database, AT_ONCE)


def test_a_group_over_runs_is_one_incident_from_the_first_to_the_last(database: Database) -> None:
    office = Office(database, replace(AT_ONCE, group_by=("alertname",)))
    office.say("r1", sick())
    assert office.tell() == ["firing r1:firing"]
    office.say("r2", sick())
    assert office.tell() == ["firing r1:firing r2:firing"]
    office.say("r1", well())
    assert office.tell() == ["firing r1:resolved r2:firing"]
    office.say("r2", well())
    assert office.tell() == ["resolved r2:resolved"]
    first, second = sorted(office.alerts(), key=lambda a: a.run or "")
    assert office.whys(first) == [("pager", "fired"), ("pager", "changed")]
    assert office.whys(second) == [("pager", "changed"), ("pager", "resolved")]


def test_a_receiver_that_was_down_hears_once_what_is_so(office: Office) -> None:
    office.say("r1", sick())
    office.herald.round(office.now_ns)
    (trigger,) = office.claim()
    office.fail(trigger)
    for condition in (well(), sick(), well(), sick("RunStalled")):
        office.later(1)
        office.say("r1", condition)
        office.herald.round(office.now_ns)
    office.later(60)
    assert sorted(office.tell()) == ["firing r1:firing", "resolved r1:resolved"]
    assert office.outbox.counts() == {"sent": 2, "superseded": 3}


def test_what_ended_before_it_was_tried_is_told_once_as_over(office: Office) -> None:
    office.say("r1", sick())
    office.herald.round(office.now_ns)
    assert office.outbox.counts() == {"waiting": 1}
    office.say("r1", well())
    assert office.tell() == ["resolved r1:resolved"]
    assert office.outbox.counts() == {"sent": 1, "superseded": 1}


def test_a_page_that_was_over_before_anybody_looked_is_told_once_as_over(office: Office) -> None:
    for _ in range(2):
        office.say("r1", sick())
        office.later(1)
        office.say("r1", well())
    assert office.tell() == ["resolved r1:resolved"]
    for alert in office.alerts():
        assert office.whys(alert) == [("pager", "resolved")]
    office.later(1)
    office.say("r1", sick("DeadLayer", "note"))
    assert office.tell() == []


def test_a_page_that_begins_and_ends_in_one_transaction_is_told(office: Office) -> None:
    office.runs["r1"] = office.write(lambda conn: add_run(conn, "r1"))
    facts = run_facts("r1", office.runs["r1"])
    began = advance({}, facts, [sick()], office.now_ns)
    ended = advance(settle({}, began), facts, [well()], office.now_ns + SECOND)
    both = [*began, *ended]
    office.write(lambda conn: office.ledger.apply("default", conn, facts.row, both, office.now_ns))
    assert office.tell() == ["resolved r1:resolved"]


def test_a_storm_of_pages_that_are_over_tells_no_more_than_ten(office: Office) -> None:
    runs = [f"r{number}" for number in range(30)]
    office.say_of_many(runs, sick())
    office.say_of_many(runs, well())
    assert len(office.tell()) == 10
    office.later(60)
    assert office.tell() == []
    office.say("r29", sick())
    assert office.tell() == ["firing r29:firing"], "none was folded away, or counts as told"


def test_what_fires_rings_before_what_is_over(office: Office) -> None:
    blips = [f"r{number}" for number in range(12)]
    office.say_of_many(blips, sick())
    office.say_of_many(blips, well())
    office.say("ill", sick())
    told = office.tell()
    assert "firing ill:firing" in told
    assert len(told) == 10


def test_an_end_that_did_not_arrive_is_in_the_message_that_takes_its_place(
    database: Database,
) -> None:
    office = Office(database, replace(AT_ONCE, group_by=("alertname",)))
    office.say_of_many(["r1", "r2"], sick())
    assert office.tell() == ["firing r1:firing r2:firing"]
    office.say("r1", well())
    office.herald.round(office.now_ns)
    (lost,) = office.claim()
    office.fail(lost)
    office.say("r3", sick())
    assert office.tell() == ["firing r1:resolved r2:firing r3:firing"]
    (first,) = [alert for alert in office.alerts() if alert.run == "r1"]
    assert office.whys(first)[-2:] == [("pager", "changed"), ("pager", "changed")]


def test_what_was_over_before_a_message_left_was_told_to_nobody(database: Database) -> None:
    office = Office(database, replace(AT_ONCE, group_wait_seconds=30.0))
    office.say("brief", sick())
    office.later(5)
    office.say("brief", well())
    office.say("lasting", sick())
    office.later(60)
    assert office.tell() == ["firing lasting:firing"]
    outcomes = Casebook(database).outcomes("default", 0)
    assert {one.alert.run: one.told for one in outcomes} == {"brief": False, "lasting": True}


def test_an_end_waits_behind_a_beginning_that_is_on_its_way(office: Office) -> None:
    office.say("r1", sick())
    office.herald.round(office.now_ns)
    (trigger,) = office.claim()
    office.say("r1", well())
    assert office.tell() == []
    office.fail(trigger, again=3600.0)
    assert office.tell() == ["resolved r1:resolved"], "the beginning is worthless by now"
    assert office.outbox.counts() == {"sent": 1, "superseded": 1}


def test_a_failed_transaction_marks_nothing(office: Office) -> None:
    def job(conn: Connection) -> None:
        office._say(conn, "r1", [sick()])
        raise RuntimeError("the lease was lost")

    with pytest.raises(RuntimeError, match="lease"):
        office.write(job)
    office.runs.clear()
    assert office.tell() == []


def test_alerts_of_no_run_are_told(office: Office) -> None:
    facts = replace(run_facts(), labels={"project": "default"})

    def job(conn: Connection) -> None:
        changes = advance({}, facts, [sick("DiskFull")], office.now_ns)
        office.ledger.apply("default", conn, None, changes, office.now_ns)

    office.write(job)
    assert office.tell() == ["firing -:firing"]


def test_other_routes_after_a_restart_find_what_fires(office: Office) -> None:
    office.say("r1", sick())
    assert office.tell() == ["firing r1:firing"]
    office.route(replace(AT_ONCE, group_by=("run",)))
    assert office.tell() == ["firing r1:firing"], "a new group of the new route"
    office.route(replace(AT_ONCE, group_by=("run",)))
    assert office.tell() == [], "the same routes again change nothing"
    office.say("r1", well())
    assert office.tell() == ["resolved r1:resolved"] * 2


def test_escalation_goes_over_restarts_and_ends_at_both(database: Database) -> None:
    office = Office(database, replace(AT_ONCE, escalate=Escalation("boss", 300.0)))
    office.say("r1", sick())
    office.say("r2", sick())
    assert office.tell() == ["firing r1:firing", "firing r2:firing"]
    cared = next(alert for alert in office.alerts() if alert.run == "r2")
    office.write(
        lambda c: office.ledger.acknowledge("default", c, cared.id or 0, "ada", office.now_ns)
    )
    office.route(replace(AT_ONCE, escalate=Escalation("boss", 300.0)))
    office.later(299)
    assert office.tell("boss") == []
    office.later(1)
    assert office.tell("boss") == ["firing r1:firing"]
    office.say("r1", well())
    assert office.tell() == ["resolved r1:resolved"]
    assert office.tell("boss") == ["resolved r1:resolved"]
    alert = next(alert for alert in office.alerts() if alert.run == "r1")
    assert sorted(office.whys(alert)) == [
        ("boss", "escalated: nobody acknowledged it within 300 s"),
        ("boss", "resolved"),
        ("pager", "fired"),
        ("pager", "resolved"),
    ]


def test_a_dead_letter_escalates_at_once_and_can_be_sent_again(database: Database) -> None:
    office = Office(database, replace(AT_ONCE, escalate=Escalation("boss", 3600.0)))
    office.say("r1", sick())
    office.herald.round(office.now_ns)
    (trigger,) = office.claim()
    office.fail(trigger, again=None)
    assert office.tell("boss") == ["firing r1:firing"]
    (alert,) = office.alerts()
    assert office.whys(alert)[-1] == (
        "boss",
        "escalated: pager does not take it (HTTP 503)",
    )
    (letter,) = office.letters.list("default", ["dead"], 10)
    assert (letter.receiver, letter.summary, letter.detail) == (
        "pager",
        "NonFiniteGradient of r1",
        "HTTP 503",
    )
    assert office.letters.list("other", ["dead"], 10) == []
    retry = office.letters.retry
    assert retry("other", letter.id, "ada", office.now_ns).result() == "unknown"
    assert retry("default", letter.id, "ada", office.now_ns).result() == "retried"
    assert retry("default", letter.id, "ada", office.now_ns).result() == "not dead"
    assert office.tell() == ["firing r1:firing"]


def test_an_old_dead_letter_is_not_sent_behind_the_end(office: Office) -> None:
    office.say("r1", sick())
    office.herald.round(office.now_ns)
    (trigger,) = office.claim()
    office.fail(trigger, again=None)
    office.say("r1", well())
    assert office.tell() == ["resolved r1:resolved"]
    (letter,) = office.letters.list("default", ["dead"], 10)
    assert office.letters.retry("default", letter.id, "ada", office.now_ns).result() == "replaced"


def test_a_host_that_does_not_answer_escalates_what_waits_for_it(database: Database) -> None:
    office = Office(database, replace(AT_ONCE, escalate=Escalation("boss", 3600.0)))
    office.say("r1", sick())
    office.herald.round(office.now_ns)
    office.write(lambda c: office.outbox.stuck(c, {"pager": "no answer"}, office.now_ns))
    assert office.tell("boss") == ["firing r1:firing"]
    office.say("r1", well())
    assert office.tell("boss") == ["resolved r1:resolved"]


def test_a_storm_is_ten_pages_and_one_that_counts_the_rest(office: Office) -> None:
    names = [f"run-{number:03}" for number in range(120)]
    office.say_of_many(names[:100], sick())
    office.say_of_many(names[100:], sick("LossDivergence"))
    assert len(office.tell()) == 10
    office.later(5)
    office.herald.round(office.now_ns)
    (storm,) = office.claim()
    (alert,) = storm.notification.payload["alerts"]
    assert alert["labels"] == {
        "alertname": "AlertStorm",
        "severity": "page",
        "project": "default",
    }
    assert alert["annotations"]["summary"] == (
        "110 more pages of 110 runs fire: NonFiniteGradient 90, LossDivergence 20"
    )
    assert alert["annotations"]["worst_runs"].count("run-") == 5
    office.record(storm, Receipt(True, "HTTP 200", office.now_ns, 0.1))
    folded = next(alert for alert in office.alerts() if alert.run == "run-119")
    assert office.whys(folded) == [("pager", "storm")]
    office.say_of_many(names[:119], well())
    office.say_of_many(names[:119], well("LossDivergence"))
    told = office.tell()
    assert told == [f"resolved {name}:resolved" for name in names[:10]], "the storm goes on"
    office.say("run-119", well("LossDivergence"))
    assert office.tell() == []
    office.later(1)
    assert office.tell() == ["resolved -:resolved"], "looked at once a second"
    office.later(3600)
    assert office.tell() == []


def test_an_alertmanager_hears_of_each_alert_of_a_large_group(database: Database) -> None:
    wide = replace(AT_ONCE, receiver="behind", group_by=("alertname",))
    office = Office(database, replace(wide, goes_on=True), replace(wide, receiver="pager"))
    office.say_of_many([f"run-{number}" for number in range(60)], sick())
    office.herald.round(office.now_ns)
    (pushed,), (told,) = office.claim("behind"), office.claim("pager")
    assert len(pushed.notification.payload["alerts"]) == 60
    assert len(told.notification.payload["alerts"]) == 50
    assert told.notification.payload["truncatedAlerts"] == 10


def test_behind_a_storm_single_pages_ring_again(office: Office) -> None:
    office.say_of_many([f"run-{number}" for number in range(20)], sick())
    assert len(office.tell()) == 10
    office.later(61)
    assert office.tell() == ["firing -:firing"]
    office.say("another", sick())
    assert office.tell() == ["firing another:firing"]


def test_a_storm_that_nobody_acknowledges_escalates_as_one(database: Database) -> None:
    escalation = Escalation("boss", 300.0)
    office = Office(database, replace(AT_ONCE, storm=Storm(1, 60.0), escalate=escalation))
    office.say_of_many([f"run-{number}" for number in range(30)], sick())
    assert len(office.tell()) == 1
    office.later(5)
    assert office.tell() == ["firing -:firing"]
    office.later(300)
    assert sorted(office.tell("boss")) == ["firing -:firing", "firing run-0:firing"]
    office.say_of_many([f"run-{number}" for number in range(30)], well())
    office.tell()
    office.later(1)
    assert sorted(office.tell("boss")) == ["resolved -:resolved", "resolved run-0:resolved"]


def test_a_route_without_storms_tells_each(database: Database) -> None:
    office = Office(database, replace(AT_ONCE, storm=None))
    office.say_of_many([f"run-{number}" for number in range(25)], sick())
    assert len(office.tell()) == 25


def test_what_is_long_over_is_forgotten(office: Office) -> None:
    def rows() -> int:
        with office.database.read() as conn:
            return len(conn.execute(select(tables.notification_group.c.id)).all())

    office.say("r1", sick())
    office.tell()
    office.say("r2", sick())
    office.tell()
    office.say("r1", well())
    office.tell()
    assert rows() == 2
    office.later(2 * 86_400)
    office.tell()
    assert rows() == 1, "the one that still fires stays"


def test_a_run_that_ends_closes_its_groups(office: Office) -> None:
    office.say("r1", sick(), sick("DeadLayer", "ticket"))
    office.tell()

    def job(conn: Connection) -> None:
        open_ = office.ledger.open_alerts("default", conn, office.runs["r1"])
        changes = resolve_all(open_, "run_finished", office.now_ns)
        office.ledger.apply("default", conn, office.runs["r1"], changes, office.now_ns)

    office.write(job)
    assert sorted(office.tell()) == ["resolved r1:resolved"] * 2


def test_two_processes_tell_each_group_once(database: Database) -> None:
    office = Office(database, replace(AT_ONCE, storm=None))
    other = Office(database, replace(AT_ONCE, storm=None))
    told: list[Any] = []
    for number in range(20):
        office.say(f"run-{number}", sick())
    for one in (office, other, office):
        one.herald.round(office.now_ns)
        told += [_text(queued) for queued in one.claim()]
    assert sorted(told) == sorted(f"firing run-{number}:firing" for number in range(20))


def test_a_change_that_commits_during_a_flush_of_another_process_is_told(postgres_url: str) -> None:
    database = _on_postgres(postgres_url)
    try:
        office = Office(database, AT_ONCE)
        office.say("r1", sick())
        with database.engine.connect() as evaluator, evaluator.begin():
            office._say(evaluator, "r1", [well()])
            told = office.tell()
        told += office.tell()
    finally:
        database.close()
    ends = ["resolved r1:resolved"]
    assert told in (ends, ["firing r1:firing", *ends]), "no incident stays open"


def test_a_group_that_cannot_be_told_keeps_nobody_else_waiting(database: Database) -> None:
    office = Office(database, AT_ONCE)
    office.say_of_many(["r1", "r2", "r3"], sick())
    bad = tables.notification_group.c.group_key.contains('"r1"')
    spoil = update(tables.notification_group).where(bad)
    office.write(lambda conn: conn.execute(spoil.values(labels=[1])))
    assert office.tell() == ["firing r2:firing", "firing r3:firing"]
    assert office.herald.errors > 0
    office.write(lambda conn: conn.execute(spoil.values(labels={"run": "r1"})))
    office.later(60)
    assert office.tell() == ["firing r1:firing"]


def test_receivers_that_wait_for_the_next_start_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = open_database(sqlite_url(tmp_path))
    line = Line(database, Routing(RECEIVERS), {}, "http://gw", lambda: ("default",))
    try:
        line.adopt(Paging(tuple(RECEIVERS), (AT_ONCE,)))
        assert caplog.messages == []
        line.adopt(Paging(tuple(RECEIVERS[:1]), (AT_ONCE,)))
        assert "at the next start" in caplog.text
    finally:
        line.stop()
        database.close()
