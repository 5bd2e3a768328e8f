"""The courier: takes messages from the outbox, tries them, and writes down how it went.

At least once: a message is claimed under a lease and stays in the outbox until its receipt is
committed, so a crash anywhere between means another try with the same message id.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from gradwarden_server.model import Alert, Notification, Queued, Receipt
from gradwarden_server.notify.breaker import Breakers
from gradwarden_server.notify.message import Failed, Outcome, Sender, Sent
from gradwarden_server.notify.payload import body, group_key

T = TypeVar("T")
Clock = Callable[[], int]

POLL_SECONDS = 1.0
# A receiver has its own few hands, so that a slow one holds up nobody else.
HANDS = 4
SECOND_NS = 1_000_000_000
# The first five tries within a minute, since it may be a page; then the schedule that the
# Standard Webhooks specification recommends (5 s to 24 h).
QUICK_TRIES = 5
QUICK_BASE_SECONDS = 1.0
PATIENT_SECONDS = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
MAX_RETRY_AFTER_SECONDS = 3600.0

log = logging.getLogger(__name__)


class Database(Protocol):
    """The writer of the store, as far as the courier needs it."""

    def write(self, fn: Callable[[Any], T]) -> Future[T]: ...


class Outbox(Protocol):
    """The queue of messages, as far as the courier needs it."""

    def due(self, now_ns: int) -> bool: ...

    def claim(self, conn: Any, receiver: str, now_ns: int, limit: int) -> list[Queued]: ...

    def record(self, conn: Any, queued: Queued, receipt: Receipt) -> None: ...

    def bury(self, conn: Any, known: Sequence[str], now_ns: int) -> int: ...

    def stuck(self, conn: Any, receivers: Mapping[str, str], now_ns: int) -> None: ...

    def hasten(self, conn: Any, receivers: Sequence[str], now_ns: int) -> None: ...


def retry_delay_seconds(tries: int, jitter: Callable[[], float]) -> float | None:
    """How long to wait after so many failed tries; None when it is time to give up."""
    if tries < QUICK_TRIES:
        return QUICK_BASE_SECONDS * 2.0 ** (tries - 1) * jitter()
    patient = tries - QUICK_TRIES
    return float(PATIENT_SECONDS[patient]) if patient < len(PATIENT_SECONDS) else None


def receipt_for(
    outcome: Outcome, tries: int, began_ns: int, ended_ns: int, jitter: Callable[[], float]
) -> Receipt:
    """What an outcome means for the message: done, done but to be repeated, later, or dead."""
    wait: float | None = None
    if isinstance(outcome, Sent):
        wait = outcome.repeat_seconds
    elif outcome.retry:
        wait = retry_delay_seconds(tries, jitter)
        if wait is not None and outcome.retry_after_seconds is not None:
            wait = max(wait, min(outcome.retry_after_seconds, MAX_RETRY_AFTER_SECONDS))
    return Receipt(
        ok=isinstance(outcome, Sent),
        detail=outcome.detail,
        at_ns=ended_ns,
        duration_seconds=max(0, ended_ns - began_ns) / SECOND_NS,
        retry_at_ns=None if wait is None else ended_ns + int(wait * SECOND_NS),
    )


def trial(sender: Sender, receiver: str, project: str, clock: Clock) -> Receipt:
    """Send a test alert past the outbox, firing and then resolved: ``gradwarden receivers test``.

    It fires, so that something is seen to arrive, and resolves, so that nothing stays open.
    """
    began_ns = clock()
    group = {"alertname": "GradwardenTest", "project": project}
    alert = Alert(
        id=None,
        project=project,
        run=None,
        labels={**group, "severity": "note"},
        annotations={"summary": "A test message from gradwarden. Nothing is wrong."},
        state="firing",
        active_ns=began_ns,
        fired_ns=began_ns,
        reason="test",
    )
    over = replace(alert, state="resolved", resolved_ns=began_ns)
    outcome: Outcome = Sent("")
    for seq, told in enumerate((alert, over), start=1):
        message = Notification(
            project, receiver, group_key(group), "note", body(receiver, group, [told], "")
        )
        outcome = _send(sender, Queued(0, message, seq, 1, began_ns), began_ns)
        if isinstance(outcome, Failed):
            break
    ended_ns = clock()
    seconds = max(0, ended_ns - began_ns) / SECOND_NS
    return Receipt(isinstance(outcome, Sent), outcome.detail, ended_ns, seconds)


class Courier:
    """The delivery thread. ``wake`` after a commit; a poll each second covers a lost wake."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        senders: Mapping[str, Sender],
        clock: Clock,
        jitter: Callable[[], float] = random.random,
        places: Mapping[str, str] | None = None,
    ) -> None:
        """``places`` are the hosts of receivers; without them each receiver fails alone."""
        self._database = database
        self._outbox = outbox
        self._senders = dict(senders)
        self._clock = clock
        self._jitter = jitter
        self._breakers = Breakers(places or {name: name for name in self._senders})
        self._stuck: Mapping[str, str] = {}
        self._stuck_ns = 0
        self._woken = threading.Event()
        self._stopping = False
        self._lock = threading.Lock()
        self._busy = dict.fromkeys(self._senders, 0)
        self._hands = {
            name: ThreadPoolExecutor(HANDS, thread_name_prefix=f"courier-{name}")
            for name in self._senders
        }
        self._thread = threading.Thread(target=self._loop, name="courier", daemon=True)

    def start(self) -> None:
        """Begin to deliver; messages for receivers that were taken from the file are buried."""
        known, now_ns = tuple(self._senders), self._clock()
        buried = self._database.write(lambda conn: self._outbox.bury(conn, known, now_ns)).result()
        if buried:
            log.warning("buried messages of unknown receivers", extra={"messages": buried})
        self._thread.start()

    def wake(self) -> None:
        """Look into the outbox now."""
        self._woken.set()

    def stop(self) -> None:
        """Finish the tries under way and stop; what is not sent stays in the outbox."""
        self._stopping = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()
        for hands in self._hands.values():
            hands.shutdown(wait=True)

    def test(self, name: str, project: str) -> Receipt:
        """Send a test alert; raises KeyError for a name that is not configured."""
        return trial(self._senders[name], name, project, self._clock)

    def broken(self) -> dict[str, bool]:
        """Whether the circuit of each receiver is open."""
        stuck = self._breakers.open()
        return {name: name in stuck for name in self._senders}

    def _loop(self) -> None:
        while not self._stopping:
            try:
                self._round()
            except Exception:
                # The database may be away for a while; the messages wait in it.
                log.exception("the outbox could not be read")
            self._woken.wait(POLL_SECONDS)
            self._woken.clear()

    def _round(self) -> None:
        now_ns = self._clock()
        self._complain(now_ns)
        with self._lock:
            busy = dict(self._busy)
        free = {name: self._breakers.allowed(name, HANDS - n, now_ns) for name, n in busy.items()}
        free = {name: hands for name, hands in free.items() if hands > 0}
        if not free or not self._outbox.due(now_ns):
            return
        for queued in self._database.write(lambda conn: self._claim(conn, free, now_ns)).result():
            name = queued.notification.receiver
            self._breakers.begins(name)
            with self._lock:
                self._busy[name] += 1
            self._hands[name].submit(self._deliver, queued)

    def _claim(self, conn: Any, free: Mapping[str, int], now_ns: int) -> list[Queued]:
        claimed: list[Queued] = []
        for name, hands in free.items():
            claimed.extend(self._outbox.claim(conn, name, now_ns, hands))
        return claimed

    def _complain(self, now_ns: int) -> None:
        """Let groups know that their messages wait for a host that does not answer."""
        stuck = self._breakers.open()
        if stuck and (stuck != self._stuck or now_ns - self._stuck_ns >= SECOND_NS):
            self._database.write(lambda conn: self._outbox.stuck(conn, stuck, now_ns)).result()
            self._stuck_ns = now_ns
        self._stuck = stuck

    def _deliver(self, queued: Queued) -> None:
        name = queued.notification.receiver
        try:
            began_ns = self._clock()
            outcome = _send(self._senders[name], queued, began_ns)
            receipt = receipt_for(outcome, queued.attempts, began_ns, self._clock(), self._jitter)
            _tell(queued, receipt)
            closed = self._breakers.note(name, outcome, receipt.at_ns)

            def kept(conn: Any) -> None:
                self._outbox.record(conn, queued, receipt)
                if closed:  # what waits for its next try need not wait any longer
                    self._outbox.hasten(conn, self._breakers.behind(name), receipt.at_ns)

            self._database.write(kept).result()
        except Exception:
            # Not recorded, so its lease runs out and it is tried again.
            log.exception("a receipt could not be kept", extra={"receiver": name})
        finally:
            with self._lock:
                self._busy[name] -= 1
            self._woken.set()


def _send(sender: Sender, queued: Queued, now_ns: int) -> Outcome:
    try:
        return sender.send(queued, now_ns)
    except Exception as error:
        # A bug of ours must not lose a page; its text may hold a credential, so it stays out.
        log.exception("a receiver raised", extra={"receiver": queued.notification.receiver})
        return Failed(f"internal error: {type(error).__name__}", retry=True)


def _tell(queued: Queued, receipt: Receipt) -> None:
    facts: dict[str, Any] = {
        "receiver": queued.notification.receiver,
        "group_key": queued.notification.group_key,
        "seq": queued.seq,
        "attempt": queued.attempts,
        "detail": receipt.detail,
    }
    if receipt.ok:
        log.info("delivered", extra=facts)
    elif receipt.retry_at_ns is not None:
        log.warning("delivery failed, will be tried again", extra=facts)
    else:
        log.error("delivery failed for good", extra=facts)
