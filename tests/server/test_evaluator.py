"""The evaluator over a real store: the same alerts live, after restarts, and from the log."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradwarden import wire
from gradwarden_server import assets
from gradwarden_server.alerting.commit import Registrar
from gradwarden_server.alerting.evaluator import Evaluator
from gradwarden_server.alerting.herald import Herald
from gradwarden_server.alerting.judging import BACKFILL_NS
from gradwarden_server.alerting.watch import Rooms, RunWatch
from gradwarden_server.detect import registry
from gradwarden_server.notify.routes import Routing
from gradwarden_server.notify.spec import parse
from gradwarden_server.rules.spec import load
from gradwarden_server.store.alerts.groups import GroupStore
from gradwarden_server.store.alerts.ledger import AlertLedger
from gradwarden_server.store.alerts.outbox import Outbox
from gradwarden_server.store.commands import CommandStore
from gradwarden_server.store.judging.watched import WatchedRuns
from tests.server.test_store import LAYOUT, NOW, PROJECT, Store, batch

SECOND = 1_000_000_000
STEPS = 60
SICK = 30

RECEIVERS = parse(
    {
        "receivers": [
            {"name": "pager", "type": "webhook", "url": "https://pager.example/hook"},
            {
                "name": "dead-man",
                "type": "webhook",
                "url": "https://dead-man.example/beat",
                "watchdog_seconds": 30,
            },
        ]
    },
    "receivers.yaml",
    {},
)


class Bench:
    """A store, and evaluators that come and go over it."""

    def __init__(self, folder: Path, url: str = "") -> None:
        self.store = Store(url or f"sqlite:///{folder}/gw.sqlite")
        self.now = NOW
        self.started_ns = NOW
        self.outbox = Outbox(self.store.database.engine)
        self.routing = Routing(RECEIVERS)
        self.ledger = AlertLedger(self.store.database.engine, self.routing.lanes)
        self.herald = Herald(
            self.store.database,
            GroupStore(self.store.database.engine),
            self.routing,
            "http://gw.example",
            self.store.runs.projects,
            lambda: self.now,
        )
        self.commands = CommandStore(self.store.database)
        self.rules = load(assets.ALERT_RULES, registry.schemas(), registry.BASELINE_SCHEMA)
        self.processes = 0
        self.evaluator = self.process()
        self.store.runs.put_layout(PROJECT, LAYOUT).result()
        self.store.start()

    def process(self) -> Evaluator:
        """An evaluator that knows nothing but the database, as after a start."""
        self.processes += 1
        rooms = Rooms(
            database=self.store.database,
            runs=self.store.runs,
            log=self.store.log,
            evaluation=self.store.evaluation,
            watched=WatchedRuns(self.store.database),
            registrar=Registrar(
                self.store.database,
                self.store.evaluation,
                self.ledger,
                self.store.recorded,
                self.commands,
            ),
            ledger=self.ledger,
            recorded=self.store.recorded,
            rules=self.rules,
            external_url="http://gw.example",
            service_started_ns=self.started_ns,
        )
        name = f"process-{self.processes}"
        return Evaluator(rooms, self.outbox, RECEIVERS, name, lambda: self.now)

    def crash(self) -> None:
        """The process dies without a word; its leases run out, which here is made to be now."""
        self.store.evaluation.release(PROJECT, f"process-{self.processes}")
        self.evaluator = self.process()

    def send(
        self,
        first: int,
        last: int,
        sick: tuple[int, ...] = (),
        at: int | None = None,
        run: str = "r",
    ) -> None:
        frames = []
        for step in range(first, last + 1):
            bad = step in sick
            well = [1.0, 0.5, 0.0, 0.0, 0.0, 0.0]
            row = [float("nan"), float("nan"), 3.0, 0.0, 0.0, 0.0] if bad else well
            values = struct.pack("<18f", *well, *row, *well)
            time_ns = (self.now if at is None else at) + step
            frames.append(
                wire.Frame(
                    step + 1, step, time_ns, {"loss": 1.0}, (), "unclipped", True, False, values
                )
            )
        sent = batch(*frames)
        self.store.send(replace(sent, stream=replace(sent.stream, run=run)), at=self.now)

    def round(self) -> None:
        self.now += SECOND
        self.evaluator.round(self.now)
        self.herald.round(self.now)

    def story(self) -> list[tuple[str, str, str, str, str | None]]:
        """Every transition of every alert: name, severity, to, reason, step."""
        lines = []
        for alert in self.ledger.list(PROJECT, limit=1000).items:
            found = self.ledger.get(PROJECT, alert.id or 0)
            assert found is not None
            lines += [
                (alert.alertname, alert.severity, t.to_state, t.reason, t.annotations.get("step"))
                for t in found.timeline
            ]
        return sorted(lines, key=str)

    def messages(self) -> int:
        return self.outbox.counts().get("waiting", 0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.store.database.close()


def test_a_nan_fires_once_resolves_after_clean_steps_and_queues_both_messages(
    bench: Bench,
) -> None:
    bench.send(0, STEPS - 1, sick=(SICK,))
    bench.round()
    page = [line for line in bench.story() if line[:2] == ("NonFiniteGradient", "page")]
    assert [(to, step) for _, _, to, _, step in page] == [
        ("firing", "30"),
        ("pending", "30"),
        ("resolved", "30"),
    ]
    queued = bench.messages()
    bench.round()
    bench.round()
    assert bench.messages() == queued


def test_an_alert_links_to_its_run_and_runbook(bench: Bench) -> None:
    bench.send(0, SICK, sick=(SICK,))
    bench.round()
    (alert,) = bench.ledger.list(PROJECT, ("firing",), severity="page").items
    assert alert.annotations["dashboard_url"] == "http://gw.example/runs/r?project=vision"
    assert alert.annotations["runbook_url"] == "http://gw.example/runbooks/NonFiniteGradient"
    assert alert.annotations["layer"] == "blocks.1"


def test_a_crash_between_an_early_page_and_its_joined_step_pages_once(bench: Bench) -> None:
    bench.store.start(rank=1, world_size=2)
    bench.store.database.write(
        lambda connection: connection.exec_driver_sql("UPDATE run SET world_size = 2")
    ).result()
    bench.send(0, SICK, sick=(SICK,))
    bench.evaluator.round(bench.now)  # rank 1 is still awaited
    assert [line[:3] for line in bench.story() if line[1] == "page"] == [
        ("NonFiniteGradient", "page", "firing"),
        ("NonFiniteGradient", "page", "pending"),
    ]
    bench.crash()
    for _ in range(4):
        bench.round()
    pages = [line for line in bench.story() if line[1] == "page"]
    assert [line[2:4] for line in pages] == [
        ("firing", "condition"),
        ("firing", "enriched"),  # with the rank, once the others were heard or waited for
        ("pending", "condition"),
    ]


def test_labels_of_a_rule_stand_on_its_alerts(bench: Bench) -> None:
    rules = [replace(r, labels={"tier": "gold", "run": "never"}) for r in bench.rules.detectors]
    bench.rules = replace(bench.rules, detectors=tuple(rules))
    bench.evaluator = bench.process()
    bench.send(0, SICK, sick=(SICK,))
    bench.round()
    (alert,) = bench.ledger.list(PROJECT, ("firing",), severity="page").items
    assert (alert.labels["tier"], alert.labels["run"]) == ("gold", "r")


@given(
    cuts=st.sets(st.integers(1, STEPS - 1), max_size=6),
    crashes=st.sets(st.integers(0, 6), max_size=4),
    sick=st.sets(st.integers(5, STEPS - 1), min_size=1, max_size=3),
)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_however_often_the_service_dies_the_alerts_are_those_of_one_that_never_did(
    tmp_path_factory: pytest.TempPathFactory, cuts: set[int], crashes: set[int], sick: set[int]
) -> None:
    stories = []
    for dies in (False, True):
        bench = Bench(tmp_path_factory.mktemp("bench"))
        try:
            edges = [0, *sorted(cuts), STEPS]
            for piece, (first, end) in enumerate(itertools.pairwise(edges)):
                bench.send(first, end - 1, sick=tuple(sick))
                bench.round()
                if dies and piece in crashes:
                    bench.crash()
            bench.round()
            stories.append((bench.story(), bench.messages()))
        finally:
            bench.store.database.close()
    assert stories[0] == stories[1]


def test_live_and_replay_from_the_log_alone_say_the_same(tmp_path: Path) -> None:
    live, replay = Bench(tmp_path / "live"), Bench(tmp_path / "replay")
    try:
        for step in range(STEPS):
            live.send(step, step, sick=(SICK, SICK + 1))
            live.round()
            replay.send(step, step, sick=(SICK, SICK + 1), at=live.now)
        replay.round()
        told = [line for line in live.story() if line[0] == "NonFiniteGradient"]
        assert told
        assert [line for line in replay.story() if line[0] == "NonFiniteGradient"] == told
    finally:
        live.store.database.close()
        replay.store.database.close()


def test_findings_on_old_data_are_a_note_and_wake_nobody(bench: Bench) -> None:
    bench.send(0, SICK + 5, sick=(SICK,), at=NOW - 2 * BACKFILL_NS)
    bench.round()
    severities = {line[1] for line in bench.story()}
    assert severities == {"note"}
    (alert,) = bench.ledger.list(PROJECT, ("firing",)).items
    assert alert.annotations["backfill"] == "found late; was a page"


@pytest.mark.parametrize(("heard", "severity"), [(True, "ticket"), (False, "note")])
def test_a_failure_known_from_a_spool_alone_is_history(
    bench: Bench, heard: bool, severity: str
) -> None:
    if heard:
        bench.store.beat("a1", bench.now)
    end = {"kind": "finish", "status": "failed", "error": "RuntimeError: out of luck"}
    bench.store.send(batch(wire.Frame(1, 5, bench.now, events=(end,))), at=bench.now)
    for _ in range(12):
        bench.now += 60 * SECOND
        bench.round()
    (alert,) = bench.ledger.list(PROJECT, ("firing",)).items
    assert (alert.alertname, alert.severity) == ("RunFailed", severity)


def test_what_is_still_bad_at_the_live_edge_pages_after_an_outage(bench: Bench) -> None:
    bench.send(0, SICK, sick=(SICK,), at=NOW - 2 * BACKFILL_NS)
    bench.send(SICK + 1, SICK + 3, sick=(SICK + 1, SICK + 2, SICK + 3))
    bench.round()
    assert ("NonFiniteGradient", "page", "firing") in {line[:3] for line in bench.story()}


def test_a_second_process_evaluates_nothing_while_the_first_holds_the_lease(
    bench: Bench,
) -> None:
    bench.send(0, 3)
    bench.round()
    second = bench.process()
    bench.send(4, SICK, sick=(SICK,))
    second.round(bench.now)
    assert bench.ledger.list(PROJECT).items == ()
    bench.round()
    assert bench.ledger.list(PROJECT, severity="page").items


def test_the_watchdog_speaks_at_its_interval_and_leaves_no_backlog(bench: Bench) -> None:
    for _ in range(100):
        bench.round()
    with bench.store.database.read() as connection:
        rows = connection.exec_driver_sql(
            "SELECT seq, payload FROM outbox WHERE receiver = 'dead-man'"
        ).all()
    assert [row.seq for row in rows] == [4]
    assert '"Watchdog"' in rows[0].payload


def test_derived_series_hold_each_judged_step_once_over_restarts(bench: Bench) -> None:
    for first in range(0, STEPS, 10):
        bench.send(first, first + 9)
        bench.round()
        bench.crash()
    bench.round()
    row = bench.store.runs.get(PROJECT, "r").id  # type: ignore[union-attr]
    (norm,) = bench.store.recorded.newest(PROJECT, row, ["gradwarden_gradient_norm"], 1000)
    assert len(norm.points) == STEPS


def test_a_run_whose_evaluation_raises_is_tried_less_and_less_and_then_recovers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.send(0, SICK, sick=(SICK,))
    with monkeypatch.context() as broken:
        broken.setattr(RunWatch, "evaluate", lambda *_: 1 / 0)
        for _ in range(60):
            bench.round()
        assert bench.evaluator.errors == 6, "after 1, 2, 4, 8, 16 and 32 seconds"
    for _ in range(60):
        bench.round()
    assert ("NonFiniteGradient", "page", "pending") in {line[:3] for line in bench.story()}


def test_a_run_that_never_ends_is_let_go_and_found_again_when_it_speaks(bench: Bench) -> None:
    bench.send(0, 3)
    bench.round()
    assert bench.evaluator.coverage(PROJECT, "r")
    bench.now += 48 * 3600 * SECOND
    bench.round()
    assert not bench.evaluator._held
    assert bench.evaluator.coverage(PROJECT, "r"), "what watched it last is recalled"
    bench.send(4, SICK, sick=(SICK,))
    bench.round()
    assert ("NonFiniteGradient", "page", "firing") in {line[:3] for line in bench.story()}


def test_after_a_long_outage_even_a_run_that_fell_silent_meanwhile_is_judged(
    bench: Bench,
) -> None:
    bench.send(0, 3)
    bench.round()
    bench.now += 48 * 3600 * SECOND
    bench.started_ns = bench.now
    bench.crash()
    bench.round()
    assert bench.evaluator.coverage(PROJECT, "r")


def test_a_process_that_stops_leaves_the_watchdog_to_the_next(bench: Bench) -> None:
    bench.round()
    bench.evaluator.stop()
    bench.process().round(bench.now)
    with bench.store.database.read() as connection:
        rows = connection.exec_driver_sql("SELECT seq FROM outbox WHERE receiver = 'dead-man'")
        assert [row.seq for row in rows] == [2]
