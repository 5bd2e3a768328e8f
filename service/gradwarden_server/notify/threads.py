"""Where a group's messages hang together in a chat or a mailbox, from its first to its resolve."""

from __future__ import annotations

from typing import Protocol

from gradwarden_server.model import Thread


class Threads(Protocol):
    """What the first message of each group was, over restarts."""

    def find(self, project: str, receiver: str, group_key: str) -> Thread | None: ...

    def keep(self, project: str, receiver: str, group_key: str, thread: Thread) -> None: ...

    def forget(self, project: str, receiver: str, group_key: str) -> None: ...


class HeldThreads:
    """Threads in memory, for who sends without a database."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str, str], Thread] = {}

    def find(self, project: str, receiver: str, group_key: str) -> Thread | None:
        """The thread of a group that was told and is not over."""
        return self._held.get((project, receiver, group_key))

    def keep(self, project: str, receiver: str, group_key: str, thread: Thread) -> None:
        """Remember it."""
        self._held[project, receiver, group_key] = thread

    def forget(self, project: str, receiver: str, group_key: str) -> None:
        """The group is over; what comes next begins anew."""
        self._held.pop((project, receiver, group_key), None)
