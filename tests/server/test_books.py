"""Who keeps the books and the rules is stopped by nothing that is not its own."""

from __future__ import annotations

from dataclasses import dataclass

from gradwarden_server.alerting.clerk import Clerk
from gradwarden_server.alerting.groupwatch import RuleRooms
from gradwarden_server.alerting.ruler import Ruler
from gradwarden_server.alerting.shadow import OPEN
from gradwarden_server.querying.storage import Sources
from gradwarden_server.rules.spec import RuleSet
from gradwarden_server.store.errors import Fenced, Unavailable
from gradwarden_server.store.evaluation import EvaluationStore
from gradwarden_server.store.ledger import AlertLedger
from gradwarden_server.store.outcomes import Candidate, Outcomes, Settled
from gradwarden_server.store.rulings import Kept, Rulings
from gradwarden_server.store.sampled import Samples
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

    def candidates(self, project: str, silent_since_ns: int) -> list[Candidate]:
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
