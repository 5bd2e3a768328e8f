"""Circuit breakers: a host that does not answer is left alone for a while, whoever is behind it.

After some failures in a row the circuit opens and messages wait. Then one message at a time is
tried; one that the host takes closes the circuit. A host that answers at all, be it with a
refusal or with a wish to be asked later, is there.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from gradwarden_server.notify.message import Failed, Outcome
from gradwarden_server.notify.spec import Receiver

FAILURES = 5
FIRST_SECONDS = 10.0
MOST_SECONDS = 300.0
SECOND_NS = 1_000_000_000


@dataclass(slots=True)
class _Circuit:
    failures: int = 0
    wait_seconds: float = FIRST_SECONDS
    open_until_ns: int | None = None
    """None while it is closed."""
    probing: bool = False
    why: str = ""


def place(receiver: Receiver) -> str:
    """What fails together: the host, or the receiver itself where it has none."""
    return urlsplit(receiver.url).netloc.rpartition("@")[2] or receiver.name


class Breakers:
    """The circuits of all receivers of one process."""

    def __init__(self, places: Mapping[str, str]) -> None:
        """``places`` are hosts by receiver."""
        self._places = dict(places)
        self._circuits = {host: _Circuit() for host in self._places.values()}
        self._lock = threading.Lock()

    def allowed(self, receiver: str, free: int, now_ns: int) -> int:
        """How many tries may begin, of so many that there are hands for."""
        with self._lock:
            circuit = self._circuits[self._places[receiver]]
            if circuit.open_until_ns is None:
                return free
            probe = not circuit.probing and now_ns >= circuit.open_until_ns
            return min(free, int(probe))

    def begins(self, receiver: str) -> None:
        """A try begins; behind an open circuit no other does until it is over."""
        with self._lock:
            self._circuits[self._places[receiver]].probing = True

    def note(self, receiver: str, outcome: Outcome, now_ns: int) -> bool:
        """Take in how a try went; whether it closed the circuit."""
        failed = (
            isinstance(outcome, Failed) and outcome.retry and outcome.retry_after_seconds is None
        )
        with self._lock:
            circuit = self._circuits[self._places[receiver]]
            circuit.probing = False
            if not failed:
                was_open = circuit.open_until_ns is not None
                self._circuits[self._places[receiver]] = _Circuit()
                return was_open
            circuit.failures += 1
            if circuit.failures >= FAILURES:
                if circuit.open_until_ns is not None:
                    circuit.wait_seconds = min(2 * circuit.wait_seconds, MOST_SECONDS)
                circuit.open_until_ns = now_ns + round(circuit.wait_seconds * SECOND_NS)
                circuit.why = outcome.detail
            return False

    def open(self) -> dict[str, str]:
        """Receivers whose circuit is open, and why."""
        with self._lock:
            circuits = {name: self._circuits[host] for name, host in self._places.items()}
            return {
                name: f"{self._places[name]} does not answer ({circuit.why})"
                for name, circuit in circuits.items()
                if circuit.open_until_ns is not None
            }

    def behind(self, receiver: str) -> list[str]:
        """All receivers on the host of this one."""
        host = self._places[receiver]
        return [name for name, one in self._places.items() if one == host]
