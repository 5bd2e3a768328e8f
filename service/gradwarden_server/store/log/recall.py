"""The very batches that a segment was made of, for who reads the log in its order."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from gradwarden import wire
from gradwarden_server.store.cache import Cache
from gradwarden_server.store.log.segments import Segment, SegmentReader
from gradwarden_server.store.shelves import spine
from gradwarden_server.store.shelves.spine import Spine


def batches(
    segments: SegmentReader,
    cache: Cache,
    segment: Segment,
    told: Spine,
    wanted: Collection[int],
) -> Iterator[tuple[int, wire.Batch]]:
    """The batches at these log positions, as (index within the segment, batch).

    Bit for bit what was received, but for norms that were rounded on request, and for roots
    of replicas that agreed: those are not kept.

    Raises:
        Damaged: the segment is.
    """
    chosen = [i for i, at in enumerate(told.sent.position.tolist()) if at in wanted]
    if not chosen:
        return
    key = ("reading", segment.id)
    reading: _Reading | None = cache.get(key)
    if reading is None:
        reading = _Reading(segments, segment, told)
        cache.keep(key, reading, reading.size)
    for i in chosen:
        yield i, reading.batch(i)


class _Reading:
    """Columns of a segment in memory, cut into batches."""

    def __init__(self, segments: SegmentReader, segment: Segment, told: Spine) -> None:
        self._segment = segment
        self._told = told
        ends = np.cumsum(told.sent.frames)
        self._bounds = list(zip((ends - told.sent.frames).tolist(), ends.tolist(), strict=True))
        names = list(dict.fromkeys(q for one in told.tellings for q in one.quantities))
        self._at = {name: k for k, name in enumerate(names)}
        self._matrix = segments.matrices(segment, told, names)
        self._matrix_at = np.cumsum(told.matrix) - told.matrix
        words = tuple(dict.fromkeys(w for one in told.tellings for w in one.wide))
        self._words = {name: segments.words(segment, name) for name in words}
        self._roots = segments.words(segment, spine.ROOTS) if told.rooted.any() else None
        self._scalars: dict[int, dict[str, float]] = {}
        for name, (at, values) in told.scalars.items():
            for frame, value in zip(at.tolist(), values.tolist(), strict=True):
                self._scalars.setdefault(frame, {})[name] = value
        self._events: dict[int, list[wire.Event]] = {}
        for frame, event in told.events:
            self._events.setdefault(frame, []).append(event)

    @property
    def size(self) -> int:
        """Bytes in memory, about."""
        words = sum(array.nbytes for array in self._words.values())
        return int(self._matrix.nbytes) + words + 1000 * len(self._told.steps)

    def batch(self, index: int) -> wire.Batch:
        told, segment = self._told, self._segment
        telling = told.tellings[int(told.sent.told[index])]
        first, end = self._bounds[index]
        key = wire.StreamKey(
            segment.run, segment.attempt, segment.rank, telling.nonce, telling.group
        )
        seq = int(told.sent.first_seq[index])
        return wire.Batch(
            key,
            tuple(self._frame(at, seq + at - first, telling) for at in range(first, end)),
            telling.layout,
            telling.parameters,
            telling.quantities,
            telling.wide,
            int(told.sent.sent_ns[index]),
        )

    def _frame(self, at: int, seq: int, telling: spine.Telling) -> wire.Frame:
        told = self._told
        stepped = int(told.stepped[at])
        values = words = roots = b""
        if told.matrix[at]:
            columns = [self._at[name] for name in telling.quantities]
            rows = self._matrix[int(self._matrix_at[at])][:, columns]
            values = np.ascontiguousarray(rows, "<f4").tobytes()
        if told.worded[at]:
            words = self._wide(at, telling)
        if told.rooted[at] and self._roots is not None:
            roots = self._roots[int(told.rooted[:at].sum())].astype("<u8").tobytes()
        return wire.Frame(
            seq=seq,
            step=int(told.steps[at]),
            time_ns=int(told.times_ns[at]),
            scalars=self._scalars.get(at, {}),
            events=tuple(self._events.get(at, ())),
            capture=spine.CAPTURES[int(told.capture[at])],
            stepped=None if stepped < 0 else bool(stepped),
            open=bool(told.open[at]),
            values=values,
            wide=words,
            roots=roots,
        )

    def _wide(self, at: int, telling: spine.Telling) -> bytes:
        """[L, W] words of one frame; each was kept for the frames of batches that sent it."""
        told = self._told
        of_batch = np.repeat(told.sent.told, told.sent.frames)
        rows = []
        for name in telling.wide:
            has = np.array([name in one.wide for one in told.tellings])
            before = int((told.worded[:at].astype(bool) & has[of_batch[:at]]).sum())
            rows.append(self._words[name][before])
        return np.ascontiguousarray(np.stack(rows, axis=1), "<u8").tobytes()
