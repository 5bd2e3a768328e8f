"""What evaluations change, written together: a few statements for all that wait.

Each is all or nothing: its alerts, the marks on their groups, derived points and the cursor
stand in one transaction. Where one was fenced, they are written again one by one, so that the
others stand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby

from gradwarden_server.detect.base import Request
from gradwarden_server.model import Alert, Change
from gradwarden_server.store.alerts.ledger import AlertLedger
from gradwarden_server.store.commands import CommandStore
from gradwarden_server.store.database import Database, Priority, Transaction
from gradwarden_server.store.judging.evaluation import Cursor, EvaluationStore, Move, Snapshot
from gradwarden_server.store.log.recorded import Derived, RecordedSeries

Alerts = Mapping[str, Alert]

_ACTOR = "gradwarden"
_KEY = "evaluation"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one evaluation of one run changes; ``row`` and ``run`` name the run."""

    project: str
    row: int
    run: str
    epoch: int
    old: Cursor
    new: Cursor
    changes: Sequence[Change]
    derived: Sequence[Derived]
    requests: Sequence[Request]
    snapshot: Snapshot | None
    now_ns: int


class Registrar:
    """Writes judgements."""

    def __init__(
        self,
        database: Database,
        evaluation: EvaluationStore,
        ledger: AlertLedger,
        recorded: RecordedSeries,
        commands: CommandStore,
    ) -> None:
        self._database = database
        self._evaluation = evaluation
        self._ledger = ledger
        self._recorded = recorded
        self._commands = commands

    def submit(self, judgement: Judgement) -> Future[Alerts]:
        """Queue one; the future holds the alerts that it touched, with their ids.

        It raises Fenced if another process evaluates the run now; nothing is written then.
        """
        future: Future[Alerts] = self._database.write_together(
            self._take, judgement, Priority.ALERT, _KEY
        )
        if judgement.requests:
            future.add_done_callback(lambda _: self._commands.forget(judgement.project))
        return future

    def latest(self, project: str, latest: Mapping[int, Mapping[str, object]]) -> Future[None]:
        """Queue newest values of runs, by row; they are for show, so all else goes first."""
        return self._database.write(
            lambda connection: self._evaluation.tell_latest(project, connection, latest),
            Priority.COMPACTION,
        )

    def _take(self, connection: Transaction, judgements: Sequence[Judgement]) -> list[Alerts]:
        for project, group in groupby(judgements, key=lambda judgement: judgement.project):
            held = list(group)
            moves = [Move(j.row, j.epoch, j.old, j.new) for j in held]
            self._evaluation.move_all(project, connection, moves)
            derived = [chunk for judgement in held for chunk in judgement.derived]
            self._recorded.append_all(project, connection, derived)
        return [self._rest(connection, judgement) for judgement in judgements]

    def _rest(self, connection: Transaction, judgement: Judgement) -> Alerts:
        """What only some judgements have."""
        project, row, now_ns = judgement.project, judgement.row, judgement.now_ns
        touched: Alerts = {}
        if judgement.changes:
            touched = self._ledger.apply(project, connection, row, judgement.changes, now_ns)
        for request in judgement.requests:
            where = (project, connection, row, judgement.run)
            what = (request.rank, request.kind, request.args)
            self._commands.add(*where, *what, now_ns=now_ns, actor=_ACTOR)
        if judgement.snapshot is not None:
            self._evaluation.snapshot(project, connection, row, judgement.snapshot)
        return touched
