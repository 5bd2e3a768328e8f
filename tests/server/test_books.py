"""Who keeps the books and the rules is stopped by nothing that is not its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from gradwarden_server.alerting.clerk import Clerk
from gradwarden_server.alerting.groupwatch import RuleRooms
from gradwarden_server.alerting.ruler import Ruler
from gradwarden_server.alerting.shadow import OPEN
from gradwarden_server.querying.storage import Sources
from gradwarden_server.rules.spec import RuleSet
from gradwarden_server.store.alerts.casebook import Casebook
from gradwarden_server.store.alerts.ledger import AlertLedger
from gradwarden_server.store.costs import Costs
from gradwarden_server.store.errors import Fenced, Unavailable
from gradwarden_server.store.judging.evaluation import EvaluationStore
from gradwarden_server.store.judging.rulings import Kept, Rulings
from gradwarden_server.store.outcomes import Candidate, Outcomes, Settled
from gradwarden_server.store.reading.sampled import Samples
from tests.server.test_store import NOW, PROJECT, Store, store

__all__ = ["store"]
HOUR = 3600 * 1_000_000_000


def test_a_person_who_speaks_while_outcomes_are_judged_is_not_overruled(store: Store) -> None:
    store.start()
    outcomes = Outcomes(store.database, store.recorded)
    later = NOW + 2 * HOUR
    [candidate] = outcomes.candidates(PROJECT, later - HOUR)
    assert outcomes.mark(PROJECT, "r", True, "it was done", later, "mei").result()
    lost = Settled(False, "no sign of life for an hour", NOW, at_ns=later)
    outcomes.settle(PROJECT, [(candidate, lost)], "gradwarden").result()
    told = outcomes.of(PROJECT, "r")
    assert told is not None
    assert (told.good, told.marked, told.actor) == (True, True, "mei")
    [good] = store.recorded.newest(PROJECT, candidate.row, ["gradwarden_run_good"], 1)
    assert good.points == [(later, 1.0)]


@dataclass
class Two:
    """Two projects, of which the first cannot be read."""

    seen: list[str]

    def projects(self) -> list[str]:
        return ["ill", "well"]

    def candidates(self, project: str, *where: int) -> list[Candidate]:
        if project == "ill":
            raise Unavailable("the table of runs is damaged")
        self.seen.append(project)
        return []


def test_what_is_wrong_in_one_project_keeps_no_books_of_others_waiting(store: Store) -> None:
    two = Two([])
    leases = EvaluationStore(store.database)
    clerk = Clerk(two, two, leases, "h", lambda: NOW)  # type: ignore[arg-type]
    clerk.round(NOW)
    assert two.seen == ["well"]


class Held(Rulings):
    """One group is never to be had."""

    def resume(self, project: str, name: str, epoch: int) -> Kept:
        if name == "a.yml;gone":
            raise Fenced("another process keeps it")
        return super().resume(project, name, epoch)


def test_a_group_that_cannot_be_ended_keeps_no_others_waiting(store: Store) -> None:
    store.start()
    rulings = Held(store.database)
    for name in ("a.yml;gone", "b.yml;gone"):
        Rulings(store.database).resume(PROJECT, name, 1)
    ledger = AlertLedger(store.database)
    rooms = RuleRooms(
        database=store.database,
        runs=store.runs,
        sources=Sources(Samples(store.database, store.log, store.runs), ledger),
        rulings=rulings,
        ledger=ledger,
        recorded=store.recorded,
        external_url="",
        inhibitions=(),
        shadow=lambda project, now_ns: OPEN,
        silences=lambda project, now_ns: (),
    )
    ruler = Ruler(rooms, store.evaluation, (), "h", lambda: NOW)
    ruler.adopt(RuleSet((), {}))
    assert ruler.round(NOW) > 0
    assert rulings.names(PROJECT) == {"a.yml;gone"}
    ruler.stop()


def test_what_fired_in_a_period_is_found_without_all_that_ever_fired(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'db'}")
    asked: list[tuple[str, Any]] = []

    def hear(_: Any, __: Any, statement: str, values: Any, *___: Any) -> None:
        if "fired_ns >=" in statement or "fired_ns BETWEEN" in statement:
            asked.append((statement, values))

    event.listen(Engine, "before_cursor_execute", hear)
    try:
        Casebook(store.database).outcomes(PROJECT, NOW)
        Costs(store.database).fired(PROJECT, NOW - HOUR, NOW)
    finally:
        event.remove(Engine, "before_cursor_execute", hear)
    assert len(asked) == 2
    with store.database.read() as connection:
        for statement, values in asked:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
            assert "ix_alert_project_fired_ns" in " ".join(row[3] for row in plan), plan
    store.database.close()
