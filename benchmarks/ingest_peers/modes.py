"""The two modes in which our service is measured, and what one figure of it is."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ingest_peers import client, ours
from ingest_peers.recording import Stream

CEILING_FRAMES = 1280
"""Frames of a stream that may wait for compaction in the sustained mode: a segment's 1024, which
come due together, and a quarter."""

Figures = dict[str, Any]


def flat_out(
    database: str, streams: Sequence[Stream], folder: Path, *, evaluate: bool = False, bits: int = 0
) -> Figures:
    """As fast as the service acknowledges; then let compaction catch up, and look at the disk."""
    prepared = client.lanes(ours.bodies(streams))
    with ours.serving(database, folder, evaluate=evaluate, precision_bits=bits) as house:
        ours.announce(house, streams)
        spent, began = house.cpu_seconds(), time.perf_counter()
        sent = client.send(_address(house), "/v1/ingest", ours.HEADERS, prepared)
        acked = house.cpu_seconds() - spent
        left_then = house.metric(ours.BACKLOG)
        left = house.settle(ours.BACKLOG)
        lag = house.settle(ours.LAG) if evaluate else None
        settled = time.perf_counter() - began
        figures = _common(house, sent, spent)
        figures |= {
            "samples_per_second": round(sent.rate),
            "megabytes_per_second": round(sent.bytes / sent.seconds / 1e6, 1),
            "cpu_us_per_sample_until_acked": round(acked / sent.samples * 1e6, 4),
            "backlog_frames_when_acked": left_then,
            "backlog_frames_when_settled": left,
            "seconds_until_settled": round(settled, 2),
        }
        if evaluate:
            return figures | {"evaluator_lag_seconds_when_settled": lag}
        return figures | _bytes(house, streams, sent.samples)


def sustained(database: str, streams: Sequence[Stream], folder: Path, *, bits: int = 0) -> Figures:
    """At the highest pace that compaction keeps up with.

    Senders pause while more than a bounded backlog waits, and the clock runs on until all that
    was sent is compacted, so that no debt is left behind. Samples that still wait when
    compaction has come to rest are not counted.
    """
    prepared = client.lanes(ours.bodies(streams))
    ceiling = CEILING_FRAMES * len(streams)
    with ours.serving(database, folder, precision_bits=bits) as house:
        ours.announce(house, streams)
        go, most = asyncio.Event(), 0.0
        go.set()

        async def gate() -> None:
            await go.wait()

        async def watch() -> None:
            nonlocal most
            while True:
                backlog = await asyncio.to_thread(house.metric, ours.BACKLOG) or 0.0
                most = max(most, backlog)
                (go.set if backlog <= ceiling else go.clear)()
                await asyncio.sleep(ours.POLL_SECONDS)

        spent, began = house.cpu_seconds(), time.perf_counter()
        sent = client.send(
            _address(house), "/v1/ingest", ours.HEADERS, prepared, gate=gate, beside=watch
        )
        left = house.settle(ours.BACKLOG)
        seconds = time.perf_counter() - began
        compacted = sent.samples
        if left is None:
            compacted = 0
        elif left:
            compacted = min(sent.samples, ours.held(house).samples)
        return _common(house, sent, spent) | {
            "samples_per_second": round(compacted / seconds),
            "samples_compacted": compacted,
            "seconds": round(seconds, 2),
            "backlog_frames_most": most,
            "backlog_frames_at_end": left,
            "compaction_failures": house.metric(ours.FAILURES),
        }


def _common(house: ours.House, sent: client.Sent, spent: float) -> Figures:
    cpu = house.cpu_seconds() - spent
    return {
        "samples": sent.samples,
        "requests": sent.requests,
        "refused": sent.refused,
        "ack_p50_ms": sent.wait_ms(0.5),
        "ack_p99_ms": sent.wait_ms(0.99),
        "cpu_us_per_sample": round(cpu / sent.samples * 1e6, 4),
    }


def _bytes(house: ours.House, streams: Sequence[Stream], samples: int) -> Figures:
    held = ours.held(house)
    measured: Counter[str] = Counter()
    for stream in streams:
        measured.update(stream.network.samples_of)
    bodies = sum(held.matrices.values()) + held.spines + held.logged
    histograms = [name for name in measured if name.startswith("hist_")]
    return {
        "bytes_per_sample": round(held.used / samples, 3),
        "bytes_per_sample_bodies": round(bodies / samples, 3),
        "bytes_per_sample_spines": round(held.spines / samples, 3),
        "bytes_logged_uncompacted": held.logged,
        "samples_counted_by_service": held.samples,
        "bytes_per_sample_of": per_quantity(held.matrices, measured),
        "bytes_per_sample_of_histograms": round(
            sum(held.matrices.get(name, 0) for name in histograms)
            / max(1, sum(measured[name] for name in histograms)),
            3,
        ),
    }


def per_quantity(held: Mapping[str, int], measured: Mapping[str, int]) -> dict[str, float]:
    """Bytes of each quantity by its own measured values; those without any are left out."""
    return {name: round(held.get(name, 0) / count, 3) for name, count in measured.items() if count}


def _address(house: ours.House) -> client.Address:
    return "127.0.0.1", house.port
