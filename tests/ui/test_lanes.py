"""What stands under the heatmap of a run of several ranks that was killed and resumed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from gradwarden import wire
from tests.server.traffic import FRAMES, LAYERS, LAYOUT, begin, frame
from tests.service import Service
from tests.ui.axe import serious
from tests.ui.browser import Page
from tests.ui.conftest import until

RANKS, STEPS, RESUMED, REDONE, SICK, SLOW = 4, 160, 100, 20, 140, 2
SAVED = 90


def told(service: Service, key: wire.StreamKey, first: int, last: int) -> None:
    """Steps ``first`` to ``last`` of one rank of one attempt; rank 2 is slow, rank 3 falls ill."""
    frames = []
    for step in range(first, last + 1):
        wait = 0.01 if key.rank == SLOW else 0.06
        scalars = {
            "loss": math.nan if key.rank == 3 and step >= SICK else 3 - step / STEPS,
            "lr": 1e-3 * 10 ** (-4 * step / STEPS),
            "step_seconds": 0.1,
            "allreduce_exposed_seconds": wait,
        }
        events: tuple[wire.Event, ...] = ()
        if step == SAVED and key.rank == 0:
            events = ({"kind": "checkpoint", "path": "ckpt/90.pt", "ok": True, "saved_step": 90},)
        made = frame(step - first + 1, step=step, scalars=scalars, events=events)
        frames.append(made if key.rank == 0 else replace(made, values=b""))
    rows = LAYERS if key.rank == 0 else 0
    sent = wire.Batch(key, tuple(frames), LAYOUT.hash if rows else "", rows, sent_ns=1)
    answer = service.call("POST", "/v1/ingest", content=wire.encode(sent), headers=FRAMES)
    assert answer.status_code == 200, answer.text


@pytest.fixture(scope="module")
def lived(service: Service) -> Service:
    """Four ranks; killed at step 119, resumed from 100; rank 3 of the second life ends early."""
    for ordinal, (first, last) in enumerate([(0, RESUMED + REDONE - 1), (RESUMED, STEPS - 1)], 1):
        for rank in range(RANKS):
            key = wire.StreamKey("lived", f"a{ordinal}", rank, f"n{ordinal}{rank}")
            begin(
                service, "lived", attempt=key.attempt, rank=rank, nonce=key.nonce,
                world_size=RANKS + 1, first_step=first, parent=None if ordinal == 1 else "a1",
                takeover=ordinal > 1, host=f"node-{rank}",
            )  # fmt: skip
            told(service, key, first, last - (15 if (ordinal, rank) == (2, 3) else 0))
    until(lambda: service.get("/v1/runs/lived")["steps"] == [0, STEPS - 1])
    return service


def test_the_service_tells_ranks_side_by_side(lived: Service) -> None:
    found = lived.get("/v1/runs/lived/ranks")
    assert found["world_size"] == RANKS + 1
    assert found["counts"]["missing"] == 1
    assert (found["first_bad"], found["first_bad_step"]) == ([3], SICK)
    ranks = {line["rank"]: line for line in found["ranks"]}
    assert ranks[3]["lag_steps"] == 15
    assert ranks[3]["told"][-1] == 0
    assert sum(ranks[0]["told"]) == STEPS, "steps that were done again count once"
    assert ranks[SLOW]["seconds"][0] == pytest.approx(0.09)
    assert ranks[0]["seconds"][0] == pytest.approx(0.04)
    assert ranks[4]["state"] == "missing"
    refused = lived.call("GET", "/v1/runs/lived/ranks?cols=501")
    assert refused.status_code == 400
    assert "cols" in refused.text


def test_an_attempt_can_be_read_by_itself(lived: Service) -> None:
    path = f"/v1/runs/lived/series?keys=lr&from={RESUMED}&to={RESUMED + REDONE - 1}"
    times = lived.get(path)["time_ns"], lived.get(f"{path}&attempt=1")["time_ns"]
    assert len(times[0]) == len(times[1]) == REDONE
    assert set(times[0]).isdisjoint(times[1])
    assert lived.get(f"{path}&attempt=7")["step"] == []


@pytest.mark.parametrize(
    ("scheme", "width"), [("dark", 1440), ("light", 1440), ("dark", 360), ("light", 360)]
)
def test_ranks_and_lives_are_seen_and_said(
    lived: Service, tab: Page, pictures: Path, scheme: str, width: int
) -> None:
    tab.size(width, 900)
    tab.scheme(scheme)
    tab.go(f"{lived.url}/runs/lived")
    lane = "document.querySelector('[data-lane^=c]')"
    labels = f"[...{lane}?.querySelectorAll('button') ?? []].map(b => b.ariaLabel).join('; ')"
    tab.wait(f"(t => t.includes('90.pt') && t.includes('attempt 2 begins'))({labels})")
    attempts = tab.says("attempt 1: steps 0 to 119", "[aria-label='Attempts over steps']")
    assert "20 steps done again by a later one" in attempts
    ranks = tab.says("first not finite: rank 3 at step 140", "[aria-label='Ranks over steps']")
    assert "1 missing" in ranks
    assert "slowest: rank 2" in ranks
    every = tab.evaluate("document.querySelector('[aria-label=\"Every rank\"]').textContent")
    assert "rank 3: " in every
    assert "15 steps behind" in every
    # Nobody scrolled: what is below comes when the browser rests, and a picture of it is whole.
    tab.wait("document.querySelector('[data-chart=lr] canvas')")
    tab.wait("document.querySelector('[aria-label=Events]')")
    tab.says("attempt 1, done again", "[data-chart=loss]")
    tab.picture(pictures / f"lanes-{scheme}-{width}.png")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert serious(tab) == []
    assert tab.complaints == []


def test_the_first_bad_rank_leads_to_its_step_by_keyboard(lived: Service, tab: Page) -> None:
    tab.go(f"{lived.url}/runs/lived")
    one = "document.querySelector('[aria-label=\"Ranks over steps\"] button')"
    tab.wait(one)
    tab.evaluate(f"{one}.focus()")
    tab.press("Enter", text="\r")
    first, last = tab.wait(
        "(q => q.get('from') && [Number(q.get('from')), Number(q.get('to'))])"
        "(new URLSearchParams(location.search))"
    )
    assert first <= SICK < last
    assert tab.complaints == []


def test_the_pointer_moves_a_line_over_the_ranks_and_draws_them_no_second_time(
    lived: Service, tab: Page
) -> None:
    tab.go(f"{lived.url}/runs/lived")
    canvas = "document.querySelector('[data-layer=ranks]')"
    tab.wait(f"{canvas}?.width > 300")
    tab.evaluate(
        "window.drawn = 0; const g = CanvasRenderingContext2D.prototype, fill = g.fillRect;"
        "g.fillRect = function (...a) { window.drawn += this.canvas.dataset.layer === 'ranks';"
        " fill.apply(this, a) }"
    )
    box = "document.querySelector('[data-layer=cursor]').getBoundingClientRect()"
    x, y, width = tab.evaluate(f"(b => [b.x, b.y, b.width])({box})")
    line = f"{canvas}.parentElement.querySelector('i')"
    for share in (0.25, 0.75):
        tab.mouse("mouseMoved", x + width * share, y + 5)
        wide = f"{canvas}.getBoundingClientRect().width"
        tab.wait(f"Math.abs(parseFloat({line}?.style.left) - {share} * {wide}) < 12")
    assert tab.evaluate("window.drawn") == 0
    tab.click("Zoom in")
    tab.wait("window.drawn > 0")
    assert tab.complaints == []


def test_a_scale_is_chosen_kept_in_the_url_and_undone(lived: Service, tab: Page) -> None:
    tab.go(f"{lived.url}/runs/lived")
    log = "document.querySelector('[data-chart=lr] .scale')"
    tab.wait(f"{log}?.ariaPressed === 'false'")
    tab.click("Log scale of Learning rate")
    tab.wait(f"{log}.ariaPressed === 'true' && location.search.includes('y=lr')")
    tab.evaluate("history.back()")
    tab.wait(f"{log}.ariaPressed === 'false'")
    tab.press("y", text="y")
    pressed = "[...document.querySelectorAll('.chart .scale')].map(b => b.ariaPressed)"
    tab.wait(f"{pressed}.every(p => p === 'true') && location.search.includes('y=log')")
    assert tab.complaints == []


def test_a_run_without_a_known_pattern_names_those_that_come_nearest(
    service: Service, tab: Page
) -> None:
    begin(service, "odd")
    key = wire.StreamKey("odd", "a1", 0, "n1")
    spent = {"loss": 2.0, "lr": 1e-3, "step_seconds": 0.1}
    frames = [
        frame(n, scalars=spent | {"data_seconds": 0.01 if n < 170 else 0.013})
        for n in range(1, 201)
    ]
    sent = wire.Batch(key, tuple(frames), LAYOUT.hash, LAYERS, sent_ns=1)
    service.call("POST", "/v1/ingest", content=wire.encode(sent), headers=FRAMES)
    until(lambda: service.get("/v1/runs/odd")["coverage"])
    until(lambda: service.get("/v1/runs/odd/diagnosis")["closest"])
    tab.go(f"{service.url}/runs/odd")
    told = tab.says("InputBound", "[aria-label=Diagnosis]")
    assert "No known pattern" in told
    assert "data_seconds went from 0.01 to 0.013" in told
    assert "against it" in told
    assert serious(tab) == []
    assert tab.complaints == []
