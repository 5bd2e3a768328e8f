"""What processes on one PostgreSQL tell each other: frames came in, commands or alerts
changed.

A notice is sent with the commit that it is about, so whoever hears it finds what it tells
of. It is a wake-up and never a fact: one that is lost costs the wait until the next poll.
SQLite has one process and needs none.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text

if TYPE_CHECKING:
    from gradwarden_server.store.database import Database

log = logging.getLogger(__name__)

CHANNEL = "gradwarden"
_KEY = "gradwarden_notices"
_PUBLISH = text("SELECT pg_notify(:channel, :payload)")
_RETRY_LEAST_SECONDS = 0.2
_RETRY_MOST_SECONDS = 5.0


class Topic(StrEnum):
    """What changed."""

    FRAMES = "frames"
    COMMANDS = "commands"
    ALERTS = "alerts"


def announce(connection: Connection, topic: Topic) -> None:
    """Let other processes hear of ``topic`` once the caller's transaction is committed."""
    if connection.dialect.name == "postgresql":
        connection.info.setdefault(_KEY, set()).add(topic)


def publish(connection: Connection, origin: str) -> None:
    """Send what was announced, each topic once; the last statement before the commit.

    ``origin`` names this process, which knows already and does not listen to itself.
    """
    for topic in sorted(connection.info.pop(_KEY, ())):
        connection.execute(_PUBLISH, {"channel": CHANNEL, "payload": f"{topic} {origin}"})


class Listener:
    """One connection that hears what other processes announce; does nothing on SQLite.

    Whenever it is connected anew, everything may have happened meanwhile, so everybody is
    called once.
    """

    def __init__(self, database: Database, heard: Mapping[Topic, Callable[[], None]]) -> None:
        """``heard`` says whom to call; they return at once, since they run on this thread."""
        self._database = database
        self._heard = heard
        self._hangup, self._line = socket.socketpair()
        self._thread = threading.Thread(target=self._loop, name="gradwarden-listener", daemon=True)

    def start(self) -> None:
        """Begin to listen; the database may be away."""
        if self._database.kind == "postgresql":
            self._thread.start()

    def stop(self) -> None:
        """Hang up."""
        self._hangup.close()
        if self._thread.is_alive():
            self._thread.join()
        self._line.close()

    def _loop(self) -> None:
        failed = self._database.engine.dialect.loaded_dbapi.Error
        pause = _RETRY_LEAST_SECONDS
        while not self._hung_up(0.0):
            try:
                with closing(self._database.connect_alone()) as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    pause = _RETRY_LEAST_SECONDS
                    self._listen(connection)
            except (failed, OSError) as error:
                if pause == _RETRY_LEAST_SECONDS:
                    log.warning("other processes are not heard, runs are polled: %s", error)
                if self._hung_up(pause):
                    return
                pause = min(2 * pause, _RETRY_MOST_SECONDS)

    def _listen(self, connection: Any) -> None:
        """Until someone hangs up; raises where the connection breaks."""
        for call in self._heard.values():
            call()
        with selectors.DefaultSelector() as either:
            either.register(self._line, selectors.EVENT_READ)
            either.register(connection.fileno(), selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in either.select()}
                if self._line in ready:
                    return
                for topic in self._topics(connection):
                    self._heard[topic]()

    def _topics(self, connection: Any) -> set[Topic]:
        """What others announced since the last look."""
        found = set()
        for notice in connection.notifies(timeout=0):
            word, _, origin = notice.payload.partition(" ")
            # A newer process may announce what this one does not know.
            if origin != self._database.origin and word in self._heard:
                found.add(Topic(word))
        return found

    def _hung_up(self, timeout: float) -> bool:
        with selectors.DefaultSelector() as either:
            either.register(self._line, selectors.EVENT_READ)
            return bool(either.select(timeout))
