"""One reading of each topic for all who listen to it, and nothing at all while nobody does."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.concurrency import run_in_threadpool

from gradwarden_server.api.news import News, State, changed

log = logging.getLogger(__name__)

_LEAST_SECONDS = 0.25
"""Between two messages of a topic: what changes meanwhile is told together."""
_SHARE = 10.0
"""Of the time that a reading took this many times is waited before the next."""
_MISSED_SECONDS = 5.0
"""A notice may be lost, and ages have none: topics are read this often in any case."""
_KEPT_SECONDS = 30.0
"""A topic is read on for whoever left and comes back."""
_REMEMBERED = 512
_QUEUED = 64

Key = tuple[str, str]
Read = Callable[[str, str, int], State]


class Full(Exception):
    """As many listen as may."""


class Listener:
    """One open stream: messages wait here until they are sent; None ends it."""

    def __init__(self, topics: frozenset[Key]) -> None:
        self.topics = topics
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    def tell(self, message: bytes, resync: bytes) -> None:
        """Queue a message; who is far behind gets ``resync`` in place of all that waits."""
        if self.queue.qsize() >= _QUEUED:
            while not self.queue.empty():
                self.queue.get_nowait()
            message = resync
        self.queue.put_nowait(message)


@dataclass(slots=True)
class _Topic:
    state: State
    since: int
    """The newest message when the topic was first read; earlier ones cannot be resumed."""
    listeners: set[Listener] = field(default_factory=set)
    left_at: float = 0.0


class Hub:
    """Reads topics while they have listeners; lives in the event loop of the service."""

    def __init__(self, read: Read, most: int) -> None:
        """``read`` gives a project's topic as it is; at most ``most`` streams are open."""
        self._read = read
        self._most = most
        self._epoch = secrets.token_hex(4)
        self._number = 0
        self._topics: dict[Key, _Topic] = {}
        self._past: deque[tuple[int, Key, bytes]] = deque(maxlen=_REMEMBERED)
        self._listeners: set[Listener] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stirred: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def open_streams(self) -> int:
        """How many listen."""
        return len(self._listeners)

    def stir(self) -> None:
        """Something was committed; from any thread, at once and for nothing if nobody listens."""
        loop, stirred = self._loop, self._stirred
        if loop is not None and stirred is not None and not stirred.is_set():
            with suppress(RuntimeError):  # the loop ended this moment
                loop.call_soon_threadsafe(stirred.set)

    async def join(self, project: str, topics: Iterable[str], last_id: str | None) -> Listener:
        """Listen to a project's topics, from after the message ``last_id`` where that is known.

        Else, and where something was missed, the first message is ``resync``.

        Raises:
            Full: too many listen already.
        """
        if self._closed or len(self._listeners) >= self._most:
            raise Full
        keys = frozenset((project, topic) for topic in topics)
        listener = Listener(keys)
        self._listeners.add(listener)
        try:
            while new := sorted(keys - self._topics.keys()):
                state = await self._now(new[0])
                first = _Topic(state, self._number, left_at=time.monotonic())
                self._topics.setdefault(new[0], first)
        except BaseException:
            self._listeners.discard(listener)
            raise
        missed = self._since(keys, last_id)
        if missed is None:
            listener.queue.put_nowait(self._resync())
        else:
            for message in missed:
                listener.queue.put_nowait(message)
        for key in keys:
            self._topics[key].listeners.add(listener)
        if self._task is None:
            self._loop, self._stirred = asyncio.get_running_loop(), asyncio.Event()
            self._task = asyncio.create_task(self._watch())
        return listener

    def leave(self, listener: Listener) -> None:
        """No longer listen."""
        self._listeners.discard(listener)
        for key in listener.topics:
            topic = self._topics.get(key)
            if topic is not None and listener in topic.listeners:
                topic.listeners.discard(listener)
                topic.left_at = time.monotonic()

    def close(self) -> None:
        """End every stream, and open none any more: the service stops."""
        self._closed = True
        self._dismiss()
        if self._task is not None:
            self._task.cancel()

    def _dismiss(self) -> None:
        for listener in self._listeners:
            listener.queue.put_nowait(None)

    async def _watch(self) -> None:
        assert self._stirred is not None
        try:
            while self._topics:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stirred.wait(), _MISSED_SECONDS)
                self._stirred.clear()
                began = time.monotonic()
                self._forget(began)
                for key in list(self._topics):
                    await self._look(key)
                took = time.monotonic() - began
                await asyncio.sleep(max(_LEAST_SECONDS, _SHARE * took))
        except Exception:
            # Whoever listens asks for himself from now on, and is told what is wrong.
            log.exception("topics cannot be read; streams are closed")
            self._dismiss()
            self._topics.clear()
        finally:
            self._task = self._loop = self._stirred = None

    def _forget(self, now: float) -> None:
        for key, topic in list(self._topics.items()):
            if not topic.listeners and now - topic.left_at > _KEPT_SECONDS:
                del self._topics[key]

    async def _look(self, key: Key) -> None:
        state = await self._now(key)
        topic = self._topics.get(key)
        if topic is None:
            return
        news = changed(key[1], topic.state, state)
        topic.state = state
        if news is not None:
            self._publish(key, topic, news)

    def _publish(self, key: Key, topic: _Topic, news: News) -> None:
        self._number += 1
        text = json.dumps(news.data, separators=(",", ":"), allow_nan=False)
        message = (
            f"id: {self._epoch}.{self._number}\nevent: {news.event}\ndata: {text}\n\n".encode()
        )
        self._past.append((self._number, key, message))
        for listener in topic.listeners:
            listener.tell(message, self._resync())

    async def _now(self, key: Key) -> State:
        return await run_in_threadpool(self._read, *key, time.time_ns())

    def _since(self, keys: frozenset[Key], last_id: str | None) -> list[bytes] | None:
        """What was told after that message, None where that is not known any more."""
        epoch, _, number = (last_id or "").partition(".")
        if epoch != self._epoch or not number.isdecimal():
            return None
        seen = int(number)
        oldest = self._past[0][0] if self._past else self._number + 1
        whole = seen >= oldest - 1 and all(self._topics[key].since <= seen for key in keys)
        return [m for n, key, m in self._past if n > seen and key in keys] if whole else None

    def _resync(self) -> bytes:
        return f"id: {self._epoch}.{self._number}\nevent: resync\ndata: {{}}\n\n".encode()
