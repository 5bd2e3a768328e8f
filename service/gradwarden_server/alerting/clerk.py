"""The clerk: a thread that keeps books. It settles how runs ended, and sends the weekly report.

One process at a time, under a lease of each project.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from gradwarden_server.notify.weekly import Weekly, message
from gradwarden_server.slo import outcome, report
from gradwarden_server.slo.outcome import Ended
from gradwarden_server.slo.report import Report
from gradwarden_server.store.alerts.outbox import enqueue
from gradwarden_server.store.costs import Costs
from gradwarden_server.store.database import Database, Priority, Transaction
from gradwarden_server.store.errors import StoreError
from gradwarden_server.store.judging.evaluation import EvaluationStore
from gradwarden_server.store.outcomes import AT_ONCE, Candidate, Outcomes, Settled
from gradwarden_server.store.runs import RunStore

log = logging.getLogger(__name__)

_ROUND_SECONDS = 5.0
_SCOPE = "clerk"
_LEASE_NS = 30 * 1_000_000_000
_ACTOR = "gradwarden"
# Past that, every end was judged, unless it was told late or nobody looked.
_OPEN_NS = outcome.RESUME_NS + outcome.LOST_NS
_WHOLE_NS = 600 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class Mailing:
    """The weekly report: when it is due, what is in it, and where it goes.

    Attributes:
        schedule: What the receivers file says now.
        gather: The report of a project between two moments.
        url: Where people find the service.
        changed: Called when a message waits for delivery.
    """

    database: Database
    costs: Costs
    schedule: Callable[[], Weekly | None]
    gather: Callable[[str, int, int], Report]
    url: str
    changed: Callable[[], None]


class Clerk:
    """Looks around every few seconds."""

    def __init__(
        self,
        runs: RunStore,
        outcomes: Outcomes,
        leases: EvaluationStore,
        holder: str,
        clock: Callable[[], int],
        mailing: Mailing | None = None,
    ) -> None:
        self._runs = runs
        self._outcomes = outcomes
        self._leases = leases
        self._holder = f"{holder}/{_SCOPE}"
        self._clock = clock
        self._mailing = mailing
        self._whole_ns: dict[str, int] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="clerk", daemon=True)

    def start(self) -> None:
        """Begin with a round: a run may have ended while nobody looked."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the round under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            for project in self._runs.projects():
                self._leases.release(project, self._holder)
        except StoreError as error:
            log.warning("leases of the books are not given back, they run out: %s", error)

    def round(self, now_ns: int) -> None:
        """Do what is due in every project; what goes wrong in one is its own."""
        for project in self._runs.projects():
            try:
                self._keep(project, now_ns)
            except StoreError as error:
                log.error("the books of %s wait: %s", project, error)
            except Exception:
                log.exception("the books of %s failed and are tried again", project)

    def _keep(self, project: str, now_ns: int) -> None:
        if self._leases.acquire(project, _SCOPE, self._holder, _LEASE_NS) is not None:
            self._settle(project, now_ns)
            if self._mailing is not None:
                self._mail(self._mailing, project, now_ns)

    def _mail(self, mailing: Mailing, project: str, now_ns: int) -> None:
        """Send the report of the last week, once, wherever the clerk was when it was due."""
        weekly = mailing.schedule()
        week = None if weekly is None else weekly.due(now_ns)
        if weekly is None or week is None:
            return
        if mailing.costs.was_sent(project, weekly.receiver, week):
            return
        span = _span(week, weekly.timezone)
        if not mailing.costs.runs(project, *span):
            return  # nobody trained, so there is nothing to tell
        told = mailing.gather(project, *span)
        note = message(
            weekly, project, week, told.summary, report.markdown(told), mailing.url, now_ns
        )

        def job(connection: Transaction) -> bool:
            where = (project, connection, weekly.receiver, week)
            if not mailing.costs.claim_report(*where, now_ns):
                return False
            enqueue(project, connection, note, now_ns)
            return True

        if mailing.database.write(job, Priority.ALERT).result():
            mailing.changed()

    def _settle(self, project: str, now_ns: int) -> None:
        whole = now_ns - self._whole_ns.get(project, 0) >= _WHOLE_NS
        since_ns = 0 if whole else now_ns - _OPEN_NS
        after = 0
        while True:
            runs = self._outcomes.candidates(project, now_ns - outcome.LOST_NS, since_ns, after)
            judged = [(run, _judged(run, now_ns)) for run in runs]
            found = [(run, settled) for run, settled in judged if settled is not None]
            if found:
                self._outcomes.settle(project, found, _ACTOR).result()
            if len(runs) < AT_ONCE:
                break
            after = runs[-1].row
        if whole:
            self._whole_ns[project] = now_ns

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                self.round(self._clock())
            except StoreError as error:
                log.error("the books wait: %s", error)
            except Exception:
                log.exception("a round of the books failed and is tried again")
            self._stopping.wait(_ROUND_SECONDS)


def _judged(run: Candidate, now_ns: int) -> Settled | None:
    ended = Ended(run.status, run.started_ns, run.ended_ns, run.last_seen_ns)
    found = outcome.judge(ended, now_ns)
    if found is None:
        return None
    return Settled(found.good, found.reason, found.ended_ns, at_ns=now_ns)


def _span(week: str, zone: str) -> tuple[int, int]:
    """Begin and end in nanoseconds of the week that begins with this Monday."""
    monday = datetime.strptime(week, "%Y-%m-%d").replace(tzinfo=ZoneInfo(zone))
    ends = monday, monday + timedelta(days=7)
    since, until = (round(one.timestamp()) * 1_000_000_000 for one in ends)
    return since, until
