"""Alerts, their history and the outbox in real databases: SQLite always, PostgreSQL where it is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, delete, event, select

from gradwarden_server.alerting.herald import Herald
from gradwarden_server.alerting.lifecycle import advance, settle
from gradwarden_server.model import Condition, Notification, Queued, Receipt
from gradwarden_server.notify.routes import Route, Routing
from gradwarden_server.notify.spec import Receiver
from gradwarden_server.store import tables
from gradwarden_server.store.alerts.groups import GroupStore
from gradwarden_server.store.alerts.ledger import AlertLedger, BadCursor
from gradwarden_server.store.alerts.outbox import LEASE_NS, Outbox, enqueue
from gradwarden_server.store.database import Database
from tests.server.pager import (
    PATIENCE,
    SECOND,
    add_run,
    message,
    open_database,
    run_facts,
    sick,
    sqlite_url,
    well,
)

T = TypeVar("T")
PAGER = Receiver("pager", "webhook", "https://pager.example/", ("page", "ticket"))


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        opened = open_database(sqlite_url(tmp_path))
    else:
        url = request.getfixturevalue("postgres_url")
        opened = Database(url)
        opened.migrate()
        opened.write(empty).result(PATIENCE)
        opened.close()
        opened = open_database(url)
    yield opened
    opened.close()


def empty(conn: Connection) -> None:
    for table in reversed(tables.metadata.sorted_tables):
        conn.execute(delete(table))


class Book:
    """A ledger and what the evaluator does with it, in one transaction per moment."""

    def __init__(self, database: Database) -> None:
        self.database = database
        routing = Routing([PAGER], [Route("pager", group_interval_seconds=0.0)])
        self.ledger = AlertLedger(database.engine, routing.lanes)
        self.outbox = Outbox(database.engine)
        self.herald = Herald(
            database, GroupStore(database.engine), routing, "http://gw", lambda: (), lambda: 0
        )

    def write(self, job: Callable[[Connection], T]) -> T:
        return self.database.write(job).result(PATIENCE)

    def moment(
        self,
        row: int,
        run: str,
        conditions: list[Condition],
        now_ns: int,
    ) -> list[Any]:
        def job(conn: Connection) -> list[Any]:
            alerts = self.ledger.open_alerts("default", conn, row)
            changes = advance(alerts, run_facts(run, row), conditions, now_ns)
            touched = self.ledger.apply("default", conn, row, changes, now_ns)
            assert {k: v for k, v in touched.items() if v.state != "resolved"} == {
                k: v
                for k, v in self.ledger.open_alerts("default", conn, row).items()
                if k in touched
            }
            return changes

        return self.write(job)

    def claim(self, now_ns: int, receiver: str = "pager", limit: int = 10) -> list[Queued]:
        return self.write(lambda conn: self.outbox.claim(conn, receiver, now_ns, limit))

    def record(self, queued: Queued, receipt: Receipt) -> None:
        self.write(lambda conn: self.outbox.record(conn, queued, receipt))

    def enqueue(self, notification: Notification, now_ns: int = 0) -> int:
        return self.write(lambda conn: enqueue(notification.project, conn, notification, now_ns))


@pytest.fixture
def book(database: Database) -> Book:
    return Book(database)


def ok(at_ns: int, again_ns: int | None = None) -> Receipt:
    return Receipt(True, "HTTP 200", at_ns, 0.1, again_ns)


def failed(at_ns: int, again_ns: int | None = None) -> Receipt:
    return Receipt(False, "HTTP 500", at_ns, 0.1, again_ns)


def texts(claimed: list[Queued]) -> list[str]:
    return [queued.notification.payload["text"] for queued in claimed]


def test_an_alert_is_one_row_from_pending_to_resolved_with_its_timeline(book: Book) -> None:
    row = book.write(add_run)
    assert book.moment(row, "r1", [sick(step="40")], 10)
    assert book.moment(row, "r1", [sick(rank="3")], 20)
    assert not book.moment(row, "r1", [sick(rank="9")], 25)
    assert book.moment(row, "r1", [well()], 30)
    (alert,) = book.ledger.list("default").items
    assert (alert.run, alert.state, alert.reason) == ("r1", "resolved", "recovered")
    assert (alert.active_ns, alert.fired_ns, alert.resolved_ns) == (10, 10, 30)
    assert alert.annotations == {"step": "40", "rank": "3"}
    assert alert.id is not None
    story = book.ledger.get("default", alert.id)
    assert story is not None
    assert [(x.at_ns, x.from_state, x.to_state, x.reason) for x in story.timeline] == [
        (10, "inactive", "pending", "non_finite"),
        (10, "pending", "firing", "non_finite"),
        (20, "firing", "firing", "enriched"),
        (30, "firing", "resolved", "recovered"),
    ]
    assert story.timeline[1].annotations == {"step": "40"}


def test_a_relapse_is_a_new_row_and_each_has_its_own_deliveries(book: Book) -> None:
    row = book.write(add_run)
    for now_ns, said in ((10, sick()), (20, well()), (30, sick())):
        book.moment(row, "r1", [said], now_ns * SECOND)
        book.herald.round(now_ns * SECOND)
        if now_ns < 30:
            (told,) = book.claim(now_ns * SECOND)
            book.record(told, ok((now_ns + 1) * SECOND))
    again, before = book.ledger.list("default").items
    assert (again.state, before.state) == ("firing", "resolved")
    assert before.id is not None
    assert again.id is not None
    stories = [book.ledger.get("default", before.id), book.ledger.get("default", again.id)]
    assert stories[0] is not None
    assert stories[1] is not None
    told = [[(d.state, d.why, d.ok, d.detail) for d in s.deliveries] for s in stories if s]
    assert told == [
        [("sent", "fired", True, "HTTP 200"), ("sent", "resolved", True, "HTTP 200")],
        [("waiting", "fired", None, None)],
    ]


def test_a_failed_transaction_keeps_neither_alert_nor_message(book: Book) -> None:
    row = book.write(add_run)

    def job(conn: Connection) -> None:
        changes = advance({}, run_facts(row=row), [sick()], 10)
        book.ledger.apply("default", conn, row, changes, 10)
        raise RuntimeError("the lease was lost")

    with pytest.raises(RuntimeError, match="lease"):
        book.write(job)
    assert book.ledger.list("default").items == ()
    assert book.herald.round(20) == 0


def test_another_project_sees_and_touches_nothing(book: Book) -> None:
    row = book.write(add_run)
    book.moment(row, "r1", [sick()], 10)
    (alert,) = book.ledger.list("default").items
    assert alert.id is not None
    assert book.ledger.list("other").items == ()
    assert book.ledger.get("other", alert.id) is None
    assert book.ledger.counts("other", [row]) == {row: {"pending": 0, "firing": 0}}
    assert book.ledger.counts("default", [row]) == {row: {"pending": 0, "firing": 1}}
    assert book.write(lambda conn: book.ledger.open_alerts("other", conn, row)) == {}
    change = advance(settle({}, []), run_facts(row=row), [sick("DeadLayer")], 11)
    for project, changes in (
        ("other", change),
        ("other", [replace(change[0], alert=replace(alert, project="other"))]),
    ):
        with pytest.raises((ValueError, LookupError)):
            book.write(
                lambda c, p=project, x=changes: book.ledger.apply(p, c, row, x, 11)  # type: ignore[misc]
            )
    assert len(book.ledger.list("default").items) == 1


def test_lists_are_filtered_and_paged_newest_first(book: Book) -> None:
    rows = {name: book.write(lambda conn, n=name: add_run(conn, n)) for name in ("r1", "r2")}  # type: ignore[misc]
    for at, (run, name) in enumerate([("r1", "A"), ("r1", "B"), ("r2", "A"), ("r2", "C")]):
        severity: Any = "page" if name == "A" else "ticket"
        book.moment(rows[run], run, [sick(name, severity)], at + 1)
    book.moment(rows["r2"], "r2", [well("C", "ticket")], 9)
    ledger = book.ledger

    def names(**filters: Any) -> list[str]:
        return [f"{a.run}:{a.alertname}" for a in ledger.list("default", **filters).items]

    assert names() == ["r2:C", "r2:A", "r1:B", "r1:A"]
    assert names(states=["firing"]) == ["r2:A", "r1:B", "r1:A"]
    assert names(run_name="r1") == ["r1:B", "r1:A"]
    assert names(severity="ticket") == ["r2:C", "r1:B"]
    pages, cursor = [], None
    while True:
        page = ledger.list("default", limit=3, cursor=cursor)
        pages.append([a.alertname for a in page.items])
        cursor = page.next_cursor
        if cursor is None:
            break
    assert pages == [["C", "A", "B"], ["A"]]
    with pytest.raises(BadCursor):
        ledger.list("default", cursor="' OR 1")


def test_a_resolve_never_overtakes_its_trigger(book: Book) -> None:
    book.enqueue(message(text="trigger"))
    book.enqueue(message(text="resolve"))
    (trigger,) = book.claim(0)
    assert texts([trigger]) == ["trigger"]
    assert book.claim(0) == [], "the trigger is on its way"
    book.record(trigger, failed(SECOND, 5 * SECOND))
    assert not book.outbox.due(0)
    assert book.claim(2 * SECOND) == [], "the trigger waits for its next try"
    (trigger,) = book.claim(5 * SECOND)
    assert trigger.attempts == 2
    book.record(trigger, ok(6 * SECOND))
    (resolve,) = book.claim(6 * SECOND)
    assert texts([resolve]) == ["resolve"]


def test_groups_and_receivers_do_not_wait_for_each_other_and_pages_go_first(book: Book) -> None:
    book.enqueue(message(key="slow", text="slow"))
    assert texts(book.claim(0)) == ["slow"]
    book.enqueue(message(key="a", text="ticket", severity="ticket"))
    book.enqueue(message(key="b", text="page"))
    book.enqueue(message("chat", "slow", text="elsewhere"))
    assert texts(book.claim(0, limit=1)) == ["page"]
    assert texts(book.claim(0)) == ["ticket"]
    assert texts(book.claim(0, receiver="chat")) == ["elsewhere"]


def test_a_lease_that_runs_out_gives_the_message_to_another_try(book: Book) -> None:
    book.enqueue(message(text="page"))
    (lost,) = book.claim(0)
    assert book.claim(LEASE_NS - 1) == []
    (again,) = book.claim(LEASE_NS)
    assert (again.id, again.seq, again.attempts) == (lost.id, lost.seq, 2)
    book.record(again, ok(LEASE_NS + 1))
    book.record(lost, failed(LEASE_NS + 2, LEASE_NS + 3))
    assert book.outbox.counts() == {"sent": 1}, "a late failure must not reopen it"


def test_a_late_receipt_does_not_end_the_lease_of_the_try_after_it(book: Book) -> None:
    book.enqueue(message())
    (lost,) = book.claim(0)
    (_again,) = book.claim(LEASE_NS)
    book.record(lost, failed(LEASE_NS + 1, LEASE_NS + 2))
    assert book.claim(LEASE_NS + 2) == []


def test_a_permanent_failure_is_a_dead_letter_and_frees_its_group(book: Book) -> None:
    book.enqueue(message(text="first"), 7)
    book.enqueue(message(text="second"), 8)
    assert book.outbox.oldest_unsent() == 7
    (first,) = book.claim(10)
    book.record(first, failed(11))
    assert book.outbox.counts() == {"dead": 1, "waiting": 1}
    assert book.outbox.oldest_unsent() == 8
    assert texts(book.claim(12)) == ["second"]


def test_a_standing_message_is_told_again_until_its_group_says_something_new(book: Book) -> None:
    book.enqueue(message(text="firing"))
    (first,) = book.claim(0)
    book.record(first, ok(1, 60 * SECOND))
    assert book.outbox.oldest_unsent() is None
    assert book.claim(59 * SECOND) == []
    (repeat,) = book.claim(60 * SECOND)
    book.record(repeat, failed(61 * SECOND))
    assert book.outbox.counts() == {"standing": 1}, "a repeat is never given up"
    (repeat,) = book.claim(121 * SECOND)
    book.enqueue(message(text="resolved", status="resolved"), 122 * SECOND)
    assert book.claim(122 * SECOND) == [], "the repeat is on its way; its successor waits"
    book.record(repeat, ok(123 * SECOND, 183 * SECOND))
    (resolve,) = book.claim(123 * SECOND)
    assert texts([resolve]) == ["resolved"]
    book.record(resolve, ok(124 * SECOND))
    assert book.claim(999 * SECOND) == []
    assert book.outbox.counts() == {"sent": 2}


def test_a_dead_endpoint_gathers_one_watchdog_beat_not_a_backlog(book: Book) -> None:
    def beat(text: str, now_ns: int) -> None:
        book.write(lambda conn: book.outbox.beat("default", conn, message(text=text), now_ns))

    beat("1", 0)
    (first,) = book.claim(0)
    beat("2", 1)
    beat("3", 2)
    book.record(first, failed(3, 4))
    beat("4", 5)
    assert book.outbox.counts() == {"waiting": 1}
    (last,) = book.claim(6)
    assert (texts([last]), last.seq) == (["4"], 4)
    book.record(last, ok(7))
    beat("5", 8)
    assert book.outbox.counts() == {"waiting": 1}


def test_messages_for_a_receiver_taken_from_the_file_are_buried(book: Book) -> None:
    book.enqueue(message("gone"))
    book.enqueue(message("pager"))
    assert book.write(lambda conn: book.outbox.bury(conn, ["pager"], 5)) == 1
    assert book.outbox.counts() == {"dead": 1, "waiting": 1}
    assert book.write(lambda conn: book.outbox.bury(conn, ["pager"], 6)) == 0


def test_two_workers_on_postgresql_never_share_a_message(postgres_url: str) -> None:
    database = Database(postgres_url)
    database.migrate()
    database.write(empty).result(PATIENCE)
    database.close()
    database = open_database(postgres_url)
    try:
        book = Book(database)
        for number in range(4):
            book.enqueue(message(key="one group", text=str(number)))
        for number in range(20):
            book.enqueue(message(key=f"group {number}", text=f"g{number}"))
        together = threading.Barrier(2)
        taken: list[list[Queued]] = [[], []]

        def work(mine: list[Queued]) -> None:
            with database.engine.connect() as conn, conn.begin():
                together.wait(PATIENCE)
                mine.extend(book.outbox.claim(conn, "pager", 0, 12))
                together.wait(PATIENCE)

        threads = [threading.Thread(target=work, args=(mine,)) for mine in taken]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        claimed = [queued.id for mine in taken for queued in mine]
        assert len(claimed) == len(set(claimed))
        everything = texts([queued for mine in taken for queued in mine])
        assert set(everything) & {"1", "2", "3"} == set(), "a later one of a group was given out"
    finally:
        database.close()


def test_two_transactions_on_postgresql_take_different_ordinals(postgres_url: str) -> None:
    database = Database(postgres_url)
    database.migrate()
    database.write(empty).result(PATIENCE)
    database.close()
    database = open_database(postgres_url)
    try:
        begun = threading.Event()

        def second() -> None:
            with database.engine.connect() as conn, conn.begin():
                event.listen(conn, "before_cursor_execute", lambda *_: begun.set())
                enqueue("default", conn, message(text="second"), 0)

        thread = threading.Thread(target=second)
        with database.engine.connect() as conn, conn.begin():
            enqueue("default", conn, message(text="first"), 0)
            thread.start()
            assert begun.wait(PATIENCE)
        thread.join(PATIENCE)
        with database.read() as conn:
            rows = conn.execute(select(tables.outbox.c.seq).order_by(tables.outbox.c.seq)).all()
        assert [row.seq for row in rows] == [1, 2]
    finally:
        database.close()
