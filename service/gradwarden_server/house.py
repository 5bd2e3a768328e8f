"""The one place where parts meet: every part of one service, put together."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from functools import partial

from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

from gradwarden_server import assets, telemetry
from gradwarden_server.alerting.backtest import Backtests
from gradwarden_server.alerting.clerk import Clerk, Mailing
from gradwarden_server.alerting.commit import Registrar
from gradwarden_server.alerting.evaluator import Evaluator
from gradwarden_server.alerting.groupwatch import RuleRooms
from gradwarden_server.alerting.line import Line
from gradwarden_server.alerting.promotion import Shadows
from gradwarden_server.alerting.rulebook import Book, Rulebook
from gradwarden_server.alerting.ruler import Ruler
from gradwarden_server.alerting.watch import Rooms
from gradwarden_server.api.access import Doorman
from gradwarden_server.api.budgeting import BudgetDesk
from gradwarden_server.api.deps import Parts
from gradwarden_server.api.hub import Hub
from gradwarden_server.api.lately import Lately
from gradwarden_server.api.news import Newsroom
from gradwarden_server.api.pace import Pace
from gradwarden_server.api.reporting import gather
from gradwarden_server.api.summary import Summaries
from gradwarden_server.api.throttle import Throttle
from gradwarden_server.model import DEFAULT_PROJECT
from gradwarden_server.notify import registry
from gradwarden_server.notify.counted import Counted
from gradwarden_server.notify.links import Informed, Link, seal
from gradwarden_server.querying.storage import Sources
from gradwarden_server.settings import Settings
from gradwarden_server.store.alerts.care import Care
from gradwarden_server.store.alerts.casebook import Casebook
from gradwarden_server.store.alerts.ledger import AlertLedger
from gradwarden_server.store.alerts.links import LinkSecrets
from gradwarden_server.store.alerts.silences import Silences
from gradwarden_server.store.alerts.threads import ReceiverThreads
from gradwarden_server.store.alerts.windows import MaintenanceWindows, Wishes
from gradwarden_server.store.commands import CommandStore
from gradwarden_server.store.compacting.compaction import Compaction
from gradwarden_server.store.compacting.compactor import Compactor
from gradwarden_server.store.compacting.workshop import Workshop
from gradwarden_server.store.costs import Costs
from gradwarden_server.store.database import Database
from gradwarden_server.store.fleet import Fleet
from gradwarden_server.store.judging.evaluation import EvaluationStore
from gradwarden_server.store.judging.promotions import Promotions
from gradwarden_server.store.judging.rulings import Rulings
from gradwarden_server.store.judging.watched import WatchedRuns
from gradwarden_server.store.keeping.maintenance import Janitor
from gradwarden_server.store.keeping.removal import RunRemoval
from gradwarden_server.store.keeping.retention import RetentionStore
from gradwarden_server.store.log.entries import LogReader
from gradwarden_server.store.log.frames import FrameLog
from gradwarden_server.store.log.recorded import RecordedSeries
from gradwarden_server.store.notices import Listener, Topic
from gradwarden_server.store.outcomes import Outcomes
from gradwarden_server.store.overview import Overview, gauges
from gradwarden_server.store.reading.compare import Comparison
from gradwarden_server.store.reading.history import History
from gradwarden_server.store.reading.sampled import Samples
from gradwarden_server.store.reading.timespan import TimeSpans
from gradwarden_server.store.runs import RunStore
from gradwarden_server.store.shelves import clickhouse_engines
from gradwarden_server.store.shelves.clickhouse import ClickHouseShelf
from gradwarden_server.store.shelves.shelf import Shelves
from gradwarden_server.store.shelves.shelf_tables import TableShelf
from gradwarden_server.store.standing import Standing
from gradwarden_server.store.tokens import TokenStore
from gradwarden_server.telemetry import Snapshot, Telemetry

log = logging.getLogger(__name__)


# The writer lets go of the interpreter at every statement; to get it back from a thread that
# computes it would wait for the default of 5 ms each time.
_SWITCH_SECONDS = 0.0005


class StartRefused(Exception):
    """The service must not start like this; the text says what to do."""


class House:
    """All parts of one service, put together; ``open`` prepares, ``start`` sets in motion."""

    def __init__(self, settings: Settings) -> None:
        """Build every part without touching the database.

        Raises:
            ReceiversError, RulesError, SloError: a file is wrong; all mistakes are told.
            ValueError: the database or the series engine is of a kind that there is not.
        """
        self.settings = settings
        now_ns = time.time_ns()
        self.telemetry = Telemetry()
        self.rulebook = Rulebook(
            settings.rules or assets.ALERT_RULES,
            settings.receivers,
            os.environ,
            settings.url,
            time.time_ns,
        )
        book = self.rulebook.book
        rules, receivers, objectives = book.rules, book.paging.receivers, book.objectives
        routing = book.paging.routing
        self.database = database = Database(settings.db)
        self.overview = Overview(database)
        self.recorded = RecordedSeries(database)
        run_store = RunStore(database)
        frames = FrameLog(database, lambda project: self.evaluator.wake())
        self.series = _series(settings)
        reader = LogReader(database, shelves=Shelves(TableShelf(database), self.series))
        ledger = AlertLedger(database.engine, routing.lanes)
        fleet = Fleet(database)
        history = History(reader, run_store)
        commands = CommandStore(database)
        self.tokens = TokenStore(database)
        care = Care(database, ledger, [r.name for r in receivers if r.shows_acks])
        link_secrets = LinkSecrets(database)

        def sign(link: Link) -> str:
            return f"{settings.url}/l/{seal(link_secrets.made(link.project), link)}"

        linked = {r.name for r in receivers if r.links}
        senders = {
            name: Counted(
                name,
                Informed(sender, care.ackers, sign if name in linked else None),
                self.telemetry,
            )
            for name, sender in registry.connect(receivers, ReceiverThreads(database)).items()
        }
        self.line = Line(database, routing, senders, settings.url, run_store.projects)
        evaluation = EvaluationStore(database)
        sources = Sources(Samples(database, reader, run_store), ledger)
        silences = Silences(database)
        maintenance = MaintenanceWindows(database)
        quiet = Wishes(silences, maintenance).current
        shadows = Shadows(Promotions(database), rules, settings.shadow_days)
        rooms = Rooms(
            database=database,
            runs=run_store,
            log=reader,
            evaluation=evaluation,
            watched=WatchedRuns(database),
            registrar=Registrar(database, evaluation, ledger, self.recorded, commands),
            ledger=ledger,
            recorded=self.recorded,
            rules=rules,
            external_url=settings.url,
            service_started_ns=now_ns,
            shadow=shadows.of,
            silences=quiet,
        )
        outcomes = Outcomes(database, self.recorded)
        holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.evaluator = Evaluator(
            rooms, self.line.outbox, receivers, holder, time.time_ns, self.line.wake
        )
        rulings = Rulings(database)
        self.ruler = Ruler(
            RuleRooms.beside(rooms, sources, rulings, self.recorded),
            evaluation,
            rules.groups,
            f"{holder}:rules",
            time.time_ns,
            self.line.wake,
        )
        costs = Costs(database)
        mailing = Mailing(
            database=database,
            costs=costs,
            schedule=lambda: self.rulebook.book.weekly,
            gather=lambda project, since, until: gather(self.parts, project, since, until),
            url=settings.url,
            changed=self.line.wake,
        )
        self.clerk = Clerk(run_store, outcomes, evaluation, holder, time.time_ns, mailing)
        self.janitor = Janitor(database, holder, series=self.series)
        workshop = Workshop(settings.db, settings.precision_bits)
        self.compaction = Compaction(database, reader, settings.precision_bits, workshop=workshop)
        self.compactor = Compactor(self.compaction)
        summaries = Summaries(fleet)
        newsroom = Newsroom(fleet, summaries, Standing(database))
        self.hub = Hub(newsroom.read, settings.max_streams)
        database.on_commit(self.hub.stir)
        self.listener = Listener(
            database,
            {
                Topic.FRAMES: self._frames_elsewhere,
                Topic.ALERTS: self.hub.stir,
                Topic.COMMANDS: partial(commands.forget, DEFAULT_PROJECT),
            },
        )
        self.backtests = Backtests()
        self.parts = Parts(
            settings=settings,
            started_ns=now_ns,
            database=database,
            runs=run_store,
            frames=frames,
            log=reader,
            history=history,
            timespans=TimeSpans(database, reader.segments),
            comparison=Comparison(reader, run_store, history),
            ledger=ledger,
            casebook=Casebook(database),
            diagnoses=Lately(seconds=5, most=1000),
            onsets=Lately(seconds=3600, most=10_000),
            tokens=self.tokens,
            commands=commands,
            telemetry=self.telemetry,
            doorman=Doorman(self.tokens, settings),
            throttle=Throttle(settings.rate_per_second, settings.max_in_flight),
            pace=Pace(),
            backlog=self.compactor.wait_seconds,
            receivers=receivers,
            messenger=self.line.courier,
            routing=routing,
            letters=self.line.letters,
            judge=self.evaluator,
            shadows=shadows,
            rulebook=self.rulebook,
            backtests=self.backtests,
            rulings=rulings,
            silences=silences,
            maintenance=maintenance,
            care=care,
            link_secrets=link_secrets,
            sources=sources,
            budgets=BudgetDesk(objectives, sources),
            outcomes=outcomes,
            costs=costs,
            retention=RetentionStore(database),
            removal=RunRemoval(database),
            janitor=self.janitor,
            fleet=fleet,
            summaries=summaries,
            hub=self.hub,
        )
        self.telemetry.watch(self.snapshot)
        self._tracing: Callable[[], None] | None = None
        self._opened = False

    def open(self) -> None:
        """Hold the file, migrate, register the admin token, and check who could log in.

        Raises:
            DatabaseInUse: another process holds the SQLite file.
            Unavailable: the database does not answer.
            StartRefused: the bind address is not loopback and no token exists.
        """
        if self._opened:
            return
        settings = self.settings
        alone = self.database.hold_lock(f"gradwarden serve at {settings.url}")
        self.database.ping()
        self.database.migrate()
        self.compaction.recover(alone)
        if alone:
            self.evaluator.inherit()
        now_ns = time.time_ns()
        if settings.admin_token_file is not None:
            secret = _read_secret(settings)
            self.tokens.register(DEFAULT_PROJECT, "admin token file", secret, now_ns).result()
        if settings.on_loopback:
            log.warning("no token is asked for: only this machine can connect to %s", settings.host)
        elif not self.tokens.any_live(now_ns):
            # A PostgreSQL URL may hold a password; it is not repeated here.
            where = f" --db {settings.db}" if self.database.kind == "sqlite" else ""
            raise StartRefused(
                f"{settings.host} can be reached from outside and no token exists yet. "
                f"Make one first:\n  gradwarden token create --name admin --scope admin{where}"
            )
        if not settings.evaluate:
            log.warning("nothing is judged here: GRADWARDEN_EVALUATE is false")
        elif settings.receivers is None:
            log.warning("alerts are recorded and nobody is told: GRADWARDEN_RECEIVERS is not set")
        self._opened = True

    def start(self) -> None:
        """Begin to compact, and to evaluate and deliver where that is asked for."""
        sys.setswitchinterval(_SWITCH_SECONDS)
        self.compactor.start()
        if self.settings.evaluate:
            self.line.start()
            self.evaluator.start()
            self.ruler.start()
            self.clerk.start()
        self.rulebook.start(self._adopt)
        self.janitor.start()
        self.listener.start()

    def stop(self) -> None:
        """Finish what is under way, in order, and let go of everything."""
        self.backtests.stop()
        self.rulebook.stop()
        self.listener.stop()
        self.janitor.stop()
        self.compactor.stop()
        if self._opened and self.settings.evaluate:
            self.ruler.stop()
            self.clerk.stop()
            self.evaluator.stop()
            self.line.stop()
        self.database.close()
        if self.series is not None:
            self.series.close()
        if self._tracing is not None:
            self._tracing()

    def _frames_elsewhere(self) -> None:
        self.evaluator.wake()
        self.hub.stir()

    def _adopt(self, book: Book) -> None:
        """Work by what the files say now."""
        self.parts.shadows.adopt(book.rules)
        self.parts.budgets.adopt(book.objectives)
        self.evaluator.adopt(book.rules)
        self.ruler.adopt(book.rules)
        self.line.adopt(book.paging)

    def trace(self, app: FastAPI) -> None:
        """Send spans of every request, commit, evaluation and delivery, where asked to."""
        if self.settings.otlp_endpoint:
            provider = telemetry.start_tracing(self.settings.otlp_endpoint)
            FastAPIInstrumentor.instrument_app(
                app, tracer_provider=provider, excluded_urls="-/,metrics,assets/,/l/"
            )
            self._tracing = provider.shutdown

    def snapshot(self, project: str | None) -> Snapshot:
        """What a scrape tells beyond the counters; only this project's runs one by one."""
        totals = self.overview.totals(project, telemetry.MOST_RUNS)
        return Snapshot(
            runs=totals.runs,
            alerts=totals.alerts,
            live=tuple(gauges(live, self.telemetry) for live in totals.live),
            live_count=totals.live_count,
            **self.line.numbers(),
            writer_queue_depth=self.database.queue_depth,
            streams=self.hub.open_streams,
            evaluator_lag_seconds=self.evaluator.lag_seconds,
            evaluator_errors=self.evaluator.errors,
            rules=self.ruler.tally,
            reload_ok=self.rulebook.last.ok,
            reload_ns=self.rulebook.loaded_ns,
            compaction=self.compactor.progress,
        )


def _series(settings: Settings) -> ClickHouseShelf | None:
    if not settings.series:
        return None
    return ClickHouseShelf(clickhouse_engines.connect(settings.series))


def _read_secret(settings: Settings) -> str:
    assert settings.admin_token_file is not None
    try:
        secret = settings.admin_token_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise StartRefused(f"admin_token_file: {error}") from None
    if len(secret) < 20:
        raise StartRefused(
            f"admin_token_file: {settings.admin_token_file} holds {len(secret)} characters; "
            "write at least 20 random ones, for example: openssl rand -base64 32"
        )
    return secret
