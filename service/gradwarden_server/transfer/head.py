"""What a run is apart from its frames: facts, attempts, streams, layouts; as JSON and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_type_hints

from gradwarden import wire
from gradwarden_server.transfer.faults import Unreadable

VERSION = 1
"""Of the content of all formats; a newer service reads all older ones."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One run as its owner knows it. Times are UTC nanoseconds."""

    run: str
    name: str | None = None
    training_job: str | None = None
    model: str | None = None
    dataset: str | None = None
    cluster: str | None = None
    queue: str | None = None
    owner: str | None = None
    team: str | None = None
    environment: str | None = None
    git_commit: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    world_size: int = 1
    page: bool = False
    cost_per_hour: float | None = None
    target_loss: float | None = None
    status: str = "running"
    started_ns: int = 0
    ended_ns: int | None = None


@dataclass(frozen=True, slots=True)
class AttemptFacts:
    """One attempt; attempts are listed in their order."""

    attempt: str
    parent: str | None = None
    first_step: int = 0
    started_ns: int = 0
    ended_ns: int | None = None
    status: str = "running"


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """One rank of one attempt, and where it ran."""

    attempt: str
    rank: int
    group: int = 0
    shard: int = 0
    shards: int = 1
    host: str = ""
    pid: int = 0
    place: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Head:
    """Everything of a run but its frames; ``layouts`` by their hashes."""

    run: RunFacts
    attempts: Sequence[AttemptFacts]
    streams: Sequence[StreamFacts]
    layouts: Mapping[str, wire.Layout]

    def to_json(self) -> dict[str, Any]:
        """One object, without the layouts."""
        return {
            "version": VERSION,
            **asdict(self.run),
            "attempts": [asdict(a) for a in self.attempts],
            "streams": [asdict(s) for s in self.streams],
        }

    def to_text(self) -> str:
        """One line of JSON with the layouts in it."""
        layouts = [layout_json(layout) for layout in self.layouts.values()]
        return json.dumps({**self.to_json(), "layouts": layouts}, allow_nan=False)

    @classmethod
    def from_text(cls, where: str, text: str) -> Head:
        """The inverse of :meth:`to_text`.

        Raises:
            Unreadable: it is no JSON object, or a field of it is wrong.
        """
        data = parse(where, text)
        layouts = _list(where, data, "layouts")
        return cls.from_json(where, data, (layout_from(where, one) for one in layouts))

    @classmethod
    def from_json(cls, where: str, data: Mapping[str, Any], layouts: Any = ()) -> Head:
        """The inverse of :meth:`to_json`.

        Raises:
            Unreadable: a field is wrong.
        """
        if data.get("version") != VERSION:
            remedy = f"this gradwarden reads version {VERSION}; upgrade it, or export again"
            raise Unreadable(where, "version", data.get("version"), remedy)
        head = cls(
            _record(RunFacts, where, data),
            [_record(AttemptFacts, where, a) for a in _list(where, data, "attempts")],
            [_record(StreamFacts, where, s) for s in _list(where, data, "streams")],
            {layout.hash: layout for layout in layouts},
        )
        for name in (head.run.run, *(a.attempt for a in head.attempts)):
            if not wire.is_identifier(name):
                remedy = "letters, digits and . _ : + - only, at most 128 of them"
                raise Unreadable(where, "run or attempt", name, remedy)
        known = {a.attempt for a in head.attempts}
        for stream in head.streams:
            if stream.attempt not in known:
                remedy = "name one of the attempts listed"
                raise Unreadable(where, "streams.attempt", stream.attempt, remedy)
        return head


def layout_json(layout: wire.Layout) -> dict[str, Any]:
    """A layout with its hash."""
    return {"hash": layout.hash, **layout.to_json()}


def layout_from(where: str, data: Any) -> wire.Layout:
    """The layout of :func:`layout_json`, proved by its hash.

    Raises:
        Unreadable: it is none, or was changed.
    """
    try:
        layout = wire.Layout.from_json(data)
    except wire.WireError as error:
        raise Unreadable(where, f"layout.{error.field}", "as it is", str(error)) from None
    if data.get("hash") != layout.hash:
        remedy = f"the rows as they stand make {layout.hash}; export the run again"
        raise Unreadable(where, "layout.hash", data.get("hash"), remedy)
    return layout


def parse(where: str, text: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Unreadable: it is none.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        remedy = f"not JSON ({str(error)[:80]}); export the run again"
        raise Unreadable(where, "line", text[:60], remedy) from None
    if not isinstance(data, dict):
        raise Unreadable(where, "line", text[:60], "expected a JSON object")
    return data


_KINDS: Mapping[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "text"),
    int: ((int,), "a whole number, not below 0"),
    bool: ((bool,), "true or false"),
    str | None: ((str, type(None)), "text or null"),
    int | None: ((int, type(None)), "a whole number, not below 0, or null"),
    float | None: ((float, int, type(None)), "a number or null"),
    dict[str, Any]: ((dict,), "a JSON object"),
}


def _record(kind: Any, where: str, data: Any) -> Any:
    """A dataclass from its JSON; members that it does not know are left out."""
    if not isinstance(data, Mapping):
        raise Unreadable(where, kind.__name__, data, "expected a JSON object")
    found = {}
    for name, hint in get_type_hints(kind).items():
        if name not in data:
            continue
        value = data[name]
        types, words = _KINDS[hint]
        whole = type(value) is int and value < 0
        if not isinstance(value, types) or whole or (type(value) is bool and bool not in types):
            raise Unreadable(where, name, value, f"expected {words}")
        found[name] = value
    try:
        return kind(**found)
    except TypeError as error:
        raise Unreadable(where, kind.__name__, sorted(data), str(error)) from None


def _list(where: str, data: Mapping[str, Any], name: str) -> list[Any]:
    found = data.get(name)
    if not isinstance(found, list):
        raise Unreadable(where, name, found, "expected a list")
    return found
