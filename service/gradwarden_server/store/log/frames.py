"""The frame log: every received batch as it came, exactly once, acked after its commit."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from gradwarden import wire
from gradwarden_server.store.database import Database
from gradwarden_server.store.log import arrivals
from gradwarden_server.store.log.arrivals import Arrival, Frames
from gradwarden_server.store.records import Ack

_LAYOUTS_KNOWN = 10_000


class FrameLog:
    """Appends are durable before they are acked."""

    def __init__(
        self, database: Database, appended: Callable[[str], None] = lambda project: None
    ) -> None:
        """``appended`` is called with the project after each commit: it wakes the evaluator."""
        self._database = database
        self._appended = appended
        # (project, hash, rows) that a durable commit proved right; a layout never changes.
        self._known: set[tuple[str, str, int]] = set()

    def append(
        self, project: str, header: wire.Header, raw: bytes, received_ns: int
    ) -> Future[Ack]:
        """Store the frames of a checked message that are new; ``raw`` is the message as it came.

        The future raises UnknownStream, RunDeleted, UnknownLayout or RunAlreadyLive; nothing
        is stored then.
        """
        layout = (project, header.layout, header.parameters)
        arrival: Arrival = Frames(project, header, raw, received_ns, layout in self._known)

        def done(future: Future[Ack]) -> None:
            if future.exception() is not None:
                return
            if layout not in self._known and any(header.matrix):
                if len(self._known) >= _LAYOUTS_KNOWN:
                    self._known.clear()
                self._known.add(layout)
            self._appended(project)

        future: Future[Ack] = self._database.write_together(
            arrivals.take, arrival, key=arrivals.KEY
        )
        future.add_done_callback(done)
        return future
