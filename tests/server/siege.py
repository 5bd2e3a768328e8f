"""Traffic that outlives faults: each batch is sent until it is acked, and then looked for."""

from __future__ import annotations

import json
import math
import random
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import httpx

from gradwarden import wire
from gradwarden_server.store.database import Database
from gradwarden_server.store.log.entries import LogReader
from gradwarden_server.store.shelves.shelf import SeriesEngine, Shelves
from gradwarden_server.store.shelves.shelf_tables import TableShelf
from tests.server.pager import PATIENCE, LocalReceiver
from tests.server.traffic import FRAMES, frame, start_body
from tests.service import Service

ROWS = 64
LAYOUT = wire.Layout(
    tuple(
        wire.Parameter(f"blocks.{i}.weight", (8, 8), "float32", f"blocks.{i}", "matrix")
        for i in range(ROWS)
    )
)
PER_BATCH = 4
SICK_EVERY = 200
_PAUSE_SECONDS = 0.05


def values(run: str, seq: int) -> bytes:
    """The matrix of one frame: no two alike, and hardly any of it can be compressed away.

    A run whose name begins with "sick" meets NaN now and then.
    """
    chance = random.Random(f"{run} {seq}")
    rows = [
        struct.pack("<6f", 1 + chance.random(), 1 + chance.random(), 0, 0, 1, chance.random())
        for _ in range(ROWS)
    ]
    if run.startswith("sick") and seq % SICK_EVERY == SICK_EVERY // 2:
        rows[1] = struct.pack("<6f", math.nan, math.nan, 64, 0, 0, 0)
    return b"".join(rows)


def message(run: str, first: int, count: int = PER_BATCH) -> bytes:
    """The batch of ``count`` frames from seq ``first``."""
    frames = tuple(frame(seq, values=values(run, seq)) for seq in range(first, first + count))
    key = wire.StreamKey(run, "a1", 0, "n1")
    return wire.encode(wire.Batch(key, frames, LAYOUT.hash, ROWS, sent_ns=time.time_ns()))


def announce(service: Service, run: str) -> None:
    """Start a run and send its layout."""
    answer = service.call("POST", "/v1/start", json=start_body(run))
    assert answer.status_code == 200, answer.text
    assert service.call("POST", "/v1/layouts", json=LAYOUT.to_json()).status_code == 200


class Trainer(threading.Thread):
    """Sends batch after batch of one run, each until it is acked, to whoever answers."""

    def __init__(self, services: Iterable[Service], run: str) -> None:
        super().__init__(name=f"trainer of {run}", daemon=True)
        self.services = list(services)
        self.run_name = run
        self.acked = 0
        """The last seq that a service acked: all up to it are."""
        self.refusals: Counter[int] = Counter()
        self._done = threading.Event()

    def run(self) -> None:
        turn = 0
        with httpx.Client(timeout=PATIENCE) as client:
            while not self._done.is_set():
                body = message(self.run_name, self.acked + 1)
                while not self._done.is_set():
                    turn += 1
                    url = self.services[turn % len(self.services)].url + "/v1/ingest"
                    try:
                        answer = client.post(url, content=body, headers=FRAMES)
                    except httpx.HTTPError:
                        self.refusals[0] += 1
                    else:
                        if answer.status_code == 200:
                            break
                        self.refusals[answer.status_code] += 1
                    self._done.wait(_PAUSE_SECONDS)
                else:
                    return
                self.acked += PER_BATCH

    def more(self, frames: int) -> None:
        """Wait until so many more are acked."""
        goal = self.acked + frames
        until(lambda: self.acked >= goal, f"{self.run_name} is at {self.acked} of {goal}")

    def finish(self) -> None:
        """Stop, in the middle of a batch perhaps: that one may be stored or not."""
        self._done.set()
        self.join(2 * PATIENCE)
        assert not self.is_alive()


def until(done: Callable[[], bool], why: str, patience: float = PATIENCE) -> None:
    """Wait for something that must come."""
    deadline = time.monotonic() + patience
    while not done():
        assert time.monotonic() < deadline, why
        time.sleep(0.02)


def told(pager: LocalReceiver) -> dict[str, list[tuple[str, str]]]:
    """What the pager was told of each fingerprint: the incident's start and its state, in order."""
    heard: dict[str, list[tuple[str, str]]] = {}
    for request in list(pager.requests):
        for alert in json.loads(request.body)["alerts"]:
            said = alert["startsAt"], alert["status"]
            heard.setdefault(alert["fingerprint"], []).append(said)
    return heard


def check_told(service: Service, pager: LocalReceiver, runs: Iterable[str]) -> None:
    """All is judged, and all that fired is told, to its end; none that was none, and none anew.

    Of incidents of one name that were over before they could be told, the last is named for all.
    """
    runs = list(runs)
    until(
        lambda: not any(service.get(f"/v1/runs/{run}")["unjudged"] for run in runs),
        "it is not judged to its end",
    )

    def fired() -> list[dict[str, Any]]:
        return [
            alert
            for run in runs
            for alert in service.get("/v1/alerts", params={"run": run, "limit": "500"})["items"]
            if alert["fired_at"] and alert["severity"] in ("page", "ticket") and not alert["muted"]
        ]

    def unsaid() -> dict[str, str]:
        """Incidents of whose state the pager's last word is not."""
        states = {one["fingerprint"]: one["state"] for one in sorted(fired(), key=_start)}
        heard = {name: said[-1][1] for name, said in told(pager).items()}
        return {name: state for name, state in states.items() if heard.get(name) != state}

    assert fired(), "nobody fell ill"
    until(lambda: not unsaid(), f"the pager does not know of {unsaid()}")
    assert not [alert for alert in fired() if not alert["notified"]], "nobody was told of it"
    counts = Counter(one["fingerprint"] for one in fired())
    for name, said in told(pager).items():
        assert len({start for start, _ in said}) <= counts[name], "told of what was none"
        # "firing" sorts before "resolved": no beginning behind its end, or behind a later one.
        assert said == sorted(said), f"out of order: {said}"


def _start(alert: dict[str, Any]) -> str:
    return str(alert["active_at"])


def check_kept(url: str, acked: dict[str, int], series: SeriesEngine | None = None) -> None:
    """Every acked frame is there once, with its values; one in doubt at most once.

    Args:
        url: The database, which no service need hold.
        acked: The last acked seq of each run.
        series: Where values lie, if not in the database.
    """
    database = Database(url)
    reader = LogReader(database, shelves=Shelves(TableShelf(database), series))
    try:
        for run, last in acked.items():
            found: Counter[int] = Counter()
            for entry in reader.after("default", run, 0, 10**9):
                for kept in entry.batch().frames:
                    found[kept.seq] += 1
                    assert kept.values == values(run, kept.seq), f"{run}: frame {kept.seq}"
            lost = sorted(set(range(1, last + 1)) - set(found))
            assert not lost, f"{run}: acked and lost: {lost[:20]}"
            doubled = sorted(seq for seq, times in found.items() if times > 1)
            assert not doubled, f"{run}: stored twice: {doubled[:20]}"
            assert set(found) <= set(range(1, last + PER_BATCH + 1))
    finally:
        database.close()
