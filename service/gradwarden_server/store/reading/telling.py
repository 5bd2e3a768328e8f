"""What ranks told over a range of steps, from the log and from segments alike, as pieces."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from gradwarden import wire
from gradwarden_server.store.cache import Cache
from gradwarden_server.store.log.entries import LogEntry, LogReader
from gradwarden_server.store.log.segments import RAW, Segment
from gradwarden_server.store.reading.gather import gathered
from gradwarden_server.store.reading.pieces import Piece, decode, end_to_end, of_segment
from gradwarden_server.store.runs import RunStore
from gradwarden_server.store.shelves.spine import Spine

_PAGE = 64
_MANY = 16


@dataclass(frozen=True, slots=True)
class Held:
    """What is held of a range of steps of a run: batches of the log, and segments.

    ``split`` are the segments of attempts whose ranks hold shards, ``whole`` all others;
    ``until`` is the last step that counts of each attempt, by its ordinal.
    """

    project: str
    run: str
    entries: Sequence[LogEntry]
    whole: Sequence[Segment]
    split: Sequence[Segment]
    until: Mapping[int, float]

    def only(self, ordinal: int) -> Held:
        """What one attempt told, the steps that a later one did again among it."""
        return replace(
            self,
            entries=[e for e in self.entries if e.ordinal == ordinal],
            whole=[s for s in self.whole if s.ordinal == ordinal],
            split=[s for s in self.split if s.ordinal == ordinal],
            until={ordinal: math.inf},
        )


class Telling:
    """Pieces of a run; what was decoded lately is kept in memory."""

    def __init__(self, log: LogReader, runs: RunStore, cache: Cache) -> None:
        self._log = log
        self._runs = runs
        self._cache = cache

    def held(self, project: str, run: str, first: int, last: int) -> Held:
        """What touches steps [first, last]."""
        entries, segments = self._log.holding(project, run, first, last)
        sharded = {e.ordinal for e in entries if e.shards > 1}
        sharded |= {s.ordinal for s in segments if s.shards > 1}
        until = {
            a.ordinal: math.inf if a.superseded_after is None else a.superseded_after
            for a in self._runs.attempts(project, run)
        }
        return Held(
            project,
            run,
            entries,
            whole=[s for s in segments if s.ordinal not in sharded],
            split=[s for s in segments if s.ordinal in sharded],
            until=until,
        )

    def pieces(
        self, held: Held, segments: Sequence[Segment], columns: tuple[str, ...]
    ) -> Iterator[tuple[Piece, float]]:
        """The pieces of what the log holds and of these segments, shards joined.

        Each with the last step of its attempt that counts.

        Raises:
            Damaged: a segment is.
        """
        items: list[LogEntry | Segment] = [
            *held.entries,
            *(segment for segment in segments if segment.held == RAW),
        ]
        sharded = {item.ordinal for item in items if item.shards > 1}
        # The shards of one step have to meet, whenever each of them arrived.
        items.sort(
            key=lambda item: (item.ordinal, item.step0 if item.ordinal in sharded else _at(item))
        )
        told = self._decoded(held, items, columns)
        return gathered(told, lambda digest: self._runs.layout(held.project, digest))

    def scalars(self, held: Held) -> Iterator[tuple[Piece, float]]:
        """What ranks said beside matrices; these may be left out.

        Only pieces of shards have to be joined to know their norms, so they hold them.
        """
        streams: dict[int, list[Segment]] = {}
        for segment in held.whole:
            streams.setdefault(segment.stream_id, []).append(segment)
        for segments in streams.values():
            until = held.until.get(segments[0].ordinal, math.inf)
            # A long history is put together once, and not by every reader anew.
            size = len(segments) if len(segments) >= _MANY else 1
            for start in range(0, len(segments), size):
                yield self._light(segments[start : start + size]), until
        yield from self.pieces(held, held.split, wire.QUANTITIES)

    def _light(self, segments: Sequence[Segment]) -> Piece:
        """What segments of one stream say beside matrices."""
        key = ("light", *(segment.id for segment in segments))
        piece: Piece | None = self._cache.get(key)
        if piece is None:
            told = self._log.segments.spines(segments)
            piece = end_to_end([of_segment(s, spine, wire.QUANTITIES) for s, spine in told])
            self._cache.keep(key, piece, piece.size)
        return piece

    def _decoded(
        self, held: Held, items: Sequence[LogEntry | Segment], columns: tuple[str, ...]
    ) -> Iterator[tuple[Piece, float]]:
        """Pieces page by page, those in memory as they are."""
        for start in range(0, len(items), _PAGE):
            page = items[start : start + _PAGE]
            entries = [i for i in page if isinstance(i, LogEntry)]
            found = self._logged(held.project, held.run, entries, columns)
            spines = dict(self._log.segments.spines([i for i in page if isinstance(i, Segment)]))
            for item in page:
                end = held.until.get(item.ordinal, math.inf)
                if isinstance(item, Segment):
                    if item in spines:
                        yield self._segment(item, spines[item], columns), end
                elif item.position in found:
                    yield found[item.position], end

    def _logged(
        self, project: str, run: str, entries: Sequence[LogEntry], columns: tuple[str, ...]
    ) -> Mapping[int, Piece]:
        found: dict[int, Piece] = {}
        for entry in entries:
            piece = self._cache.get(_key(project, run, entry, columns))
            if piece is not None:
                found[entry.position] = piece
        missing = [e.position for e in entries if e.position not in found]
        for entry in self._log.bodies(project, run, missing):
            piece = decode(entry, columns)
            found[entry.position] = piece
            self._cache.keep(_key(project, run, entry, columns), piece, piece.size)
        return found

    def _segment(self, segment: Segment, told: Spine, columns: tuple[str, ...]) -> Piece:
        key = ("segment", segment.id, columns)
        piece: Piece | None = self._cache.get(key)
        if piece is None:
            matrix = None
            if not set(columns).isdisjoint(told.columns):
                matrix = self._log.segments.matrices(segment, told, columns)
            piece = of_segment(segment, told, columns, matrix)
            self._cache.keep(key, piece, piece.size)
        return piece


def _key(project: str, run: str, entry: LogEntry, columns: tuple[str, ...]) -> tuple[object, ...]:
    # A run may be deleted and made again under its name: its positions begin anew then.
    return "piece", project, run, entry.position, entry.received_ns, columns


def _at(item: LogEntry | Segment) -> int:
    return item.position0 if isinstance(item, Segment) else item.position
