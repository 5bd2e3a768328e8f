"""A run too large for its pixels: one bad step of thousands stays visible, lives stay apart."""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gradwarden import wire
from tests.server.traffic import FRAMES, start_body
from tests.service import Service
from tests.ui.browser import Page
from tests.ui.conftest import until
from tests.ui.test_pages import MAGENTA

BLOCKS, STEPS, RESUMED, BAD_STEP, BAD_ROW = 24, 5000, 3000, 1234, 50
NAMES = ("attn.qkv.weight", "attn.proj.weight", "mlp.up.weight", "mlp.down.weight")
LAYOUT = wire.Layout(
    tuple(
        wire.Parameter(f"blocks.{b}.{n}", (64, 64), "bfloat16", f"blocks.{b}", "matrix")
        for b in range(BLOCKS)
        for n in NAMES
    )
)
ROWS = len(LAYOUT.parameters)


def values(step: int) -> bytes:
    """Norms that fall with depth and time; a single NaN element at one step of one row."""
    out = bytearray()
    for row in range(ROWS):
        norm = 10 ** (math.sin(step / 400 + row) - row / 40)
        cell = (norm, norm / 9, 0.0, 0.0, 3.0, 3.0)
        if (step, row) == (BAD_STEP, BAD_ROW):
            cell = (math.nan, math.nan, 1.0, 0.0, 3.0, 3.0)
        out += struct.pack("<6f", *cell)
    return bytes(out)


def live(service: Service, key: wire.StreamKey, first: int, last: int) -> Iterator[int]:
    """Send one life of the run, steps ``first`` to ``last``; gives the status of every answer."""
    start = start_body(key.run, attempt=key.attempt, nonce=key.nonce, first_step=first)
    start |= {"parent": None if first == 0 else "a1", "takeover": first > 0}
    yield service.call("POST", "/v1/start", json=start).status_code
    yield service.call("POST", "/v1/layouts", json=LAYOUT.to_json()).status_code
    for begin in range(first, last + 1, 250):
        steps = range(begin, min(begin + 250, last + 1))
        frames = tuple(
            wire.Frame(
                seq=step - first + 1,
                step=step,
                time_ns=time.time_ns(),
                scalars={"loss": 4 / (1 + step / 500)},
                capture="unclipped",
                stepped=step != BAD_STEP,
                values=values(step),
            )
            for step in steps
        )
        sent = wire.Batch(key, frames, LAYOUT.hash, ROWS, sent_ns=time.time_ns())
        body = wire.encode(sent)
        yield service.call("POST", "/v1/ingest", content=body, headers=FRAMES).status_code


@pytest.fixture(scope="module")
def large(service: Service) -> Service:
    """96 parameters, 5,000 steps, killed and resumed once."""
    first = wire.StreamKey("large", "a1", 0, "n1")
    statuses = [*live(service, first, 0, RESUMED + 99)]
    statuses += live(service, replace(first, attempt="a2", nonce="n2"), RESUMED, STEPS - 1)
    assert set(statuses) == {200}
    until(lambda: service.get("/v1/runs/large")["steps"] == [0, STEPS - 1])
    return service


@pytest.mark.parametrize(
    ("width", "scheme", "mode"),
    [(1440, "dark", "abs"), (800, "light", "base"), (360, "dark", "base"), (360, "light", "abs")],
)
def test_one_nan_in_half_a_million_cells_is_seen(
    large: Service, page: Page, pictures: Path, width: int, scheme: str, mode: str
) -> None:
    page.size(width, 900)
    page.scheme(scheme)
    for fold in ("auto", "all", "none"):
        page.go(f"{large.url}/runs/large?mode={mode}&fold={fold}")
        page.wait("document.querySelector('[data-layer=cells]')")
        marks = page.evaluate(f"{MAGENTA}('[data-layer=cells]')")
        assert marks["count"] >= 3, fold
        assert marks["first"] == pytest.approx(BAD_STEP / STEPS, abs=0.02)
    page.go(f"{large.url}/runs/large?mode={mode}")
    page.wait("document.querySelector('[data-layer=cells]')")
    page.evaluate("document.querySelector('.plots').scrollIntoView({ block: 'end' })")
    page.wait("document.querySelectorAll('.uplot').length >= 2")
    page.picture(pictures / f"large-{mode}-{scheme}-{width}.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.complaints == []


def test_a_resumed_run_is_one_axis_with_a_flag_where_it_resumed(large: Service, page: Page) -> None:
    page.go(f"{large.url}/runs/large")
    label = page.wait("document.querySelector('.flag.restart')?.ariaLabel")
    assert f"attempt 2 begins, step {RESUMED:,}" in label
    table = page.wait(
        "(document.querySelector('.hero-column')?.scrollIntoView({ block: 'end' }),"
        " document.querySelector('[aria-label=Attempts]')?.innerText)"
    )
    assert "replayed after" in table
    assert page.complaints == []


def test_zooming_in_brings_every_single_step(large: Service, page: Page) -> None:
    page.go(f"{large.url}/runs/large")
    page.wait("document.querySelector('.legend')?.innerText.includes('steps per column')")
    page.go(f"{large.url}/runs/large?from=1200&to=1260")
    page.wait("document.querySelector('[data-layer=cells]')")
    page.wait("!document.querySelector('.legend').innerText.includes('steps per column')")
    marks = page.evaluate(f"{MAGENTA}('[data-layer=cells]')")
    assert marks["first"] == pytest.approx((BAD_STEP - 1200) / 60, abs=0.02)
    assert marks["last"] - marks["first"] == pytest.approx(1 / 60, abs=0.01)
    assert page.complaints == []
