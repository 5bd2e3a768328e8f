"""One project as a storage of PromQL.

A selector of layers or scalars that names neither a run nor a training job reads the runs that
are alive: nobody wants every layer of every training there ever was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradwarden_server.matchers import Matcher, all_match
from gradwarden_server.promql.storage import STALE_BITS, Block
from gradwarden_server.promql.vector import NAME, Floats, Key, Labels, Millis, key
from gradwarden_server.querying.series import ALERTS, ALERTS_FOR_STATE, LAYER, RUN, SCALAR
from gradwarden_server.store.alerts.ledger import AlertLedger, Span
from gradwarden_server.store.reading.pieces import READABLE
from gradwarden_server.store.reading.sampled import LayerSamples, Samples
from gradwarden_server.store.records import RunRecord

LIVE_NS = 600 * 1_000_000_000
"""A run heard of within this time, or that runs, is alive."""
STEP_MS = 15_000
"""Between the samples of series that only begin and end, such as ``ALERTS``."""

_NS = 1_000_000
_MOST_MARKS = 20_000
_BY_RUN = ("run", "training_job")
_STALE = np.array([STALE_BITS], np.uint64).view(np.float64)[0]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the series are."""

    samples: Samples
    ledger: AlertLedger


class ProjectStorage:
    """What one query of one project reads."""

    def __init__(self, sources: Sources, project: str, now_ns: int) -> None:
        self._samples = sources.samples
        self._ledger = sources.ledger
        self._project = project
        self._now_ns = now_ns
        self._runs: list[RunRecord] = []
        self._by_name: dict[str, RunRecord] = {}
        self._runs_since_ns: int | None = None

    def select(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[Block]:
        """Every series that all matchers match, with its samples in (start, end]."""
        named = [m for m in matchers if m.name == NAME]
        others = [m for m in matchers if m.name != NAME]

        def wanted(name: str) -> bool:
            return all(matcher.matches({NAME: name}) for matcher in named)

        return list(self._found(wanted, others, start_ms, end_ms))

    def _found(
        self, wanted: Callable[[str], bool], others: Sequence[Matcher], start_ms: int, end_ms: int
    ) -> Iterator[Block]:
        t0_ns, t1_ns = (start_ms + 1) * _NS, end_ms * _NS + _NS - 1
        theirs: dict[int, Labels] = {}
        for run in self._during(t0_ns, t1_ns):
            facts = {**run.labels, "model": run.model or "", "dataset": run.dataset or ""}
            facts = {name: value for name, value in facts.items() if value}
            own = [m for m in others if m.name in facts or m.name in run.labels]
            if not all_match(own, facts) or not _possible(others, facts):
                continue
            theirs[run.id] = facts
            if wanted(RUN) and all_match(others, facts):
                yield _lasting(facts | {NAME: RUN}, run.started_ns, run.ended_ns, start_ms, end_ms)
            if _asks_for_runs(others) or self._alive(run):
                if wanted(LAYER):
                    yield from self._layers(run, facts, others, t0_ns, t1_ns)
                if wanted(SCALAR):
                    yield from self._scalars(run, facts, others, t0_ns, t1_ns)
        yield from self._recorded(theirs, wanted, others, t0_ns, t1_ns)
        for name in filter(wanted, (ALERTS, ALERTS_FOR_STATE)):
            yield from grouped(self._alert_spans(name, others, start_ms, end_ms))

    def run(self, name: str) -> RunRecord | None:
        """A run that was read, by its identifier."""
        return self._by_name.get(name)

    def _during(self, t0_ns: int, t1_ns: int) -> Iterable[RunRecord]:
        t0_ns -= LIVE_NS  # what is recorded of a run goes on for a while behind its last word
        if self._runs_since_ns is None or t0_ns < self._runs_since_ns:
            self._runs = self._samples.runs(self._project, t0_ns)
            self._by_name = {run.run: run for run in self._runs}
            self._runs_since_ns = t0_ns
        return [r for r in self._runs if r.started_ns <= t1_ns and r.last_seen_ns >= t0_ns]

    def _alive(self, run: RunRecord) -> bool:
        return run.status == "running" or run.last_seen_ns >= self._now_ns - LIVE_NS

    def _layers(
        self, run: RunRecord, facts: Labels, others: Sequence[Matcher], t0_ns: int, t1_ns: int
    ) -> Iterator[Block]:
        of_layers = [matcher for matcher in others if matcher.name == "layer"]
        rest = [matcher for matcher in others if matcher.name != "layer"]
        for quantity in READABLE:
            if not _open(others, "quantity", quantity):
                continue
            groups: dict[int, list[Block]] = {}
            for told in self._samples.layers(self._project, run.run, quantity, t0_ns, t1_ns):
                base = {**facts, NAME: LAYER, "quantity": quantity, "group": str(told.group)}
                if not all_match(rest, base):
                    continue
                rows: Sequence[int] = range(len(told.names))
                if of_layers:
                    rows = [r for r in rows if all_match(of_layers, {"layer": told.names[r]})]
                labels = [{**base, "layer": told.names[row]} for row in rows]
                groups.setdefault(told.group, []).extend(_measured(labels, told, rows))
            for blocks in groups.values():
                yield from grouped(blocks)

    def _scalars(
        self, run: RunRecord, facts: Labels, others: Sequence[Matcher], t0_ns: int, t1_ns: int
    ) -> Iterator[Block]:
        def wanted(name: str) -> bool:
            return _open(others, "quantity", name)

        for told in self._samples.scalars(self._project, run.run, wanted, t0_ns, t1_ns):
            labels = {**facts, NAME: SCALAR, "quantity": told.name, "rank": str(told.rank)}
            if all_match(others, labels):
                times, values = _in_order(told.times_ns, told.values[None, :])
                yield Block([labels], times, values)

    def _recorded(
        self,
        theirs: Mapping[int, Labels],
        wanted: Callable[[str], bool],
        others: Sequence[Matcher],
        t0_ns: int,
        t1_ns: int,
    ) -> Iterator[Block]:
        for told in self._samples.recorded(self._project, theirs, wanted, t0_ns, t1_ns):
            facts = {} if told.run_row is None else theirs[told.run_row]
            labels = {**facts, **told.labels, NAME: told.name}
            if all_match(others, labels):
                times, values = _in_order(told.times_ns, told.values[None, :])
                yield Block([labels], times, values)

    def _alert_spans(
        self, name: str, others: Sequence[Matcher], start_ms: int, end_ms: int
    ) -> Iterator[Block]:
        for span in self._ledger.spans(self._project, (start_ms + 1) * _NS, end_ms * _NS):
            if name == ALERTS_FOR_STATE:
                labels = {**span.labels, NAME: name}
                if all_match(others, labels):
                    when = span.active_ns, span.resolved_ns
                    yield _lasting(labels, *when, start_ms, end_ms, span.active_ns / 1e9)
                continue
            for state, since_ns, until_ns in _states(span):
                labels = {**span.labels, NAME: name, "alertstate": state}
                if all_match(others, labels):
                    yield _lasting(labels, since_ns, until_ns, start_ms, end_ms)


def _states(span: Span) -> Iterator[tuple[str, int, int | None]]:
    if span.fired_ns is None:
        yield "pending", span.active_ns, span.resolved_ns
        return
    if span.fired_ns > span.active_ns:
        yield "pending", span.active_ns, span.fired_ns
    yield "firing", span.fired_ns, span.resolved_ns


def _open(matchers: Sequence[Matcher], name: str, value: str) -> bool:
    """Whether a label may have this value."""
    return all(m.matches({name: value}) for m in matchers if m.name == name)


def _possible(matchers: Sequence[Matcher], facts: Mapping[str, str]) -> bool:
    """Whether a run without one of the labels of runs could still match."""
    return all(m.matches(facts) for m in matchers if m.name in (*_BY_RUN, "owner", "team"))


def _asks_for_runs(matchers: Sequence[Matcher]) -> bool:
    return any(m.name in _BY_RUN and not m.matches({}) for m in matchers)


def _in_order(times_ns: Millis, values: Floats) -> tuple[Millis, Floats]:
    """By time in milliseconds; the last one of a millisecond counts."""
    millis = times_ns // _NS
    order = np.argsort(times_ns, kind="stable")
    ordered = millis[order]
    last = np.ones(len(ordered), np.bool_)
    last[:-1] = ordered[1:] != ordered[:-1]
    return ordered[last], np.asarray(values[:, order][:, last], np.float64)


def _measured(labels: Sequence[Labels], told: LayerSamples, rows: Sequence[int]) -> Iterator[Block]:
    """Rows that were measured at the same steps are one block."""
    if not len(rows):
        return
    values, measured = told.values[rows], told.measured[rows]
    if measured.all():
        yield Block(labels, *_in_order(told.times_ns, values))
        return
    rows_of: dict[bytes, list[int]] = {}
    for place in range(len(rows)):
        rows_of.setdefault(np.packbits(measured[place]).tobytes(), []).append(place)
    for places in rows_of.values():
        there = measured[places[0]]
        if there.any():
            own = values[places][:, there]
            yield Block([labels[i] for i in places], *_in_order(told.times_ns[there], own))


def _lasting(
    labels: Labels,
    since_ns: int,
    until_ns: int | None,
    start_ms: int,
    end_ms: int,
    value: float = 1.0,
) -> Block:
    """One value from a beginning to an end, marked where it ended."""
    first = max(since_ns // _NS, start_ms + 1)
    last = end_ms if until_ns is None else min(until_ns // _NS, end_ms)
    step = max(STEP_MS, (end_ms - start_ms) // _MOST_MARKS)
    grid = np.arange(-(-first // step) * step, last + 1, step, dtype=np.int64)
    times = np.unique(np.append(grid, [first, last] if first <= last else [])).astype(np.int64)
    values = np.full((1, len(times)), value)
    if until_ns is not None and until_ns // _NS < end_ms:
        times = np.append(times, until_ns // _NS + 1)
        values = np.append(values, [[_STALE]], axis=1)
    return Block([labels], times, values)


def grouped(blocks: Iterable[Block]) -> list[Block]:
    """Series that several blocks tell as one; else the blocks as they are."""
    held = list(blocks)
    if len(held) < 2:
        return held
    parts: dict[Key, list[Block]] = {}
    for block in held:
        for row, labels in enumerate(block.labels):
            one = Block([labels], block.times, block.values[row : row + 1])
            parts.setdefault(key(labels), []).append(one)
    if all(len(told) == 1 for told in parts.values()):
        return held
    return [told[0] if len(told) == 1 else _joined(told) for told in parts.values()]


def _joined(told: Sequence[Block]) -> Block:
    times = np.concatenate([part.times for part in told])
    values = np.concatenate([part.values for part in told], axis=1)
    distinct, index = np.unique(times[::-1], return_index=True)  # the last one told counts
    return Block(told[0].labels, distinct, values[:, ::-1][:, index])
