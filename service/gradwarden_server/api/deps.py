"""What routes are handed: the parts of the service, and who asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, TypeVar

from fastapi import Depends, Path, Request
from fastapi.security import APIKeyCookie, HTTPBearer

from gradwarden_server import logs
from gradwarden_server.alerting.backtest import Backtests
from gradwarden_server.alerting.promotion import Shadows
from gradwarden_server.alerting.rulebook import Rulebook
from gradwarden_server.api.access import COOKIE, Doorman, Principal
from gradwarden_server.api.bodies import Identifier
from gradwarden_server.api.budgeting import BudgetDesk
from gradwarden_server.api.hub import Hub
from gradwarden_server.api.lately import Lately
from gradwarden_server.api.pace import Pace
from gradwarden_server.api.summary import Summaries
from gradwarden_server.api.throttle import Throttle
from gradwarden_server.model import Receipt
from gradwarden_server.notify.routes import Routing
from gradwarden_server.querying.storage import Sources
from gradwarden_server.settings import Settings
from gradwarden_server.store.alerts.care import Care
from gradwarden_server.store.alerts.casebook import Casebook
from gradwarden_server.store.alerts.ledger import AlertLedger
from gradwarden_server.store.alerts.letters import Letters
from gradwarden_server.store.alerts.links import LinkSecrets
from gradwarden_server.store.alerts.silences import Silences
from gradwarden_server.store.alerts.windows import MaintenanceWindows
from gradwarden_server.store.commands import CommandStore
from gradwarden_server.store.costs import Costs
from gradwarden_server.store.database import Database
from gradwarden_server.store.fleet import Fleet
from gradwarden_server.store.judging.rulings import Rulings
from gradwarden_server.store.keeping.maintenance import Janitor
from gradwarden_server.store.keeping.removal import RunRemoval
from gradwarden_server.store.keeping.retention import RetentionStore
from gradwarden_server.store.log.entries import LogReader
from gradwarden_server.store.log.frames import FrameLog
from gradwarden_server.store.outcomes import Outcomes
from gradwarden_server.store.reading.compare import Comparison
from gradwarden_server.store.reading.history import History
from gradwarden_server.store.reading.timespan import TimeSpans
from gradwarden_server.store.runs import RunStore
from gradwarden_server.store.tokens import TokenStore
from gradwarden_server.telemetry import Telemetry

T = TypeVar("T")


class ReceiverFace(Protocol):
    """What the api tells of a receiver; its URL may be a credential and stays out."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def severities(self) -> tuple[str, ...]: ...
    @property
    def links(self) -> bool: ...


class Messenger(Protocol):
    """The courier, as far as the api needs it."""

    def test(self, name: str, project: str) -> Receipt: ...
    def wake(self) -> None: ...


class Coverage(Protocol):
    """Whether one kind of sickness could be seen in a run."""

    @property
    def alert(self) -> str: ...
    @property
    def state(self) -> Literal["armed", "waiting", "blind"]: ...
    @property
    def detail(self) -> str: ...


class Judge(Protocol):
    """The evaluator, as far as the api needs it."""

    @property
    def alive(self) -> bool: ...
    def coverage(self, project: str, run: str) -> Sequence[Coverage] | None: ...
    def unjudged(self, project: str, run: str) -> int: ...
    def wake(self) -> None: ...
    def hurry(self, project: str, run: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that routes work with; ``create_app`` is where it is put together."""

    settings: Settings
    started_ns: int
    database: Database
    runs: RunStore
    frames: FrameLog
    log: LogReader
    history: History
    timespans: TimeSpans
    comparison: Comparison
    ledger: AlertLedger
    casebook: Casebook
    # Of runs with open alerts, for some seconds; and when first bad steps were taken.
    diagnoses: Lately
    onsets: Lately
    tokens: TokenStore
    commands: CommandStore
    telemetry: Telemetry
    doorman: Doorman
    throttle: Throttle
    pace: Pace
    # Seconds for which no more frames can be taken in, or None where they can.
    backlog: Callable[[], float | None]
    receivers: tuple[ReceiverFace, ...]
    messenger: Messenger
    routing: Routing
    letters: Letters
    judge: Judge
    shadows: Shadows
    rulebook: Rulebook
    backtests: Backtests
    rulings: Rulings
    silences: Silences
    maintenance: MaintenanceWindows
    care: Care
    link_secrets: LinkSecrets
    sources: Sources
    budgets: BudgetDesk
    outcomes: Outcomes
    costs: Costs
    retention: RetentionStore
    removal: RunRemoval
    janitor: Janitor
    fleet: Fleet
    summaries: Summaries
    hub: Hub

    @staticmethod
    async def written(write: Future[T]) -> T:
        """The result of a write, once it is durable."""
        return await asyncio.wrap_future(write)


async def _parts(request: Request) -> Parts:  # a plain function would cost a thread each time
    parts: Parts = request.app.state.parts
    return parts


PartsDep = Annotated[Parts, Depends(_parts)]

# These two only describe the credentials in the OpenAPI document; the doorman reads them.
_bearer = HTTPBearer(auto_error=False, description="A token: gw_...")
_cookie = APIKeyCookie(name=COOKIE, auto_error=False, description="A login at /v1/session")
CREDENTIALS = [Depends(_bearer), Depends(_cookie)]


async def _ingester(request: Request, parts: PartsDep) -> AsyncIterator[Principal]:
    principal = await parts.doorman.admit(request, "ingest")
    with parts.throttle.slot(principal):
        logs.bind(project=principal.project)
        yield principal


async def _reader(request: Request, parts: PartsDep) -> Principal:
    return await parts.doorman.admit(request, "read")


async def _admin(request: Request, parts: PartsDep) -> Principal:
    return await parts.doorman.admit(request, "admin")


async def _somebody(request: Request, parts: PartsDep) -> Principal | None:
    return await parts.doorman.identify(request)


Ingester = Annotated[Principal, Depends(_ingester)]
Reader = Annotated[Principal, Depends(_reader)]
Admin = Annotated[Principal, Depends(_admin)]
Somebody = Annotated[Principal | None, Depends(_somebody)]
RunId = Annotated[Identifier, Path(description="The run's identifier")]
AlertId = Annotated[int, Path(ge=1, le=2**62)]
