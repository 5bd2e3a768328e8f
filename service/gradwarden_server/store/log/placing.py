"""Where a batch goes in the log: which of its frames are new, and when they were. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gradwarden import wire
from gradwarden_server.store.log.states import StreamState
from gradwarden_server.store.records import Ack

_SECOND_NS = 1_000_000_000
FUTURE_NS = 300 * _SECOND_NS
"""Frames dated further ahead than this are stored at their receipt and flagged."""
_CLOCK_TOLERANCE_NS = 1 * _SECOND_NS
_MOST_GAPS = 10_000
"""Each gap is read and written again with every batch; honest streams have a handful."""


@dataclass(slots=True)
class Placed:
    """Rows that a batch becomes; ``finish`` is how the process says that it ended."""

    ack: Ack
    batches: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None


def place(state: StreamState, header: wire.Header, raw: bytes, received_ns: int) -> Placed:
    """Take the frames of a batch that are new into their stream's state and into rows.

    Raises:
        Malformed: the stream has too many gaps; its state is as before.
    """
    gaps = wire.missing(state.seqs, header.first_seq, header.last_seq)
    stored = sum(last - first + 1 for first, last in gaps)
    if not stored:
        return Placed(Ack(0, header.n))
    seqs = wire.merge(state.seqs, header.first_seq, header.last_seq)
    if len(seqs) > _MOST_GAPS:
        raise wire.Malformed("first_seq", header.first_seq, f"{len(seqs)} gaps in this stream")
    bodies = [raw]
    if stored < header.n:
        batch = wire.decode(raw)
        bodies = [wire.encode(batch.select(first, last)) for first, last in gaps]
    placed = Placed(Ack(stored, header.n - stored))
    run = state.run
    for (first, last), body in zip(gaps, bodies, strict=True):
        frames = slice(first - header.first_seq, last - header.first_seq + 1)
        steps, times = header.steps[frames], header.times[frames]
        shift_ns, refused = _shift(state, times, received_ns)
        state.last_time_ns = max(times) + shift_ns
        run.position += 1
        placed.batches.append(
            {
                "run_id": run.id,
                "position": run.position,
                "stream_id": state.id,
                "first_seq": first,
                "last_seq": last,
                "step0": min(steps),
                "step1": max(steps),
                "t0_ns": min(times) + shift_ns,
                "t1_ns": state.last_time_ns,
                "shift_ns": shift_ns,
                "received_ns": received_ns,
                "layout": header.layout,
                "body": body,
            }
        )
        placed.events += _events(state, header, frames, shift_ns, refused)
        matrices = sum(header.matrix[frames])
        state.logged_bytes += 4 * matrices * header.parameters * len(header.quantities)
    newest = max(header.steps)
    state.seqs = seqs
    state.logged_frames += stored
    state.seen(received_ns, newest)
    run.last_step = newest if run.last_step is None else max(newest, run.last_step)
    finishes = [e for events in header.events for e in events if e["kind"] == "finish"]
    if finishes:
        state.ended = True
        placed.finish = str(finishes[-1].get("status", "finished"))
    return placed


def _shift(state: StreamState, times: Sequence[int], received_ns: int) -> tuple[int, bool]:
    """Nanoseconds to add to host time, and whether the host's date was refused.

    The least offset seen holds the network's delay too, so a small one is no clock error.
    """
    clock = state.clock or {}
    known = [v for v in (clock.get(k) for k in ("current", "previous")) if v is not None]
    shift = min(known) if known and abs(min(known)) > _CLOCK_TOLERANCE_NS else 0
    newest, oldest = max(times), min(times)
    refused = newest + shift > received_ns + FUTURE_NS
    if refused:
        shift = received_ns - newest
    if state.last_time_ns is not None and oldest + shift < state.last_time_ns and shift:
        shift = min(state.last_time_ns - oldest, max(shift, received_ns - newest))
    return shift, refused


def _events(
    state: StreamState, header: wire.Header, frames: slice, shift_ns: int, refused: bool
) -> list[dict[str, Any]]:
    told = [(i, event) for i in range(frames.start, frames.stop) for event in header.events[i]]
    if refused:
        text = f"host clock is ahead by {-shift_ns / 1e9:.0f} s; stored at receipt"
        told.append((frames.stop - 1, {"kind": "clock", "text": text}))
    return [
        {
            "run_id": state.run.id,
            "attempt_id": state.attempt_id,
            "rank": state.rank,
            "step": header.steps[i],
            "time_ns": header.times[i] + shift_ns,
            "kind": event["kind"][:64],
            "data": {name: value for name, value in event.items() if name != "kind"},
        }
        for i, event in told
    ]
