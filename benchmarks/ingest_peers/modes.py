"""The two modes in which our service is measured, and what one figure of it is."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest_peers import client, ours
from ingest_peers.recording import WINDOW, Stream

SEGMENT_FRAMES = 1024
"""Frames of a stream that wait at most where compaction keeps up."""
WARM_UP = 1 / 3
"""Share of the data that comes before the clock: until then logs fill that are not due yet."""
REST_SECONDS = 3.0
MOST_LONGER = 4.0
"""Times the seconds that were asked for: the data is made for the pace of the other mode."""

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Mark:
    """What had been acknowledged at a moment, and how much of it still lay in the log."""

    seconds: float
    samples: int
    frames: int
    logged: int
    cpu: float


def flat_out(
    database: str,
    streams: Sequence[Stream],
    folder: Path,
    *,
    evaluate: bool = False,
    bits: int = 0,
    patience: float = 120.0,
) -> Figures:
    """As fast as the service acknowledges; then all is compacted, and the disk looked at.

    Args:
        evaluate: judge the runs meanwhile, and wait for that instead.
        bits: of mantissa that norms keep; 0 keeps all.
        patience: seconds to wait for; the service takes an ended run as over after a minute.
    """
    prepared = client.lanes(ours.bodies(streams))
    with ours.serving(database, folder, evaluate=evaluate, precision_bits=bits) as house:
        ours.announce(house, streams)
        spent, began = house.cpu_seconds(), time.perf_counter()
        sent = client.send(_address(house), "/v1/ingest", ours.HEADERS, prepared)
        logged = house.logged_frames()
        if evaluate:
            lag = house.settle(lambda: house.metric(ours.LAG), patience)
        figures = _acked(sent) | {
            "samples_per_second": round(sent.rate),
            "cpu_us_per_sample": round((house.cpu_seconds() - spent) / sent.samples * 1e6, 4),
            "logged_frames_when_acked": logged,
        }
        if evaluate:
            figures["seconds_until_evaluated"] = round(time.perf_counter() - began, 2)
            figures["evaluator_lag_seconds"] = lag
            return figures
        figures["logged_frames_when_settled"] = house.settle(house.logged_frames, patience)
        return figures | _bytes(house, streams, sent.samples)


def sustained(database: str, streams: Sequence[Stream], folder: Path, *, seconds: float) -> Figures:
    """The pace that compaction keeps up with.

    Senders pause while more waits in the log than where compaction keeps up. The clock starts
    once the logs are as full as they stay, and stops when no more waits than then. The rate is
    that of what was acknowledged meanwhile, or of what was compacted where that is less.
    """
    prepared = client.lanes(ours.bodies(streams))
    total = sum(len(lane) for lane in prepared) * WINDOW
    with ours.serving(database, folder) as house:
        ours.announce(house, streams)
        marks: list[Mark] = []
        go = asyncio.Event()

        def mark(sent: client.Sent) -> int:
            made = Mark(
                time.perf_counter(),
                sent.samples,
                sent.requests * WINDOW,
                house.logged_frames(),
                house.cpu_seconds(),
            )
            if made.frames >= total * WARM_UP:
                marks.append(made)
            return made.logged

        async def watch(sent: client.Sent) -> None:
            while True:
                logged = await asyncio.to_thread(mark, sent)
                (go.clear if logged > SEGMENT_FRAMES * len(streams) else go.set)()
                await asyncio.sleep(ours.POLL_SECONDS)

        async def gate() -> None:
            await go.wait()

        sent = client.send(
            _address(house),
            "/v1/ingest",
            ours.HEADERS,
            prepared,
            seconds=seconds * MOST_LONGER,
            gate=gate,
            beside=watch,
        )
        mark(sent)
        if not marks:
            raise SystemExit(f"{sent.requests} batches in {sent.seconds:.0f} s: too few to measure")
        after = marks[-1:]
        while after[-1].logged > marks[0].logged and _moves(after):
            time.sleep(ours.POLL_SECONDS)
            mark(sent)
            after.append(marks[-1])
        return (
            _acked(sent)
            | between(marks[0], min(after, key=lambda m: m.logged))
            | {
                "logged_frames_most": max(m.logged for m in marks),
                "compaction_failures": house.metric(ours.FAILURES),
            }
        )


def between(first: Mark, last: Mark) -> Figures:
    """The sustained rate from one mark to another; 0 where nothing came or was compacted."""
    seconds, frames = last.seconds - first.seconds, last.frames - first.frames
    compacted = max(0, frames - (last.logged - first.logged))
    share = min(1.0, compacted / frames) if frames else 0.0
    samples = round((last.samples - first.samples) * share)
    return {
        "samples_per_second": round(samples / seconds) if seconds else 0,
        "cpu_us_per_sample": round((last.cpu - first.cpu) / samples * 1e6, 4) if samples else None,
        "seconds": round(seconds, 2),
        "samples_in_these_seconds": samples,
        "logged_frames_when_begun": first.logged,
        "logged_frames_when_ended": last.logged,
    }


def _moves(marks: Sequence[Mark]) -> bool:
    """Whether the log became shorter within the last seconds."""
    recent = [m.logged for m in marks if m.seconds >= marks[-1].seconds - REST_SECONDS]
    return len(recent) == len(marks) or len(set(recent)) > 1


def _acked(sent: client.Sent) -> Figures:
    return {
        "samples": sent.samples,
        "requests": sent.requests,
        "refused": sent.refused,
        "megabytes_per_second": round(sent.bytes / sent.seconds / 1e6, 1),
        "ack_p50_ms": sent.wait_ms(0.5),
        "ack_p99_ms": sent.wait_ms(0.99),
    }


def _bytes(house: ours.House, streams: Sequence[Stream], samples: int) -> Figures:
    held = ours.held(house)
    measured: Counter[str] = Counter()
    for stream in streams:
        measured.update(stream.network.samples_of)
    matrices = Counter(held.chunks) + Counter(held.rollups)
    rollups = sum(held.rollups.values())
    bodies = sum(matrices.values()) + held.spines + held.logged
    histograms = [name for name in measured if name.startswith("hist_")]
    many = max(1, sum(measured[name] for name in histograms))
    return {
        "bytes_per_sample": round(held.used / samples, 3),
        "bytes_per_sample_with_free_room": round(held.files / samples, 3),
        "bytes_per_sample_bodies": round(bodies / samples, 3),
        "bytes_per_sample_rollups": round(rollups / samples, 3),
        "bytes_per_sample_spines": round(held.spines / samples, 3),
        "bytes_logged_uncompacted": held.logged,
        "samples_counted_by_service": held.samples,
        "bytes_per_sample_of": per_quantity(matrices, measured),
        "bytes_per_sample_of_histograms": round(sum(matrices[n] for n in histograms) / many, 3),
    }


def per_quantity(held: Mapping[str, int], measured: Mapping[str, int]) -> dict[str, float]:
    """Bytes of each quantity by its own measured values; those without any are left out."""
    return {name: round(held.get(name, 0) / count, 3) for name, count in measured.items() if count}


def _address(house: ours.House) -> client.Address:
    return "127.0.0.1", house.port
