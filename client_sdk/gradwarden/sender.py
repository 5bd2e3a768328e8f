"""The thread that delivers: outbox or spool, oldest first, one in flight, with backoff."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradwarden.courier import TIMEOUT, Courier, Verdict
from gradwarden.errors import Faults, say
from gradwarden.outbox import Losses, Outbox, Record
from gradwarden.spool import Spool
from gradwarden.sync import send_directory
from gradwarden.transport import JSON, Transport, Unreachable

HEARTBEAT = 10.0


class Sender:
    """A daemon thread that empties the outbox into the service, or into the spool."""

    def __init__(
        self,
        outbox: Outbox,
        spool: Spool | None,
        transport: Transport | None,
        losses: Losses,
        faults: Faults,
        act: Callable[[str, dict[str, Any]], None],
        beat: Callable[[], dict[str, Any] | None],
        orphans: Callable[[], list[Path]],
        pace: Callable[[object], None],
    ) -> None:
        self._outbox, self._spool, self._transport = outbox, spool, transport
        self._losses, self._faults, self._act, self._beat = losses, faults, act, beat
        self.courier: Courier | None = None
        if transport is not None:
            self.courier = Courier(transport, losses, self._commands, pace)
        self._stopping = threading.Event()
        self._deadline = float("inf")
        self._handled: set[str] = set()
        self._said: str | None = None
        self._announced = False
        self.cpu_seconds = 0.0
        """What this thread has used of the processor so far."""
        self._in_flight: Record | None = None
        self._closed = False
        self._tried_at_end = False
        self._next_beat = time.monotonic() + HEARTBEAT
        self._orphans: Callable[[], list[Path]] | None = orphans
        self._thread = threading.Thread(target=self._run, name="gradwarden-send", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, deadline: float) -> None:
        """Deliver until the monotonic ``deadline``, then leave the rest to the spool."""
        self._deadline = deadline
        self._stopping.set()
        self._outbox.wake()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._closed = True
        self.spill()
        if self._spool is not None:
            self._spool.close()

    def spill(self) -> None:
        """Move what the outbox holds to the end of the spool."""
        for record in self._outbox.take_all():
            if self._spool is None:
                self._losses.add("no spool", record.frames)
            else:
                self._spool.append(record)

    def _run(self) -> None:
        while not (self._stopping.is_set() and self._finished()):
            self.cpu_seconds = time.thread_time()
            try:
                self._turn()
            except Exception as error:  # our own bug: the record goes, delivery goes on
                self._faults.record("delivery", error, fatal=False)
                if self._in_flight is not None:
                    self._losses.add("delivery failed", self._in_flight.frames)
                    self._forget(self._in_flight)

    def _finished(self) -> bool:
        empty = not len(self._outbox) and (self._spool is None or self._spool.head() is None)
        return self.courier is None or empty or time.monotonic() >= self._deadline

    def _turn(self) -> None:
        if self.courier is None:
            self._outbox.wait(1.0)
            self.spill()
            return
        self._in_flight = None
        self._heartbeat()
        record = self._spool.head() if self._spool is not None else None
        if record is None:
            record = self._outbox.head()
        elif len(self._outbox):
            self.spill()  # the older ones on disk go first
        if record is None:
            self._outbox.wait(min(1.0, max(0.0, self._next_beat - time.monotonic())))
            return
        if self._orphans is not None and not self._adopt(self._orphans):
            return
        left = self._deadline - time.monotonic()
        self._in_flight = record
        verdict = self.courier.deliver(record, max(0.1, min(TIMEOUT, left)))
        if verdict is Verdict.LATER:
            self._down()
            return
        self._say(None)
        if record.kind == "start":
            self._next_beat = 0.0  # by heartbeats the service knows who lives
            self._announce()
        self._forget(record)

    def _forget(self, record: Record) -> None:
        """Take a record that was acked or given up from where it waits."""
        self._in_flight = None
        self._outbox.remove(record)
        if self._spool is not None:
            self._spool.remove(record)

    def _adopt(self, orphans: Callable[[], list[Path]]) -> bool:
        """Before our first record, what a killed process of this run and rank left behind.

        Its attempt is older: the service should see it end before ours begins.
        """
        assert self.courier is not None
        for directory in orphans():
            sent = send_directory(directory, self.courier)
            if not sent and self.courier.trouble is not None:
                self._down()
                return False
        self._orphans = None
        return True

    def _down(self) -> None:
        assert self.courier is not None
        self._say(self.courier.trouble)
        if self._spool is not None:
            self.spill()
        until = time.monotonic() + self.courier.pause
        while time.monotonic() < until:
            if self._stopping.is_set():
                # The service may be back since: one more try, then the spool keeps the rest.
                if self._tried_at_end:
                    self._deadline = min(self._deadline, time.monotonic())
                self._tried_at_end = True
                return
            self._outbox.nap(min(0.5, max(0.001, until - time.monotonic())))
            if self._spool is not None:
                self.spill()

    def _say(self, trouble: str | None) -> None:
        """An outage is said once when it begins and once when it ends, never after our end."""
        if self._closed:
            return
        if trouble is not None and self._said is None:
            where = f"; frames wait in {self._spool.directory}" if self._spool else ""
            say(f"cannot deliver ({trouble}){where}; training goes on")
        elif trouble is None and self._said is not None:
            say("delivery works again")
        self._said = trouble

    def _announce(self) -> None:
        """Rank 0 says once where people see this run."""
        body = self._beat()
        url = self.courier.url if self.courier is not None else None
        if self._announced or self._closed or url is None or body is None or body["rank"] != 0:
            return
        self._announced = True
        say(f"this run's page: {url}")

    def _heartbeat(self) -> None:
        now = time.monotonic()
        if now < self._next_beat or self._said is not None:
            return
        self._next_beat = now + HEARTBEAT
        body = self._beat()
        if body is not None and self.courier is not None:
            try:
                self.courier.post("/v1/heartbeat", json.dumps(body).encode(), JSON, TIMEOUT)
            except Unreachable:
                return  # the next batch will find out and say so

    def _commands(self, commands: list[Any]) -> None:
        body = self._beat()
        for command in commands:
            if not isinstance(command, dict) or body is None or self._transport is None:
                continue
            key = str(command.get("id"))
            if key not in self._handled:
                self._handled.add(key)
                args = command.get("args")
                self._act(str(command.get("kind")), args if isinstance(args, dict) else {})
            who = {k: body[k] for k in ("run", "attempt", "rank", "nonce")}
            try:
                self._transport.post(
                    f"/v1/commands/{key}/ack", json.dumps(who).encode(), JSON, TIMEOUT
                )
            except Unreachable:
                return  # it will be told again, and is idempotent
