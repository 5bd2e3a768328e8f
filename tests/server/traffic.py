"""What a trainer sends, made by hand: starts, layouts and batches of a small network."""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx

from gradwarden import wire
from tests.service import Service

LAYOUT = wire.Layout(
    tuple(
        wire.Parameter(f"blocks.{i}.{name}", (4, 4), "float32", f"blocks.{i}", "matrix")
        for i in range(3)
        for name in ("weight", "bias")
    )
)
LAYERS = len(LAYOUT.parameters)
FRAMES = {"Content-Type": wire.MEDIA_TYPE}


def start_body(run: str, **more: Any) -> dict[str, Any]:
    """A start of rank 0 of the first attempt."""
    body = {
        "run": run,
        "attempt": "a1",
        "rank": 0,
        "nonce": "n1",
        "host": "node-1",
        "pid": 100,
        "name": f"name of {run}",
        "owner": "mei",
        "environment": "prod",
    }
    return body | more


def matrix(value: float = 1.0, bad_row: int | None = None) -> bytes:
    """One frame's values: each layer's norm is ``value``; ``bad_row`` is full of NaN."""
    rows = []
    for row in range(LAYERS):
        if row == bad_row:
            rows.append(struct.pack("<6f", math.nan, math.nan, 16.0, 0.0, 0.0, 0.0))
        else:
            rows.append(struct.pack("<6f", value, value, 0.0, 0.0, 1.0, 1.0))
    return b"".join(rows)


def frame(seq: int, bad_row: int | None = None, **more: Any) -> wire.Frame:
    """Frame ``seq`` of step ``seq - 1``."""
    made = wire.Frame(
        seq=seq,
        step=seq - 1,
        time_ns=time.time_ns(),
        scalars={"loss": 2.0 / seq},
        capture="unclipped",
        stepped=True,
        values=matrix(1.0 / seq, bad_row),
    )
    return replace(made, **more)


def batch(run: str, frames: Sequence[wire.Frame], **stream: Any) -> wire.Batch:
    """A batch of rank 0 of the first attempt."""
    key = replace(wire.StreamKey(run, "a1", 0, "n1"), **stream)
    return wire.Batch(key, tuple(frames), LAYOUT.hash, LAYERS, sent_ns=time.time_ns())


def begin(service: Service, run: str, **more: Any) -> dict[str, Any]:
    """Start a run and send its layout."""
    answer = service.call("POST", "/v1/start", json=start_body(run, **more))
    assert answer.status_code == 200, answer.text
    layout = service.call("POST", "/v1/layouts", json=LAYOUT.to_json())
    assert layout.json() == {"hash": LAYOUT.hash}
    started: dict[str, Any] = answer.json()
    return started


def beat(service: Service, run: str, **more: Any) -> httpx.Response:
    """A heartbeat of rank 0 of the first attempt."""
    who = {"run": run, "attempt": "a1", "rank": 0, "nonce": "n1", "sent_ns": time.time_ns()}
    return service.call("POST", "/v1/heartbeat", json=who | {"step": 1, "phase": "train"} | more)


def send(service: Service, sent: wire.Batch | bytes, **more: Any) -> httpx.Response:
    """Ingest a batch."""
    body = sent if isinstance(sent, bytes) else wire.encode(sent)
    headers = FRAMES | more.pop("headers", {})
    return service.call("POST", "/v1/ingest", content=body, headers=headers, **more)


def problem(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """The problem document of a refusal, checked for its shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["type"] == f"https://gradwarden.dev/problems/{slug}", document
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert document["request_id"] == answer.headers["x-request-id"]
    return document
