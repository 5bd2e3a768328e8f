"""What a person sees of a real run that fell ill, in a real browser, from a real service."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.server.traffic import batch, begin, frame, send
from tests.service import Service
from tests.ui.browser import Page
from tests.ui.conftest import SICK_LAYER, SICK_STEP, STEPS, Training

# Pixels of a canvas that are the magenta of NaN, by x; read back as a person would see them.
MAGENTA = """
(selector => {
  const canvas = document.querySelector(selector);
  const { width, height } = canvas;
  const data = canvas.getContext('2d').getImageData(0, 0, width, height).data;
  const xs = new Set();
  for (let k = 0; k < data.length; k += 4)
    if (data[k] > 240 && data[k + 1] < 70 && data[k + 2] > 190) xs.add((k / 4) % width);
  const list = [...xs].sort((a, b) => a - b);
  return { count: list.length, first: list[0] / width, last: list.at(-1) / width };
})
"""
CHARTS = "document.querySelectorAll('.uplot canvas').length"
SPREAD = """
(() => {
  const canvas = document.querySelector('[data-chart=loss] canvas');
  const { width, height } = canvas;
  const data = canvas.getContext('2d').getImageData(0, 0, width, height).data;
  const xs = new Set();
  for (let k = 0; k < data.length; k += 4)
    if (data[k + 3] > 200 && data[k + 2] > data[k] + 60) xs.add((k / 4) % width);
  return xs.size / width;
})()
"""
LOOKS = [("dark", 1440), ("light", 1440), ("dark", 360)]


def open_run(page: Page, service: Service, query: str = "") -> None:
    page.go(f"{service.url}/runs/sick{query}")
    page.wait("document.querySelector('[data-layer=cells]')")
    # What is far below is mounted when somebody comes near it.
    page.evaluate("document.querySelector('.plots').scrollIntoView({ block: 'end' })")
    page.wait(f"{CHARTS} >= 2")
    page.evaluate("scrollTo(0, 0)")


@pytest.mark.parametrize(("scheme", "width"), LOOKS)
def test_both_pages_show_what_broke_where_and_when(
    service: Service, training: Training, page: Page, pictures: Path, scheme: str, width: int
) -> None:
    page.size(width, 900)
    page.scheme(scheme)
    page.go(f"{service.url}/runs")
    row = page.wait("document.querySelector('tbody tr')?.textContent")
    assert "Critical" in row
    assert "sick" in row
    page.picture(pictures / f"runs-{scheme}-{width}.png")

    open_run(page, service)
    verdict = page.wait("document.querySelector('.verdict.crit')?.innerText")
    assert "Critical" in verdict
    assert SICK_LAYER in verdict
    assert f"step {SICK_STEP}" in verdict
    cells = page.evaluate(f"{MAGENTA}('[data-layer=cells]')")
    assert cells["first"] == pytest.approx(SICK_STEP / STEPS, abs=0.03)
    assert page.evaluate(f"{MAGENTA}('[data-layer=nan-lane]')")["count"] >= 3
    assert page.evaluate(SPREAD) > 0.4, "the loss is a line over its finite steps"
    alerts = page.evaluate("document.querySelector('[aria-label=Alerts]').innerText")
    assert "NonFiniteGradient" in alerts
    told = page.wait("document.querySelector('[aria-label=Diagnosis]')?.innerText")
    assert "Do first" in told
    assert "confidence" in told
    page.picture(pictures / f"run-{scheme}-{width}.png")

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.complaints == []


def test_the_row_opens_by_keyboard_and_the_filter_is_in_the_url(
    service: Service, training: Training, page: Page
) -> None:
    page.go(f"{service.url}/runs")
    page.wait("document.querySelector('a.run')")
    page.press("/", "Slash", "/")
    for letter in "nosuch":
        page.press(letter, text=letter)
    page.wait("location.search === '?q=nosuch' && document.body.innerText.includes('filter hides')")
    page.evaluate("document.querySelector('.empty button').click()")
    page.wait("location.search === '' && document.querySelector('a.run')")
    page.evaluate("document.activeElement.blur()")
    page.press("j", text="j")
    assert page.evaluate("document.activeElement.textContent") == "sick"
    page.press("Enter", text="\r")
    page.wait("location.pathname === '/runs/sick'")
    assert page.complaints == []


def test_a_cell_is_read_out_by_pointer_and_by_keyboard(
    service: Service, training: Training, page: Page
) -> None:
    open_run(page, service)
    box = page.evaluate(
        "(r => [r.x, r.y, r.width, r.height])"
        "(document.querySelector('[data-layer=cursor]').getBoundingClientRect())"
    )
    x, y, width, _ = box
    page.mouse("mouseMoved", x + width * (SICK_STEP + 10.5) / STEPS, y + 5)
    tip = page.wait("document.querySelector('.tip')?.innerText")
    assert "NaN in" in tip
    assert f"step {SICK_STEP + 10}" in tip
    assert page.evaluate("document.querySelectorAll('.u-cursor-x').length") >= 2

    page.evaluate("document.querySelector('[role=application]').focus()")
    page.press("ArrowLeft")
    page.wait(f"document.querySelector('.tip')?.innerText.includes('step {SICK_STEP + 9}')")
    page.wait("document.querySelector('.wrap [aria-live]').textContent.includes('NaN in')")
    page.press("p", text="p")
    page.wait(f"document.querySelector('.tip')?.innerText.includes('step {SICK_STEP}')")
    assert page.complaints == []


def test_drag_zooms_and_the_url_holds_the_view(
    service: Service, training: Training, page: Page
) -> None:
    open_run(page, service)
    x, y, width, height = page.evaluate(
        "(r => [r.x, r.y, r.width, r.height])"
        "(document.querySelector('[data-layer=cursor]').getBoundingClientRect())"
    )
    left = {"button": "left", "clickCount": 1}
    page.mouse("mousePressed", x + width * 0.5, y + height / 2, **left)
    page.mouse("mouseMoved", x + width * 0.6, y + height / 2, button="left", buttons=1)
    page.mouse("mouseMoved", x + width * 0.75, y + height / 2, button="left", buttons=1)
    page.mouse("mouseReleased", x + width * 0.75, y + height / 2, **left)
    page.wait("new URLSearchParams(location.search).get('from')")
    first, last = page.evaluate(
        "['from', 'to'].map(k => Number(new URLSearchParams(location.search).get(k)))"
    )
    assert first == pytest.approx(STEPS / 2, abs=3)
    assert last == pytest.approx(STEPS * 0.75, abs=3)

    page.press("b", text="b")
    page.wait("new URLSearchParams(location.search).get('mode') === 'base'")
    view = page.evaluate("location.href")
    page.go("about:blank")
    page.go(view)
    page.wait("document.querySelector('[aria-pressed=true]')?.textContent === 'vs baseline'")
    page.wait("document.querySelector('[data-layer=cells]')")
    marks = page.wait(f"{MAGENTA}('[data-layer=cells]')")
    assert marks["first"] == pytest.approx((SICK_STEP - first) / (last - first), abs=0.05)
    page.press("f", text="f")
    page.wait("!new URLSearchParams(location.search).has('from')")
    assert page.complaints == []


def test_each_thing_that_was_seen_opens_the_steps_it_speaks_of(
    service: Service, training: Training, page: Page
) -> None:
    open_run(page, service)
    page.wait("document.querySelector('[aria-label=Diagnosis] .seen a')")
    page.evaluate("document.querySelector('[aria-label=Diagnosis] .seen a').click()")
    first, last = page.wait(
        "(q => q.get('from') && [Number(q.get('from')), Number(q.get('to'))])"
        "(new URLSearchParams(location.search))"
    )
    assert first <= SICK_STEP <= last
    coverage = page.evaluate("document.querySelector('[aria-label=Coverage] h2').innerText")
    armed, of = map(int, re.findall(r"(\d+) of (\d+) armed", coverage)[0])
    told = service.get("/v1/runs/sick/diagnosis")["coverage"]
    assert (armed, of) == (told["armed"], told["of"])
    alert = page.evaluate("document.querySelector('[aria-label=Alerts] a').pathname")
    page.evaluate("document.querySelector('[aria-label=Alerts] a').click()")
    page.wait(f"location.pathname === {alert!r}")
    assert re.fullmatch(r"/alerts/\d+", alert)
    assert page.complaints == []


def test_steps_that_are_selected_say_what_differs_in_them(
    service: Service, training: Training, page: Page, pictures: Path
) -> None:
    open_run(page, service)
    x, y, width, height = page.evaluate(
        "(r => [r.x, r.y, r.width, r.height])"
        "(document.querySelector('[data-layer=cursor]').getBoundingClientRect())"
    )
    shift = {"modifiers": 8}
    left, right = x + width * (SICK_STEP + 1) / STEPS, x + width * (SICK_STEP + 41) / STEPS
    page.mouse("mousePressed", left, y + height / 2, button="left", clickCount=1, **shift)
    page.mouse("mouseMoved", left + 9, y + height / 2, button="left", buttons=1, **shift)
    page.mouse("mouseMoved", right, y + height / 2, button="left", buttons=1, **shift)
    page.mouse("mouseReleased", right, y + height / 2, button="left", clickCount=1, **shift)
    page.wait("new URLSearchParams(location.search).get('diff')")
    said = page.wait(
        "document.querySelector('[aria-label=\"What differs here\"] tbody')?.innerText"
    )
    assert f"{SICK_LAYER}.weight" in said
    assert "not finite" in said
    page.picture(pictures / "run-differs.png")
    page.press("Escape")
    page.wait("!document.querySelector('[aria-label=\"What differs here\"]')")
    assert page.complaints == []


def test_another_run_stands_beside_this_one(
    service: Service, training: Training, page: Page, pictures: Path
) -> None:
    begin(service, "calm")
    send(service, batch("calm", [frame(seq) for seq in range(1, 101)]))
    open_run(page, service)
    press = "[...document.querySelectorAll('.tools button')].find(b => b.innerText === 'Compare')"
    page.evaluate(f"{press}.click()")
    page.wait("document.querySelector('[aria-label=\"Compared with\"] option[value=calm]')")
    page.evaluate(
        "(s => { s.value = 'calm'; s.dispatchEvent(new Event('change', { bubbles: true })); })"
        "(document.querySelector('[aria-label=\"Compared with\"] select'))"
    )
    page.wait("location.search.includes('cmp=calm')")
    page.wait("document.querySelectorAll('[data-layer=cells]').length === 2")
    page.wait("document.querySelector('[data-chart=loss] h2').innerText.includes('calm')")
    page.picture(pictures / "run-compared.png")
    page.go(f"{service.url}/runs/sick?cmp=calm")
    page.wait("document.querySelectorAll('[data-layer=cells]').length === 2")
    assert page.complaints == []


def test_the_page_follows_a_run_that_goes_on(
    service: Service, training: Training, page: Page, tmp_path: Path
) -> None:
    page.go(f"{service.url}/runs")
    first = Training(service, "growing", tmp_path, "--pause", "0.02", "--hold")
    try:
        page.wait("[...document.querySelectorAll('a.run')].find(a => a.textContent === 'growing')")
        page.evaluate("document.querySelector('a.run').click()")
        page.wait("location.pathname === '/runs/growing'")
        page.wait("document.querySelector('[data-layer=cells]')")
        page.wait(f"document.querySelector('.window')?.innerText.includes('{STEPS - 1}')")
    finally:
        first.end()
    page.wait("document.querySelector('.verdict').innerText.includes('finished')")
    assert page.complaints == []


def test_a_run_that_nobody_knows_and_a_service_that_is_gone_are_said(
    service: Service, training: Training, page: Page
) -> None:
    page.go(f"{service.url}/runs/none-such")
    assert "Retry" in page.wait("document.querySelector('[role=alert]')?.innerText")
    page.go(f"{service.url}/runs")
    page.wait("document.querySelector('a.run')")
    page.call("Network.enable")
    page.network(offline=True)
    banner = page.wait("document.querySelector('[role=alert]')?.innerText")
    assert "does not answer" in banner
    assert page.evaluate("document.querySelectorAll('a.run').length") >= 1, "the list stays"
    assert "violates" not in json.dumps(page.complaints)


def test_the_keys_are_explained_and_the_theme_is_remembered(
    service: Service, training: Training, page: Page
) -> None:
    page.go(f"{service.url}/runs")
    page.wait("document.querySelector('a.run')")
    page.press("?", "Slash", "?")
    page.wait("document.querySelector('dialog[open]')?.innerText.includes('vs baseline')")
    page.evaluate("document.querySelector('dialog button').click()")
    page.wait("!document.querySelector('dialog')")
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(16, 20, 24)"
    page.press("t", text="t")
    page.press("t", text="t")
    page.wait(f"{ground} === 'rgb(255, 255, 255)'")
    page.go(f"{service.url}/runs/sick")
    page.wait("document.querySelector('.verdict')")
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    assert page.complaints == []
