"""What happens now is seen now: by every tab, over one connection, and the past is read once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.traffic import batch, begin, frame, send
from tests.service import Service
from tests.ui.browser import Page, Tab
from tests.ui.conftest import until
from tests.ui.test_pages import MAGENTA

LIVE = "document.querySelector('header .live')?.innerText === 'live'"
STEP = "document.querySelector('.verdict dd')?.innerText"
# What was asked for since the page was loaded: path and query, and bytes over the wire.
ASKED = (
    "performance.getEntriesByType('resource').filter(e => e.name.includes('/v1/'))"
    ".map(e => [e.name.slice(location.origin.length), e.transferSize])"
)


@pytest.fixture
def alone(dashboard: None, tmp_path: Path) -> Iterator[Service]:
    """A service to kill, and to count the streams of."""
    running = Service(tmp_path / "service")
    yield running
    running.close()


def streams(service: Service) -> float:
    """How many are open."""
    text = service.call("GET", "/metrics").text
    return float(re.findall(r"^gradwarden_streams (\S+)", text, re.M)[0])


def asked(tab: Tab, part: str) -> list[str]:
    """The calls so far whose path has ``part``."""
    return [name for name, _ in tab.evaluate(ASKED) if part in name]


def test_three_tabs_hear_over_one_connection_and_outlive_the_tab_that_held_it(
    alone: Service, page: Page
) -> None:
    begin(alone, "told")
    send(alone, batch("told", [frame(1)]))
    second, third = page.tab(), page.tab()
    for tab in (page, second):
        tab.go(f"{alone.url}/runs")
        tab.wait("document.querySelector('a.run')")
    third.go(f"{alone.url}/runs/told")
    third.wait(f"{STEP} === '0'")
    for tab in (page, second, third):
        tab.wait(LIVE)
    looked = len(asked(second, "/v1/runs?"))
    cell = "document.querySelector('tbody td.mono')?.innerText"
    for seq in range(2, 6):
        send(alone, batch("told", [frame(seq)]))
        page.wait(f"{cell} === '{seq - 1}'")
        second.wait(f"{cell} === '{seq - 1}'")
        third.wait(f"{STEP} === '{seq - 1}'")
    assert len(asked(second, "/v1/runs?")) <= looked + 1, "it is told, and does not ask again"
    until(lambda: streams(alone) == 1)
    page.go("about:blank")
    until(lambda: streams(alone) == 1)
    for seq in range(6, 9):
        send(alone, batch("told", [frame(seq)]))
        second.wait(f"{cell} === '{seq - 1}'")
        third.wait(f"{STEP} === '{seq - 1}'")
    assert streams(alone) == 1
    assert page.complaints + second.complaints + third.complaints == []


def test_a_run_page_asks_for_new_steps_alone_and_shows_them(alone: Service, page: Page) -> None:
    begin(alone, "long")
    for first in range(1, 1201, 200):
        send(alone, batch("long", [frame(seq) for seq in range(first, first + 200)]))
    page.go(f"{alone.url}/runs/long")
    page.wait("document.querySelector('[data-layer=cells]')")
    page.wait(LIVE)
    page.wait("document.querySelector('.window')?.innerText.includes('1,199')")
    page.wait(f"{ASKED}.some(([name]) => name.includes('/events'))")
    page.evaluate("performance.clearResourceTimings()")
    send(alone, batch("long", [frame(1201), frame(1202, bad_row=2), frame(1203)]))
    page.wait("document.querySelector('.window')?.innerText.includes('1,202')")
    marks = page.wait(f"(m => m.count && m)({MAGENTA}('[data-layer=cells]'))")
    assert marks["first"] > 0.98
    page.wait(f"{ASKED}.some(([name]) => name.includes('/events'))")
    whole = [n for n in asked(page, "/heatmap") + asked(page, "/series") if "from=" not in n]
    assert whole == [], "what was here is not asked for again"
    size = sum(s for name, s in page.evaluate(ASKED) if "/heatmap" in name or "/series" in name)
    print(f"three new steps of 1,203 cost {size} bytes of heatmap and series")
    assert 0 < size < 15_000
    assert page.complaints == []


def test_on_call_is_told_of_an_alert_and_does_not_ask_for_runs_again(
    alone: Service, page: Page
) -> None:
    begin(alone, "ill")
    send(alone, batch("ill", [frame(1)]))
    page.go(f"{alone.url}/oncall")
    page.wait(LIVE)
    page.says("0 firing")
    page.says("telemetry fresh")
    page.wait(f"{ASKED}.some(([name]) => name.includes('/v1/runs?'))")
    until(lambda: streams(alone) == 1)
    page.evaluate("performance.clearResourceTimings()")
    send(alone, batch("ill", [frame(2), frame(3, bad_row=2), frame(4, bad_row=2)]))
    page.wait("document.querySelector('[data-incident]')?.innerText.includes('NonFinite')")
    page.says("1 firing", ".counts")
    assert len(asked(page, "/v1/runs?")) <= 1, "the stream tells of runs; a slow look may fall in"
    assert streams(alone) == 1
    assert page.complaints == []


def test_a_page_finds_its_service_again_and_what_it_missed(alone: Service, page: Page) -> None:
    begin(alone, "back")
    send(alone, batch("back", [frame(1)]))
    page.go(f"{alone.url}/runs/back")
    page.wait(f"{STEP} === '0'")
    page.wait(LIVE)
    alone.kill()
    page.wait("document.querySelector('header .live.offline')")
    assert page.evaluate(STEP) == "0", "what was known stays"
    alone.start()
    send(alone, batch("back", [frame(2), frame(3)]))
    page.wait(f"{STEP} === '2'", 60)
    page.wait(LIVE)
    page.evaluate("performance.clearResourceTimings()")
    send(alone, batch("back", [frame(4)]))
    page.wait(f"{STEP} === '3'", 60)


def test_tabs_poll_where_no_stream_can_be_had(dashboard: None, page: Page, tmp_path: Path) -> None:
    service = Service(tmp_path / "service")
    try:
        begin(service, "polled")
        send(service, batch("polled", [frame(1)]))
        page.call("Network.enable")
        page.call("Network.setBlockedURLs", urls=["*/v1/stream*"])
        page.go(f"{service.url}/runs/polled")
        page.wait(f"{STEP} === '0'")
        send(service, batch("polled", [frame(2)]))
        page.wait(f"{STEP} === '1'")
    finally:
        service.close()
