"""Every shipped objective burned by real frames, minute by minute, by a clock in the test's hand.

Frames go through the store, the evaluator and the rules as in the service. Who must be told when is
computed beside them by ``burn_forecast``, and every evaluation must tell just that.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from gradwarden import wire
from gradwarden_server import assets
from gradwarden_server.alerting.clerk import Clerk
from gradwarden_server.alerting.groupwatch import GroupWatch, RuleRooms
from gradwarden_server.alerting.shadow import OPEN
from gradwarden_server.model import Alert
from gradwarden_server.promql.notation import span
from gradwarden_server.promql.parse import parse
from gradwarden_server.querying.budgets import Budgets
from gradwarden_server.querying.objectives import groups_of
from gradwarden_server.querying.storage import ProjectStorage, Sources
from gradwarden_server.slo import openslo
from gradwarden_server.slo.compile import ALERT
from gradwarden_server.store.judging.rulings import Rulings
from gradwarden_server.store.log.recorded import Derived
from gradwarden_server.store.outcomes import Outcomes
from gradwarden_server.store.reading.sampled import Samples
from gradwarden_server.store.records import Heartbeat
from tests.server.burn_forecast import Forecast
from tests.server.test_evaluator import Bench
from tests.server.test_store import PROJECT, batch

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
OBJECTIVES = {one.id: one for one in openslo.load(assets.ALERT_RULES / "slo", parse)}
WELL = [1.0, 0.5, 0.0, 0.0, 0.0, 0.0]
BAD = [float("nan"), float("nan"), 3.0, 0.0, 0.0, 0.0]


class Burning(Bench):
    """A bench whose minutes pass one by one, with the rules of one objective."""

    def __init__(self, folder: Path, name: str, url: str = "") -> None:
        super().__init__(folder, url)
        self.objective = OBJECTIVES[name]
        database = self.store.database
        self.sources = Sources(Samples(database, self.store.log, self.store.runs), self.ledger)
        rooms = RuleRooms(
            database=database,
            runs=self.store.runs,
            sources=self.sources,
            rulings=Rulings(database),
            ledger=self.ledger,
            recorded=self.store.recorded,
            external_url="http://gw.example",
            inhibitions=(),
            shadow=lambda project, now_ns: OPEN,
            silences=lambda project, now_ns: (),
        )
        self.groups = []
        for group in groups_of([self.objective], "http://gw.example"):
            lease = self.store.evaluation.acquire(PROJECT, group.key, "rules", 3600 * SECOND)
            assert lease is not None
            every = max(1, span(group.interval) // 60_000)
            self.groups.append((every, GroupWatch(rooms, PROJECT, group, lease)))
        self.outcomes = Outcomes(database, self.store.recorded)
        self.clerk = Clerk(
            self.store.runs, self.outcomes, self.store.evaluation, "clerk", lambda: self.now
        )
        self.minutes = 0
        self._seqs: dict[str, int] = {}

    def trained(self, forecast: Forecast, events: int) -> None:
        """A day of good events lies behind, as it was recorded, and behind the forecast too."""
        every_s, day_s = 300, 86_400
        labels = {
            "sloth_id": self.objective.id,
            "sloth_service": self.objective.service,
            "sloth_slo": self.objective.name,
            "project": PROJECT,
            "environment": "prod",
        }
        times = range(self.now // SECOND - day_s, self.now // SECOND, every_s)
        # A minute apart they would count for one minute each, of five.
        held = 5 * events / len(times)
        told = [
            Derived(
                None,
                f"slo:sli_{kind}:increase5m",
                labels,
                [(at_s * SECOND, value) for at_s in times],
                ruled=True,
            )
            for kind, value in (("total", held), ("bad", 0.0))
        ]
        self.store.database.write(
            lambda connection: self.store.recorded.append_all(PROJECT, connection, told)
        ).result()
        for at_s in times:
            forecast.recorded(at_s, 0.0, held)

    def start(self, run: str, ago_minutes: float = 0) -> None:
        self.store.start(run, at=self.now - round(ago_minutes * MINUTE), environment="prod")

    def frames(self, run: str, bad: Sequence[bool], late_s: float = 0) -> None:
        """One batch of steps that are spread over the last minute."""
        made = []
        for at, sick in enumerate(bad):
            step = self._seqs.get(run, 0)
            self._seqs[run] = step + 1
            values = struct.pack("<18f", *WELL, *(BAD if sick else WELL), *WELL)
            time_ns = self.now - round(late_s * SECOND) - (len(bad) - at) * SECOND // 2
            made.append(
                wire.Frame(
                    step + 1, step, time_ns, {"loss": 1.0}, (), "unclipped", True, False, values
                )
            )
        self._send(run, made)

    def finish(self, run: str, status: str) -> None:
        step = self._seqs.get(run, 0)
        self._seqs[run] = step + 1
        event = {"kind": "finish", "status": status}
        self._send(run, [wire.Frame(step + 1, step, self.now, {}, (event,), "", None, False, b"")])

    def beat(self, run: str) -> None:
        beat = Heartbeat(run, "a1", 0, "n-a1-0", 1, "train", self.now)
        self.store.runs.heartbeat(PROJECT, beat, self.now).result()

    def minute(self) -> None:
        """Judge what came, keep the books, and evaluate every rule."""
        self.evaluator.round(self.now)
        self.clerk.round(self.now)
        for every, group in self.groups:
            if self.minutes % every == 0:
                outcome = group.evaluate(self.now // 1_000_000, self.now)
                assert outcome.errors == {}
        self.minutes += 1
        self.now += MINUTE

    def burning(self) -> list[Alert]:
        page = self.ledger.list(PROJECT, ("firing",), limit=1000)
        return [alert for alert in page.items if alert.alertname == ALERT]

    def left(self) -> float | None:
        storage = ProjectStorage(self.sources, PROJECT, self.now)
        return Budgets(storage, self.now // SECOND).shares(self.objective)[0].budget.left

    def _send(self, run: str, frames: list[wire.Frame]) -> None:
        sent = batch(*frames)
        self.store.send(replace(sent, stream=replace(sent.stream, run=run)), at=self.now)


@pytest.fixture
def burn(tmp_path: Path, store_url: str) -> Iterator[Callable[[str], Burning]]:
    """Makes the bench of an objective."""
    made: list[Burning] = []

    def make(name: str) -> Burning:
        made.append(Burning(tmp_path, name, store_url))
        return made[-1]

    yield make
    for one in made:
        one.store.database.close()


on_both = pytest.mark.parametrize(
    "store_url",
    ["sqlite", pytest.param("postgresql", marks=pytest.mark.full)],
    indirect=True,
)
"""Every objective on SQLite in the core tier; on PostgreSQL too in the full one."""


@on_both
def test_bad_steps_are_told_in_the_computed_evaluations(burn: Callable[[str], Burning]) -> None:
    """A fleet that trained for a day; then one step in ten is bad."""
    burning = burn("finite-steps")
    forecast = Forecast(allowed=0.001, min_events=1000, least=100_000)
    burning.trained(forecast, 120_000)
    burning.start("r")
    judged = [0, 0]

    def minute(bad: int) -> set[str]:
        burning.frames("r", [n < bad for n in range(190)])
        judged[:] = judged[0] + bad, judged[1] + 190
        forecast.count("bad", "r", burning.now / SECOND, judged[0])
        forecast.count("total", "r", burning.now / SECOND, judged[1])
        due = forecast.minute(burning.now / SECOND)
        burning.minute()
        return due

    for _ in range(3):
        assert minute(bad=0) == set()
        assert burning.burning() == []
    described = []
    for burnt in range(1, 30):
        due = minute(bad=19)
        described += [a.annotations["description"] for a in burning.burning()]
        assert {alert.severity for alert in burning.burning()} == due, burnt
        if due == {"page", "ticket"}:
            break
    else:
        raise AssertionError("nothing was due within half an hour")
    assert burnt > 5, "the ticket's windows are full of good steps, so it comes behind the page"
    [page] = [alert for alert in burning.burning() if alert.severity == "page"]
    assert page.labels["slo"] == "finite-steps"
    assert page.labels["environment"] == "prod"
    assert page.annotations["runbook_url"] == "http://gw.example/runbooks/SloBudgetBurn"
    assert len(set(described)) > 5, "an alert that lasts is described anew, in the ledger too"
    stories = [burning.ledger.get(PROJECT, alert.id or 0) for alert in burning.burning()]
    assert all(story is not None and len(story.timeline) == 2 for story in stories)
    assert burning.left() == pytest.approx(1 - forecast.month(burning.now / SECOND) / 0.001)


@on_both
def test_one_sick_run_on_a_new_install_burns_no_budget(burn: Callable[[str], Burning]) -> None:
    """Its own page speaks of it; a budget of next to nothing is not worth a ticket."""
    burning = burn("finite-steps")
    burning.start("r")
    for minute in range(7):
        burning.frames("r", [minute >= 4] * 190)
        burning.minute()
    left = burning.left()
    assert left is not None
    assert left < 0
    assert burning.burning() == []
    pages = burning.ledger.list(PROJECT, ("firing",), limit=1000).items
    assert [a.alertname for a in pages if a.severity == "page"] == ["NonFiniteGradient"]


@on_both
def test_silent_runs_are_told_in_the_computed_evaluations(burn: Callable[[str], Burning]) -> None:
    """Thirty-two runs, half of which fall silent."""
    burning = burn("telemetry-freshness")
    forecast = Forecast(allowed=0.005, min_events=200, least=4000)
    burning.trained(forecast, 4800)
    runs = [f"r{n}" for n in range(32)]
    for run in runs:
        burning.start(run)
    lived = dict.fromkeys(runs, 0)
    silent = dict.fromkeys(runs, 0)
    told = []
    for minute in range(14):
        for at, run in enumerate(runs):
            quiet = max(0, minute - 4) if at < 16 else 0
            if not quiet:
                burning.beat(run)
            if minute:  # time is counted from the first look at a run
                # Silent is what was not heard for more than a minute, up to ten minutes.
                lived[run] += quiet <= 10
                silent[run] += 1 < quiet <= 10
                forecast.count("total", run, burning.now / SECOND, lived[run])
                forecast.count("bad", run, burning.now / SECOND, silent[run])
        due = forecast.minute(burning.now / SECOND)
        burning.minute()
        assert {alert.severity for alert in burning.burning()} == due, minute
        told.append(due)
    assert told[5] == set()
    assert {"page", "ticket"} in told


@on_both
def test_late_detections_are_told_in_the_computed_evaluation(
    burn: Callable[[str], Burning],
) -> None:
    """NaN in four runs a minute, found half a minute late, once there are twenty detections."""
    burning = burn("detection-delay")
    forecast = Forecast(allowed=0.05, min_events=20)
    told = []
    for minute in range(6):
        late = minute > 0
        for number in range(4 if late else 5):
            run = f"r{minute}-{number}"
            burning.start(run)
            burning.frames(run, [False, True], late_s=30 * late)
            forecast.count("total", run, burning.now / SECOND, 1)
            forecast.count("good", run, burning.now / SECOND, 0 if late else 1)
        due = forecast.minute(burning.now / SECOND)
        burning.minute()
        assert {alert.severity for alert in burning.burning()} == due, minute
        told.append(due)
    assert told[3] == set()
    assert "page" in told[-1]


def test_a_second_failed_run_is_a_ticket_when_its_grace_is_over(
    burn: Callable[[str], Burning],
) -> None:
    """Ten minutes after its end nobody can resume it unnoticed; and never a page."""
    burning = burn("training-success")
    for name, status in (("a", "finished"), ("b", "failed")):
        burning.start(name, ago_minutes=30)
        burning.frames(name, [False] * 3)
        burning.finish(name, status)
    for _ in range(12):
        burning.minute()
    assert burning.burning() == []
    assert burning.left() == 0
    burning.start("c", ago_minutes=30)
    burning.frames("c", [False] * 3)
    burning.finish("c", "failed")
    for _ in range(10):
        burning.minute()
        assert burning.burning() == []
    burning.minute()
    [ticket] = burning.burning()
    assert (ticket.severity, ticket.labels["burn"]) == ("ticket", "count")
    assert burning.left() == -1
    burning.outcomes.mark(PROJECT, "c", True, "a test", burning.now, "mei").result()
    burning.minute()
    assert burning.burning() == []
