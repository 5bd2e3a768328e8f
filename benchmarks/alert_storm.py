"""What do people hear when ten thousand runs fall ill at once, and what does it cost?

Every run gets one page, in transactions of fifty runs as evaluations write them. Behind the
ledger stand the real herald and courier on a new SQLite file, and a webhook receiver in a
process of its own that counts. Ten pages are to arrive as such, and one storm that counts the
rest, told again at the interval of its group while it grows. Then all runs recover at once.

Resident memory is that of this process: before the storm with all runs in the database, its
highest value, and after everybody knows the end. While all of them fire, ``gradwarden serve`` shows
a copy of the database: how long until a browser's on-call page shows its cards, and an answer of
``/v1/alerts``. The last line of stdout is one JSON object.

    python benchmarks/alert_storm.py
    python benchmarks/alert_storm.py --alerts 200      # a smoke test
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import re
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from query_data import Service
from sqlalchemy import Connection, insert

from gradwarden_server.alerting.lifecycle import advance
from gradwarden_server.alerting.line import Line
from gradwarden_server.model import Condition, RunFacts
from gradwarden_server.notify.registry import connect
from gradwarden_server.notify.routes import Routing
from gradwarden_server.notify.spec import Receiver
from gradwarden_server.store import tables
from gradwarden_server.store.alerts.ledger import AlertLedger
from gradwarden_server.store.alerts.threads import ReceiverThreads
from gradwarden_server.store.database import Database, Priority

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the browser that tests drive

from tests.ui.browser import Page, find

PROJECT = "storm"
TOGETHER = 50
NAMES = ("NonFiniteGradient", "LossDivergence", "RunFailed")
GOALS = {"pages": 10, "grown_mib": 64.0, "oncall_p50_ms": 1000.0}
CALLS = 5
PATIENCE_SECONDS = 600.0
_COUNT = re.compile(r"(\d+) more pages")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; the exit code is 0 if people heard of all in few messages and memory stayed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--alerts", type=int, default=10_000, help="runs that fall ill (10000)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, receiver() as (port, heard):
        figures = measured(Path(folder), options.alerts, port, heard)
    met = (
        figures["page_messages"] <= GOALS["pages"]
        and figures["rss_peak_mib"] - figures["rss_before_mib"] <= GOALS["grown_mib"]
        and figures["oncall_p50_ms"] <= GOALS["oncall_p50_ms"]
        and figures["told_of"] == options.alerts
        and figures["open_at_the_end"] == 0
    )
    print(json.dumps({**figures, "goals": GOALS, "met": met}))
    return 0 if met else 1


def measured(folder: Path, alerts: int, port: int, heard: Pipe) -> dict[str, Any]:
    """One storm from its first alert to its end."""
    database = Database(f"sqlite:///{folder / 'gw.sqlite'}")
    database.migrate()
    rows = database.write(lambda c: _runs(c, alerts)).result()
    routing = Routing(
        [Receiver("pager", "webhook", f"http://127.0.0.1:{port}/", allow_private=True)]
    )
    ledger = AlertLedger(database.engine, routing.lanes)
    senders = connect(routing.hearers, ReceiverThreads(database))
    line = Line(database, routing, senders, "http://gw.example", lambda: [PROJECT])
    line.start()
    gc.collect()
    memory = Memory()
    before = memory.now()
    began = time.monotonic()
    _say(database, ledger, line, rows, True)
    written = time.monotonic() - began
    ears = Ears(heard)
    ears.until(lambda: ears.told_of() >= alerts)
    told = time.monotonic() - began
    shown = looked_at(folder)
    over_ns = time.monotonic()
    _say(database, ledger, line, rows, False)
    ears.until(lambda: not ears.open)
    ended = time.monotonic() - over_ns
    line.stop()
    database.close()
    gc.collect()
    after = memory.now()
    return {
        "alerts": alerts,
        "cores": os.cpu_count(),
        "page_messages": len(ears.pages),
        "storm_messages": ears.storms,
        "end_messages": ears.ends,
        "told_of": ears.told_of(),
        "open_at_the_end": len(ears.open),
        "seconds_to_write": round(written, 2),
        "seconds_to_first_page": round((ears.first or began) - began, 2),
        "seconds_until_all_told": round(told, 2),
        "seconds_until_end_told": round(ended, 2),
        **shown,
        "rss_before_mib": before,
        "rss_peak_mib": memory.stop(),
        "rss_after_mib": after,
    }


def looked_at(folder: Path) -> dict[str, float | int]:
    """What a person who opens the dashboard in the midst of it waits for, in milliseconds."""
    copy = folder / "shown"
    copy.mkdir()
    with (
        closing(sqlite3.connect(folder / "gw.sqlite")) as source,
        closing(sqlite3.connect(copy / "gradwarden.sqlite")) as target,
    ):
        source.backup(target)
    executable = find()
    if executable is None:
        raise SystemExit("needs chromium: apt-get install -y --no-install-recommends chromium")
    service = Service(copy, evaluate=False)
    try:
        answers = []
        for _ in range(CALLS):
            began = time.perf_counter()
            service.get(f"/v1/alerts?project={PROJECT}&state=pending,firing&limit=500")
            answers.append(1000 * (time.perf_counter() - began))
        with Page(executable, folder / "profile") as page:
            page.size(360, 780)
            usable = []
            for _ in range(CALLS):
                page.go("about:blank")
                began = time.perf_counter()
                page.go(f"{service.url}/oncall?project={PROJECT}")
                page.wait("document.querySelectorAll('[data-incident]').length > 0", limit=120)
                usable.append(1000 * (time.perf_counter() - began))
            cards = int(page.evaluate("document.querySelectorAll('[data-incident]').length"))
    finally:
        service.stop()
    return {
        "alerts_answer_p50_ms": round(statistics.median(answers), 1),
        "oncall_p50_ms": round(statistics.median(usable), 1),
        "oncall_cards": cards,
    }


class Ears:
    """What the receiver took, as it comes in."""

    def __init__(self, heard: Pipe) -> None:
        self._heard = heard
        self.pages: set[str] = set()
        self.open: set[str] = set()
        self.counted = self.storms = self.ends = 0
        self.first: float | None = None

    def told_of(self) -> int:
        return len(self.pages) + self.counted

    def until(self, enough: Any) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while not enough():
            if not self._heard.poll(until - time.monotonic()):
                raise SystemExit("nothing more is told: the storm got stuck")
            self._take(*self._heard.recv())

    def _take(self, key: str, status: str, summary: str, at: float) -> None:
        if status == "resolved":
            self.ends += 1
            self.open.discard(key)
            return
        self.first = self.first or at
        self.open.add(key)
        count = _COUNT.match(summary)
        if count is None:
            self.pages.add(key)
        else:
            self.storms += 1
            self.counted = max(self.counted, int(count[1]))


class Memory:
    """Resident memory of this process in MiB, and its highest value."""

    def __init__(self) -> None:
        self._most = self.now()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @staticmethod
    def now() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)

    def stop(self) -> float:
        self._stopped.set()
        self._thread.join()
        return self._most

    def _watch(self) -> None:
        while not self._stopped.wait(0.1):
            self._most = max(self._most, self.now())


def _runs(connection: Connection, count: int) -> list[int]:
    connection.execute(insert(tables.project).values(name=PROJECT, created_ns=0))
    facts = {
        "project": PROJECT,
        "environment": "prod",
        "page": False,
        "config": {},
        "world_size": 1,
        "status": "running",
        "started_ns": 0,
        "last_seen_ns": 0,
        "position": 0,
    }
    made = [{**facts, "run": f"run-{n:05}", "name": f"run-{n:05}"} for n in range(count)]
    connection.execute(insert(tables.run), made)
    return list(
        connection.execute(tables.run.select().with_only_columns(tables.run.c.id)).scalars()
    )


def _say(
    database: Database, ledger: AlertLedger, line: Line, rows: Sequence[int], ill: bool
) -> None:
    for at in range(0, len(rows), TOGETHER):
        some = rows[at : at + TOGETHER]
        database.write(lambda c, s=some: _judge(c, ledger, s, ill), Priority.ALERT).result()  # type: ignore[misc]
        line.wake()


def _judge(connection: Connection, ledger: AlertLedger, rows: Sequence[int], ill: bool) -> None:
    now_ns = time.time_ns()
    for row in rows:
        run = f"run-{row - 1:05}"
        labels = {"project": PROJECT, "run": run, "run_name": run, "environment": "prod"}
        facts = RunFacts(
            row, PROJECT, run, run, "running", "prod", 1, labels, "http://gw.example", 0, 0, 0
        )
        condition = Condition(NAMES[row % len(NAMES)], "page", ill, {"summary": "it is ill"})
        standing = ledger.open_alerts(PROJECT, connection, row)
        changes = advance(standing, facts, [condition], now_ns)
        ledger.apply(PROJECT, connection, row, changes, now_ns)


@contextmanager
def receiver() -> Iterator[tuple[int, Pipe]]:
    """A webhook receiver in a process of its own: its port, and what it takes."""
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_receive, args=(theirs,))
    process.start()
    try:
        yield mine.recv(), mine
    finally:
        process.terminate()
        process.join()


def _receive(heard: Pipe) -> None:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            summary = told["alerts"][0]["annotations"].get("summary", "")
            with lock:
                heard.send((told["groupKey"], told["status"], summary, time.monotonic()))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    heard.send(server.server_address[1])
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
