"""Who takes care of an alert is told to those who show it, once, and to nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import Connection, insert, select, update

from gradwarden_server.model import Alert, Change, Lane, Notification, Receipt
from gradwarden_server.notify.payload import body, group_key
from gradwarden_server.store import tables as t
from gradwarden_server.store.alerts.care import Care
from gradwarden_server.store.alerts.ledger import AlertLedger
from gradwarden_server.store.alerts.marking import group_row
from gradwarden_server.store.alerts.outbox import Outbox, enqueue
from gradwarden_server.store.alerts.storms import Storms
from gradwarden_server.store.database import Database
from tests.server.pager import PATIENCE, SECOND, add_run, firing, open_database

NOW = 100 * SECOND


class Room:
    """One run with two alerts, on a real database."""

    def __init__(self, url: str) -> None:
        self.database: Database = open_database(url)
        self.ledger = AlertLedger(self.database.engine)
        self.outbox = Outbox(self.database.engine)
        self.care = Care(self.database, self.ledger, ["shows", "shows too"])

        def seed(conn: Connection) -> list[Alert]:
            row = add_run(conn)
            alerts = [firing(), firing(name="NonFiniteLoss", severity="ticket")]
            changes = [Change(one, "pending", SECOND, "condition") for one in alerts]
            touched = self.ledger.apply("default", conn, row, changes, NOW)
            return [touched[one.fingerprint] for one in alerts]

        self.page, self.ticket = self.database.write(seed).result(PATIENCE)

    def tell(self, receiver: str, *alerts: Alert, status: str = "firing") -> None:
        group = {"run": "r1", "alertname": alerts[0].alertname}
        payload = {**body(receiver, group, alerts, ""), "status": status}
        told = Notification("default", receiver, group_key(group), "page", payload)

        def job(conn: Connection) -> None:
            row = enqueue("default", conn, told, NOW)
            about = [{"outbox_id": row, "alert_id": one.id, "why": "fired"} for one in alerts]
            conn.execute(insert(t.telling), about)

        self.database.write(job).result(PATIENCE)

    def deliver(self) -> None:
        def job(conn: Connection) -> None:
            for receiver in ("shows", "shows too", "plain"):
                for queued in self.outbox.claim(conn, receiver, NOW, 10):
                    self.outbox.record(conn, queued, Receipt(True, "taken", NOW, 0.0))

        self.database.write(job).result(PATIENCE)

    def acknowledge(self, *alerts: Alert, project: str = "default") -> int:
        numbers = [one.id or 0 for one in alerts]
        return self.care.acknowledge(project, numbers, "ada", NOW).result(PATIENCE)

    def waiting(self) -> list[str]:
        query = select(t.outbox.c.receiver).where(t.outbox.c.state == "waiting")
        with self.database.read() as conn:
            return sorted(conn.execute(query).scalars())


@pytest.fixture
def room(store_url: str) -> Iterator[Room]:
    made = Room(store_url)
    yield made
    made.database.close()


def test_those_who_show_it_are_told_once(room: Room) -> None:
    for receiver in ("shows", "plain"):
        room.tell(receiver, room.page)
    room.tell("shows too", room.ticket)
    room.deliver()
    assert room.acknowledge(room.page) == 1
    assert room.waiting() == ["shows"]
    assert room.care.ackers("default", [room.page.fingerprint, room.ticket.fingerprint]) == {
        room.page.fingerprint: "ada"
    }
    assert room.acknowledge(room.page) == 1, "the first one counts, and it is still open"
    assert room.waiting() == ["shows"]


def test_a_message_that_has_not_left_says_it_by_itself(room: Room) -> None:
    room.tell("shows", room.page)
    room.acknowledge(room.page)
    assert room.waiting() == ["shows"]


def test_a_group_that_is_over_is_told_nothing_more(room: Room) -> None:
    room.tell("shows", room.page)
    room.tell("shows", room.page, status="resolved")
    room.deliver()
    room.deliver()
    room.acknowledge(room.page)
    assert room.waiting() == []


def test_another_project_takes_care_of_nothing_here(room: Room) -> None:
    room.tell("shows", room.page)
    room.deliver()
    assert room.acknowledge(room.page, project="other") == 0
    assert room.care.ackers("other", [room.page.fingerprint]) == {}
    assert room.care.matching("other", {"run": "r1"}) == []
    assert room.waiting() == []


def test_what_labels_name_is_found(room: Room) -> None:
    def found(**labels: str) -> set[str]:
        return {one.alertname for one in room.care.matching("default", labels)}

    assert found(run="r1") == {"NonFiniteGradient", "NonFiniteLoss"}
    assert found(run="r1", severity="ticket") == {"NonFiniteLoss"}
    assert found(run="r") == set()


def test_an_old_alert_is_found_behind_many_new_ones(room: Room) -> None:
    def flood(conn: Connection) -> None:
        made = [firing(f"b{number}", "DeadLayer", "ticket") for number in range(501)]
        new = [replace(one, run=None, active_ns=NOW) for one in made]
        changes = [Change(one, "pending", NOW, "condition") for one in new]
        room.ledger.apply("default", conn, None, changes, NOW)

    room.database.write(flood).result(PATIENCE)
    found = room.care.matching("default", {"run": "r1"})
    assert {one.id for one in found} == {room.page.id, room.ticket.id}


def test_a_storm_is_the_alerts_that_it_speaks_for(room: Room) -> None:
    def fold(conn: Connection) -> None:
        lane = Lane("shows", "", "g", {}, 0)
        storm = Storms().row("default", conn, replace(lane, key="storm"), NOW)
        folded = group_row("default", conn, lane, "page", NOW)
        loose = group_row("default", conn, replace(lane, key="loose"), "page", NOW)
        groups = t.notification_group
        conn.execute(update(groups).where(groups.c.id == folded).values(folded_into=storm))
        for row, one in ((folded, room.page), (loose, room.ticket)):
            values = {"group_id": row, "alert_id": one.id, "told": False}
            conn.execute(insert(t.group_member).values(values))

    assert room.care.stormed("default") == []
    room.database.write(fold).result(PATIENCE)
    assert [one.alertname for one in room.care.stormed("default")] == [room.page.alertname]
    assert room.care.stormed("other") == []
