"""Real receivers on loopback, a real database, and small makers for the alerting tests."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, insert, select

from gradwarden_server.alerting.herald import Herald
from gradwarden_server.model import Alert, Condition, Notification, RunFacts, Severity
from gradwarden_server.notify.delivery import Courier
from gradwarden_server.notify.message import Sender
from gradwarden_server.notify.routes import Routing
from gradwarden_server.notify.spec import Receiver
from gradwarden_server.store import tables
from gradwarden_server.store.alerts.groups import GroupStore
from gradwarden_server.store.alerts.outbox import Outbox, enqueue
from gradwarden_server.store.database import Database

T = TypeVar("T")
# Each page and ticket by itself and at once: these tests count what arrives.
EACH_AT_ONCE = (
    "routes:\n  - receiver: pager\n    group_wait_seconds: 0\n"
    "    group_interval_seconds: 0\n    storm: false\n"
)
SECOND = 1_000_000_000
PATIENCE = 60.0  # how long a test waits before it calls a thing hung; never a thing it measures


@dataclass(frozen=True)
class Request:
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What a local receiver does with one request; ``hold`` makes it answer only when set."""

    status: int = 200
    headers: Mapping[str, str] | None = None
    hold: threading.Event | None = None


class LocalReceiver:
    """An HTTP server that answers from a list (then 200) and keeps what it got."""

    def __init__(self) -> None:
        self.answers: deque[Answer] = deque()
        self.requests: list[Request] = []
        self._changed = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = self.rfile.read(length)
                if len(body) < length:
                    self.close_connection = True  # the sender died in the middle of its message
                    return
                answer = receiver._take(Request(self.path, dict(self.headers.items()), body))
                if answer.hold is not None:
                    answer.hold.wait(PATIENCE)
                try:
                    self.send_response(answer.status)
                    for name, value in (answer.headers or {}).items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the caller gave up meanwhile

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def wait(self, count: int) -> list[Request]:
        """The requests, once there are so many."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.requests) >= count, PATIENCE), (
                f"got {len(self.requests)} of {count} requests"
            )
            return list(self.requests)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def _take(self, request: Request) -> Answer:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
            return self.answers.popleft() if self.answers else Answer()


def eventually(ask: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """The first answer that is one; the service works meanwhile."""
    until = time.monotonic() + patience
    while not (found := ask()):
        assert time.monotonic() < until, "nothing came"
    return found


@contextmanager
def local_receiver() -> Iterator[LocalReceiver]:
    receiver = LocalReceiver()
    try:
        yield receiver
    finally:
        receiver.close()


def run_facts(run: str = "r1", row: int = 1, project: str = "default") -> RunFacts:
    return RunFacts(
        row=row,
        project=project,
        run=run,
        name="digits",
        status="running",
        environment="prod",
        world_size=1,
        labels={"project": project, "run": run},
        dashboard_url=f"http://127.0.0.1/runs/{run}",
        started_ns=0,
        last_seen_ns=0,
        last_step=0,
    )


def sick(
    name: str = "NonFiniteGradient", severity: Severity = "page", **annotations: str
) -> Condition:
    return Condition(name, severity, True, annotations, "non_finite")


def well(name: str = "NonFiniteGradient", severity: Severity = "page") -> Condition:
    return Condition(name, severity, False, {}, "recovered")


def message(
    receiver: str = "pager",
    key: str = "g1",
    text: str = "",
    project: str = "default",
    severity: str = "page",
    status: str = "firing",
) -> Notification:
    payload = {"version": "4", "status": status, "alerts": [], "text": text}
    return Notification(project, receiver, key, severity, payload)


def firing(
    run: str = "r1",
    name: str = "NonFiniteGradient",
    severity: Severity = "page",
    project: str = "default",
    **annotations: str,
) -> Alert:
    labels = {"project": project, "run": run, "alertname": name, "severity": severity}
    return Alert(None, project, run, labels, annotations, "firing", SECOND, SECOND)


def open_database(url: str) -> Database:
    """A migrated database with the project ``default``; give it back with ``close``."""
    database = Database(url)
    database.migrate()

    def seed(conn: Connection) -> None:
        for name in ("default", "other"):
            conn.execute(insert(tables.project).values(name=name, created_ns=0))

    database.write(seed).result(PATIENCE)
    return database


def sqlite_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'gradwarden.sqlite'}"


def add_run(conn: Connection, run: str = "r1", project: str = "default") -> int:
    """A run's row; returns its number."""
    added = conn.execute(
        insert(tables.run)
        .values(
            project=project,
            run=run,
            name=run,
            environment="prod",
            page=False,
            config={},
            world_size=1,
            status="running",
            started_ns=0,
            last_seen_ns=0,
            position=0,
        )
        .returning(tables.run.c.id)
    )
    return int(added.scalar_one())


