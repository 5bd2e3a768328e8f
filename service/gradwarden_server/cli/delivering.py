"""One imported run on its way to a service, by the protocol that trainers speak."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from gradwarden import wire
from gradwarden.transport import JSON, Answer, HttpTransport, Unreachable
from gradwarden_server.cli.faults import REFUSED, UNREACHABLE, USAGE, CommandError
from gradwarden_server.transfer.frames import packed
from gradwarden_server.transfer.head import AttemptFacts, Head
from gradwarden_server.transfer.source import Source

_TRIES = 8
_LONGEST_PAUSE = 15.0
_SECONDS = 60.0
_FACTS = (
    *("name", "training_job", "model", "dataset", "cluster", "queue", "owner", "team"),
    *("environment", "git_commit", "config", "world_size", "page", "cost_per_hour"),
    "target_loss",
)


@dataclass(slots=True)
class Outcome:
    """What became of one run: frames stored now, and frames that were there before."""

    run: str
    stored: int = 0
    duplicate: int = 0
    url: str = ""


class Delivery:
    """Sends a run's starts, layouts and frames in the order in which they once came."""

    def __init__(
        self, url: str, token: str | None, project: str, known: Callable[[str], bool]
    ) -> None:
        """``known`` says whether the service has a run of that name.

        Raises:
            CommandError: the address is none.
        """
        self._known = known
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise CommandError(f"--url: {url!r}; such as http://127.0.0.1:8321", USAGE)
        self._url = url
        self._transport = HttpTransport(url, token, project)
        self._outcome = Outcome("")
        self._source: Source
        self._layouts: set[str] = set()

    def close(self) -> None:
        """Let go of the connection."""
        self._transport.close()

    def send(self, source: Source, run: str, sent: Callable[[int], None]) -> Outcome:
        """Send a run as ``run``; ``sent`` is told the frames of every batch that was taken.

        Raises:
            CommandError: the name is taken by another run, or the service refuses or is away.
        """
        self._source, self._outcome = source, Outcome(run)
        self._layouts = set()
        batches = self._named(run)
        first = next(batches, None)
        if self._known(run) and not self._ours(first):
            raise CommandError(
                f"run {run} exists already at {self._url} and is another one; nothing was sent. "
                "Import it under a name of its own with --run NAME",
                USAGE,
            )
        started = 1
        self._start(run, source.head.attempts[0] if source.head.attempts else None)
        ordinals = {a.attempt: i for i, a in enumerate(source.head.attempts, 1)}
        while first is not None:
            for attempt in source.head.attempts[started : ordinals[first.stream.attempt]]:
                self._start(run, attempt)
            started = max(started, ordinals[first.stream.attempt])
            self._batch(first)
            sent(len(first.frames))
            first = next(batches, None)
        for attempt in source.head.attempts[started:]:
            self._start(run, attempt)
        return self._outcome

    def _named(self, run: str) -> Iterator[wire.Batch]:
        for batch in packed(self._source.frames()):
            stream = replace(batch.stream, run=run, nonce=self._source.nonce)
            yield replace(batch, stream=stream, sent_ns=time.time_ns())

    def _ours(self, first: wire.Batch | None) -> bool:
        """Whether a run of that name is what an earlier import of the same run left.

        The first frames are told to it: it takes them, as new or as known, from their nonce alone.
        """
        if first is None:
            return False
        answer = self._ask("/v1/ingest", wire.encode(first), wire.MEDIA_TYPE)
        return answer.ok or (answer.status == 409 and answer.slug == "unknown-layout")

    def _start(self, run: str, attempt: AttemptFacts | None) -> None:
        if attempt is None:
            return
        head = self._source.head
        for stream in head.streams:
            if stream.attempt == attempt.attempt:
                body = _start_body(head, run, attempt, asdict(stream), self._source.nonce)
                answer = self._insist("/v1/start", json.dumps(body).encode(), JSON, "start")
                self._outcome.url = str(answer.body.get("url") or "")

    def _batch(self, batch: wire.Batch) -> None:
        layout = self._source.head.layouts.get(batch.layout)
        if layout is not None and batch.layout not in self._layouts:
            body = json.dumps(layout.to_json()).encode()
            self._insist("/v1/layouts", body, JSON, f"layout {batch.layout}")
            self._layouts.add(batch.layout)
        what = f"frames {batch.first_seq} to {batch.last_seq} of rank {batch.stream.rank}"
        answer = self._insist("/v1/ingest", wire.encode(batch), wire.MEDIA_TYPE, what)
        self._outcome.stored += int(answer.body["stored"])
        self._outcome.duplicate += int(answer.body["duplicate"])

    def _insist(self, path: str, body: bytes, media: str, what: str) -> Answer:
        answer = self._ask(path, body, media)
        if answer.ok:
            return answer
        raise CommandError(
            f"{what}: {answer.detail}; {self._outcome.stored} frames were stored before it",
            REFUSED if answer.status in (401, 403) else USAGE,
        )

    def _ask(self, path: str, body: bytes, media: str) -> Answer:
        """The answer, asked for again while the service is away or busy."""
        trouble = ""
        for attempt in range(_TRIES):
            try:
                answer = self._transport.post(path, body, media, _SECONDS)
            except Unreachable as error:
                trouble, asked = str(error), 0.0
            else:
                if answer.status != 429 and answer.status < 500:
                    return answer
                trouble, asked = answer.detail, answer.retry_after or 0.0
            if attempt + 1 < _TRIES:
                time.sleep(min(_LONGEST_PAUSE, max(asked, 0.1 * 2**attempt)))
        raise CommandError(
            f"{self._url} does not take it ({trouble}); {self._outcome.stored} frames are stored, "
            "run the same again to send the rest",
            UNREACHABLE,
        )


def _start_body(
    head: Head, run: str, attempt: AttemptFacts, stream: dict[str, Any], nonce: str
) -> dict[str, Any]:
    facts = asdict(head.run)
    return {
        **{name: facts[name] for name in _FACTS},
        **stream,
        "run": run,
        "nonce": nonce,
        "first_step": attempt.first_step,
        "parent": attempt.parent,
        "started_ns": attempt.started_ns,
    }
