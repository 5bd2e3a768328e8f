"""More runs and alerts than one page holds: none of them is overlooked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select

from gradwarden_server.alerting.clerk import Clerk
from gradwarden_server.slo.compile import ALERT
from gradwarden_server.slo.outcome import RESUME_NS
from gradwarden_server.store import tables as t
from gradwarden_server.store.alerts.casebook import Casebook
from gradwarden_server.store.alerts.ledger import NOTED
from gradwarden_server.store.outcomes import AT_ONCE, Outcomes
from tests.server.test_store import NOW, PROJECT, Store

SECOND = 1_000_000_000
HOUR = 3600 * SECOND


@pytest.fixture
def store(tmp_path: Path, store_url: str) -> Iterator[Store]:
    made = Store(store_url)
    made.start()
    yield made
    made.database.close()


def write(store: Store, table: Any, rows: list[dict[str, Any]]) -> None:
    store.database.write(lambda connection: connection.execute(insert(table), rows)).result()


def runs(store: Store, names: list[str], status: str, ended_ns: int) -> None:
    """Runs that ended after an hour of training."""
    with store.database.read() as connection:
        known = dict(connection.execute(select(t.run)).mappings().first() or {})
    del known["id"]
    same = {"status": status, "started_ns": ended_ns - HOUR, "last_seen_ns": ended_ns}
    rows = [{**known, **same, "run": name, "ended_ns": ended_ns} for name in names]
    write(store, t.run, rows)


def clerk(store: Store) -> tuple[Clerk, Outcomes]:
    outcomes = Outcomes(store.database, store.recorded)
    return Clerk(store.runs, outcomes, store.evaluation, "clerk", lambda: NOW), outcomes


def test_runs_that_wait_do_not_hide_one_that_ended(store: Store) -> None:
    """More than a page of preempted runs may still be resumed; the one behind them failed."""
    runs(store, [f"waiting{n}" for n in range(AT_ONCE + 1)], "preempted", NOW - HOUR)
    runs(store, ["last"], "failed", NOW - HOUR)
    books, outcomes = clerk(store)
    books.round(NOW)
    told = outcomes.of(PROJECT, "last")
    assert told is not None
    assert told.good is False
    assert outcomes.of(PROJECT, "waiting0") is None
    books.round(NOW + RESUME_NS)
    assert outcomes.of(PROJECT, f"waiting{AT_ONCE}") is not None


def test_an_end_that_is_told_days_late_is_settled_by_a_look_at_everything(store: Store) -> None:
    books, outcomes = clerk(store)
    runs(store, ["old"], "failed", NOW - 72 * HOUR)
    books.round(NOW)
    assert outcomes.of(PROJECT, "old") is not None, "the first look is at everything"
    runs(store, ["older"], "failed", NOW - 73 * HOUR)
    books.round(NOW + 5 * SECOND)
    assert outcomes.of(PROJECT, "older") is None
    books.round(NOW + 600 * SECOND)
    assert outcomes.of(PROJECT, "older") is not None


def alert(number: int, **more: Any) -> dict[str, Any]:
    severity = more.get("severity", "ticket")
    made = {
        "project": PROJECT,
        "fingerprint": f"{number:016x}",
        "alertname": "Other",
        "severity": severity,
        "state": "firing",
        "labels": {"alertname": "Other", "severity": severity},
        "annotations": {},
        "active_ns": NOW + number,
        "fired_ns": NOW + number,
        "reason": "",
        "acked_ns": None,
    }
    return made | more


def test_burns_are_found_behind_any_number_of_other_alerts(store: Store) -> None:
    burn = {"alertname": ALERT, "labels": {"alertname": ALERT, "slo": "finite-steps"}}
    write(store, t.alert, [alert(0, **burn), alert(1, **burn, state="resolved")])
    write(store, t.alert, [alert(n) for n in range(2, 603)])
    write(store, t.alert, [alert(n, **burn) for n in range(603, 1104)])
    found = Casebook(store.database).firing(PROJECT, ALERT)
    assert len(found) == 502
    assert (found[0].active_ns, found[-1].active_ns) == (NOW + 1103, NOW)
    assert Casebook(store.database).firing("another", ALERT) == []


def test_what_people_did_is_counted_as_it_is_listed(store: Store) -> None:
    """Of a note, of what nobody was told, and of what fired before, nothing is counted."""
    rows = [
        alert(0, acked_ns=NOW),
        alert(1),
        alert(2, severity="page"),
        alert(3, severity="note", acked_ns=NOW),
        alert(4, acked_ns=NOW),
        alert(5, active_ns=NOW + 5, fired_ns=NOW - HOUR),
    ]
    write(store, t.alert, rows)
    with store.database.read() as connection:
        ids = connection.execute(select(t.alert.c.id).order_by(t.alert.c.active_ns)).scalars().all()

    pages = ids[2]

    def job(connection: Any) -> None:
        for number, row in enumerate(ids):
            sent = insert(t.outbox).values(
                project=PROJECT,
                receiver="pager",
                group_key="g",
                seq=number,
                severity="ticket",
                payload={},
                created_ns=NOW,
                not_before_ns=NOW,
                attempts=1,
                lease_until_ns=0,
                state="dead" if number == 4 else "sent",
            )
            outbox = connection.execute(sent.returning(t.outbox.c.id)).scalar_one()
            told = insert(t.telling).values(alert_id=row, outbox_id=outbox, why="fired")
            connection.execute(told)
        line = {"at_ns": NOW, "from_state": "firing", "to_state": "firing", "annotations": {}}
        for _ in range(2):
            noted = insert(t.alert_transition).values(alert_id=pages, reason=NOTED, **line)
            connection.execute(noted)

    store.database.write(job).result()
    casebook = Casebook(store.database)
    listed = [
        one
        for one in casebook.outcomes(PROJECT, NOW)
        if one.told and one.alert.severity in ("page", "ticket")
    ]
    assert casebook.acted(PROJECT, NOW) == (2, 3)
    assert len(listed) == 3