class Desk:
    """A courier on a real database, with a clock in the test's hand and eyes on every commit."""

    def __init__(self, url: str, new: bool = True) -> None:
        self.database = open_database(url) if new else Database(url)
        self.outbox = Outbox(self.database.engine)
        self.now_ns = 86_400 * SECOND
        self.broken = False
        self._committed = threading.Condition()
        self._couriers: list[Courier] = []

    def write(self, job: Callable[[Any], T]) -> Future[T]:
        if self.broken:
            raise OSError("the disk is away")
        future = self.database.write(job)
        future.add_done_callback(self._note)
        return future

    def clock(self) -> int:
        return self.now_ns

    def courier(self, senders: dict[str, Sender], jitter: float = 1.0) -> Courier:
        courier = Courier(self, self.outbox, senders, self.clock, lambda: jitter)
        self._couriers.append(courier)
        courier.start()
        return courier

    def herald(self, *receivers: Receiver) -> Herald:
        """One that tells of alerts in this database when asked to."""
        wake = [courier.wake for courier in self._couriers]
        return Herald(
            self.database,
            GroupStore(self.database.engine),
            Routing(receivers),
            "http://gw",
            lambda: ("default",),
            self.clock,
            lambda: [call() for call in wake] and None,
        )

    def post(self, *texts: str, receiver: str = "pager", key: str = "g1") -> None:
        self.send(*(message(receiver, key, text) for text in texts))

    def send(self, *notifications: Notification) -> None:
        def job(conn: Connection) -> None:
            for notification in notifications:
                enqueue(notification.project, conn, notification, self.now_ns)

        self.write(job).result(PATIENCE)
        for courier in self._couriers:
            courier.wake()

    def later(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND)
        for courier in self._couriers:
            courier.wake()

    def until(self, **states: int) -> None:
        """Wait for the commit after which the outbox looks like this."""
        with self._committed:
            seen = self._committed.wait_for(lambda: self.outbox.counts() == states, PATIENCE)
        assert seen, f"{self.outbox.counts()} is not {states}"

    def until_tried(self, times: int) -> None:
        """Wait for so many receipts."""
        with self._committed:
            assert self._committed.wait_for(lambda: len(self.receipts()) >= times, PATIENCE)

    def quiet(self) -> Desk:
        """Wait until nothing is due and nothing is on its way."""
        leased = select(tables.outbox.c.id).where(tables.outbox.c.lease_until_ns > self.now_ns)

        def still() -> bool:
            with self.database.read() as conn:
                on_the_way = conn.execute(leased).first() is not None
            return not on_the_way and not self.outbox.due(self.now_ns)

        with self._committed:
            assert self._committed.wait_for(still, PATIENCE)
        return self

    def receipts(self) -> list[tuple[bool, str]]:
        query = select(tables.delivery.c.ok, tables.delivery.c.detail).order_by(
            tables.delivery.c.id
        )
        with self.database.read() as conn:
            return [(row.ok, row.detail) for row in conn.execute(query)]

    def close(self) -> None:
        for courier in self._couriers:
            courier.stop()
        self.database.close()

    def _note(self, _future: Future[Any]) -> None:
        with self._committed:
            self._committed.notify_all()
