"""The Watchdog's beats: only a process whose evaluator runs sends them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from gradwarden_server.alerting.watch import Rooms
from gradwarden_server.model import Notification
from gradwarden_server.notify.spec import Receiver
from gradwarden_server.notify.watchdog import watchdog, watchdogs
from gradwarden_server.store.alerts.outbox import Outbox
from gradwarden_server.store.database import Priority, Transaction

SECOND_NS = 1_000_000_000
SYSTEM = "gradwarden"
"""The project of what concerns the service itself."""
_LEAST_LEASE_NS = 15 * SECOND_NS


class Beats:
    """Who is told that we live, and when each was told last; one process tells each of them."""

    def __init__(
        self, rooms: Rooms, outbox: Outbox, receivers: Sequence[Receiver], holder: str
    ) -> None:
        self._rooms = rooms
        self._outbox = outbox
        self._dogs = watchdogs(receivers)
        self._holder = holder
        self._told_ns: dict[str, int] = {}

    def round(self, now_ns: int) -> None:
        """Tell those whose interval is over."""
        for dog in self._dogs:
            interval_ns = (dog.watchdog_seconds or 0) * SECOND_NS
            if now_ns - self._told_ns.get(dog.name, 0) < interval_ns:
                continue
            lease = self._rooms.evaluation.acquire(
                SYSTEM, f"watchdog:{dog.name}", self._holder, max(2 * interval_ns, _LEAST_LEASE_NS)
            )
            self._told_ns[dog.name] = now_ns
            if lease is None:
                continue
            since_ns = self._rooms.service_started_ns
            message = watchdog(dog, SYSTEM, since_ns, self._rooms.external_url)
            self._rooms.database.write(
                partial(self._enqueue, message=message, now_ns=now_ns), Priority.ALERT
            ).result()

    def _enqueue(self, connection: Transaction, message: Notification, now_ns: int) -> None:
        self._outbox.beat(SYSTEM, connection, message, now_ns)
