"""A segment made of consecutive batches of one stream: its spine, its chunks and its roll-ups.

A pure function of the log: the same batches make the same bytes, so that a compaction which
was cut off is simply done again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np

from gradwarden import wire
from gradwarden_server.joins import Flags
from gradwarden_server.store import columns
from gradwarden_server.store.columns import Words, codec, rollup
from gradwarden_server.store.log.entries import LogEntry
from gradwarden_server.store.log.opened import Opened
from gradwarden_server.store.shelves import spine
from gradwarden_server.store.shelves.built import Built, Chunk, Rollup
from gradwarden_server.store.shelves.spine import Doubles, Ints, Sent, Spine, Telling

_GROUPS = {
    **dict.fromkeys(wire.QUANTITIES, "statistics"),
    **dict.fromkeys(wire.HISTOGRAM, "histogram"),
    **dict.fromkeys(wire.SLOW, "slow"),
}
"""Columns that are measured at the same steps; a column of none of these is its own group."""
_ROUNDABLE = ("l2", "absmax", "weight_l2", "update_ratio")
"""Norms and ratios of them; a count that is rounded is a wrong count."""
_WATCHED = ("l2", "absmax")
"""Their NaN may be the value itself; that of the NaN counts tells that nothing was measured."""

_WORTH = 10
"""Measured values of a bucket, on average, for which a roll-up is worth its bytes."""
_NONE = np.zeros(0, np.int64)


def build(
    entries: Sequence[LogEntry], precision_bits: int = 0, *, keep_roots: bool = True
) -> Built:
    """Make one segment.

    Args:
        entries: Batches of one stream in the order of the log, whose matrices, if any, follow
            one layout.
        precision_bits: 0 keeps every bit; else norms keep so many bits of mantissa, see
            :func:`gradwarden_server.store.columns.codec.rounded`.
        keep_roots: False leaves out the words by which replicas were compared.

    Raises:
        gradwarden.wire.WireError: a batch is damaged.
    """
    opened = [Opened(entry) for entry in entries]
    headers = [each.header for each in opened]
    work = _Matrices([each for each in opened if each.matrices], precision_bits)
    rooted = _ints(chain.from_iterable(h.rooted for h in headers))
    made = Spine(
        layout=next((each.header.layout for each in opened if each.matrices), ""),
        sent=_sent(opened),
        tellings=tuple(dict.fromkeys(map(_telling, opened))),
        steps=_ints(chain.from_iterable(h.steps for h in headers)),
        times_ns=_ints(chain.from_iterable(h.times for h in headers)),
        capture=_ints(spine.CAPTURES.index(c) for h in headers for c in h.capture),
        stepped=_ints(-1 if s is None else int(s) for h in headers for s in h.stepped),
        open=_ints(chain.from_iterable(h.open for h in headers)),
        matrix=_ints(chain.from_iterable(h.matrix for h in headers)),
        rooted=rooted if keep_roots else np.zeros_like(rooted),
        worded=_ints(flag if h.wide else 0 for h in headers for flag in h.matrix),
        squares=work.squares,
        scalars=_scalars(headers),
        events=_events(headers),
        measured=work.measured,
        columns=work.columns,
        constants=work.constants,
        rolled=work.rolled,
    )
    chunks = [*_roots(made, opened), *_words(opened), *work.chunks]
    return Built(made, spine.pack(made), work.samples, chunks, work.rollups)


def _telling(opened: Opened) -> Telling:
    header = opened.header
    key, what = header.stream, (header.quantities, header.wide, header.parameters)
    return Telling(key.nonce, key.group, header.layout, *what)


def _sent(opened: Sequence[Opened]) -> Sent:
    tellings = {t: i for i, t in enumerate(dict.fromkeys(map(_telling, opened)))}
    rows = [
        (
            each.entry.position,
            each.header.first_seq,
            each.header.n,
            each.entry.received_ns,
            each.entry.shift_ns,
            each.header.sent_ns,
            tellings[_telling(each)],
        )
        for each in opened
    ]
    return Sent(*(np.array(column, np.int64) for column in zip(*rows, strict=True)))


def _scalars(headers: Sequence[wire.Header]) -> dict[str, tuple[Ints, Doubles]]:
    found: dict[str, tuple[list[int], list[float]]] = {}
    before = 0
    for header in headers:
        for name, column in header.scalars.items():
            at, values = found.setdefault(name, ([], []))
            frames: Iterable[int] = range(before, before + header.n)
            if None in column:
                frames = [i for i, value in zip(frames, column, strict=True) if value is not None]
                column = [value for value in column if value is not None]
            at.extend(frames)
            values.extend(map(float, column))  # "NaN", "Infinity" and "-Infinity" are numbers
        before += header.n
    return {name: (_ints(at), np.array(values, np.float64)) for name, (at, values) in found.items()}


def _events(headers: Sequence[wire.Header]) -> tuple[tuple[int, wire.Event], ...]:
    listed = [events for header in headers for events in header.events]
    return tuple((i, event) for i, events in enumerate(listed) for event in events)


def _roots(made: Spine, opened: Sequence[Opened]) -> Iterator[Chunk]:
    """They look random, as checksums do, so nothing but their bytes can be kept."""
    if made.rooted.any():
        words = np.concatenate([each.roots() for each in opened])
        yield spine.ROOTS, 0, codec.pack_words(words)


def _words(opened: Sequence[Opened]) -> Iterator[Chunk]:
    for name in dict.fromkeys(name for each in opened for name in each.header.wide):
        parts = [each.words(name) for each in opened if name in each.header.wide]
        parts = [part for part in parts if part.size]
        if parts:
            yield name, 0, codec.pack_words(np.concatenate(parts))


class _Group:
    """The matrices in which any column of one group was measured.

    ``steps`` rise; where the matrices themselves do not, ``order`` puts them so. ``buckets``
    counts those of each width.
    """

    def __init__(self, steps: Ints, held: Flags) -> None:
        self.steps = steps[held]
        self.held = held
        self.seen: Flags | None = None
        """[rows, steps], what was observed, where the group tells of it."""
        self.order: Ints | None = None
        if (np.diff(self.steps) < 0).any():  # a spool may have arrived late
            self.order = np.argsort(self.steps, kind="stable")
            self.steps = self.steps[self.order]
        self.buckets = {w: rollup.buckets(self.steps, w)[0].size for w in rollup.WIDTHS}


class _Matrices:
    """Chunks and roll-ups, group of columns by group, so that few are in memory at once."""

    def __init__(self, opened: Sequence[Opened], precision_bits: int) -> None:
        """``opened`` are those that hold a matrix."""
        self._opened = opened
        rows = opened[0].header.parameters if opened else 0
        matrices = [each.matrices for each in opened]
        self._batches = columns.Batches([each.planes for each in opened], matrices, rows)
        steps = np.concatenate([_NONE, *(each.matrix_steps() for each in opened)])
        self.measured: dict[str, Ints] = {}
        self.columns: dict[str, str] = {}
        self.constants: dict[str, int] = {}
        self.rolled: dict[str, int] = {}
        self.squares = np.full(steps.size, np.nan)
        self.samples = 0
        self.chunks: list[Chunk] = []
        self.rollups: list[Rollup] = []
        self._bits = precision_bits
        groups: dict[str, list[str]] = {}
        for name in dict.fromkeys(q for each in opened for q in each.header.quantities):
            groups.setdefault(_GROUPS.get(name, name), []).append(name)
        for group, names in groups.items():
            held = np.zeros(steps.size, np.bool_)
            for name in names:
                if not held.all():
                    held |= columns.measured(self._batches, self._begins(name))
            at = np.flatnonzero(held)
            if at.size:
                self.measured[group] = at
                self.columns |= dict.fromkeys(names, group)
                self._add(names, _Group(steps, held), at)

    def _add(self, names: Sequence[str], group: _Group, at: Ints) -> None:
        if "nan" in names:
            group.seen = ~np.isnan(self._laid("nan", group).view(np.float32))
        for name in names:
            words = self._laid(name, group)
            if name == "l2":
                norms = words.view(np.float32)
                norms = (norms if group.seen is None else np.where(group.seen, norms, 0)).T
                squares = np.square(np.ascontiguousarray(norms), dtype=np.float64)
                self.squares[at] = squares.sum(axis=1)
            if self._bits and name in _ROUNDABLE:
                words = codec.rounded(words.view(np.float32), self._bits).view(np.uint32)
            seen = group.seen if name in _WATCHED else None
            told = columns.survey(words, codec.BLOCK_ROWS)
            held = words.size - sum(told.nans) if seen is None else int(np.count_nonzero(seen))
            self.samples += held
            bits = codec.constant(words, told)
            if bits is not None and (not held or np.isfinite(np.uint32(bits).view(np.float32))):
                self.constants[name] = bits  # NaN that was measured is told by its roll-ups
                continue
            for block, body in enumerate(codec.pack_blocks(words, codec.BLOCK_ROWS, told)):
                self.chunks.append((name, block, body))
            self._roll(name, words, seen, group, held)

    def _begins(self, name: str) -> Ints:
        return _ints(each.begins(name) for each in self._opened)

    def _laid(self, name: str, group: _Group) -> Words:
        """[L, m] of one column over the group's matrices, holes where it was not sent."""
        return columns.lay(self._batches, self._begins(name), group.held)

    def _roll(self, name: str, words: Words, seen: Flags | None, group: _Group, held: int) -> None:
        if group.order is not None:
            words = np.take(words, group.order, axis=1)
            seen = None if seen is None else np.take(seen, group.order, axis=1)
        widths = [
            width
            for width in rollup.WIDTHS  # else it would be larger than what it sums up
            if held >= _WORTH * len(words) * group.buckets[width]
        ]
        for width, rolled in rollup.roll(group.steps, words, seen, widths):
            self.rolled.setdefault(name, width)
            for aggregate in rollup.AGGREGATES:
                if rolled.plain and aggregate in rollup.COUNTS:
                    continue  # they follow from the steps
                told = rolled.values[aggregate]
                if self._bits and name in _ROUNDABLE and aggregate == "mean":
                    told = codec.rounded(told, self._bits)
                self.rollups.append((width, name, aggregate, codec.pack(told)))


def _ints(values: Iterable[int]) -> Ints:
    return np.fromiter(values, np.int64)
