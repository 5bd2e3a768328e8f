"""A run as one HTML file: from the disk, with the network cut, it shows what the page does."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradwarden_server.transfer.page import MOST_BYTES
from tests.server.traffic import problem
from tests.service import Service, gradwarden
from tests.ui.axe import serious
from tests.ui.browser import Page
from tests.ui.conftest import SICK_LAYER, SICK_STEP, STEPS, Training
from tests.ui.test_pages import MAGENTA

FETCHED = "performance.getEntriesByType('resource').map(entry => entry.name)"
SHOWN = (
    "document.querySelectorAll('.uplot').length >= 3"
    " && document.querySelector('[data-layer=cells]')"
)


@pytest.fixture(scope="module")
def file(service: Service, training: Training, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sick run of these tests, written by the command line."""
    to = tmp_path_factory.mktemp("export") / "run.html"
    done = gradwarden("export", "sick", "-o", str(to), "--url", service.url)
    assert done.returncode == 0, done.stderr
    return to


@pytest.fixture
def opened(tab: Page, file: Path) -> Page:
    """The file in a browser that reaches nothing."""
    tab.network(offline=True)
    tab.go(file.as_uri())
    tab.wait(SHOWN)
    return tab


def test_the_file_shows_the_run_without_any_request(opened: Page, file: Path) -> None:
    assert file.stat().st_size < MOST_BYTES
    said = opened.says("About this run")
    for words in ("Critical", "Diagnosis", "Coverage", "NonFiniteGradient", "owner", "mei"):
        assert words in said
    assert opened.evaluate("document.title") == "sick · gradwarden"
    marks = opened.evaluate(f"{MAGENTA}('[data-layer=cells]')")
    assert marks["first"] == pytest.approx(SICK_STEP / STEPS, abs=0.02)
    story = opened.evaluate("document.querySelector('.stories details[open]').innerText")
    assert "pending" in story
    assert "firing" in story
    assert opened.evaluate(FETCHED) == []
    assert opened.complaints == []


def test_what_was_seen_opens_its_steps_and_an_alert_its_story(opened: Page) -> None:
    opened.evaluate("document.querySelector('[aria-label=Diagnosis] .seen a').click()")
    opened.wait(f"document.querySelector('.chart h2').innerText.includes({SICK_LAYER!r})")
    opened.evaluate("document.querySelectorAll('.stories details').forEach(d => d.open = false)")
    opened.evaluate("document.querySelector('[aria-label=Alerts] a[href*=\"/alerts/\"]').click()")
    opened.wait(
        "document.activeElement.tagName === 'SUMMARY' && document.activeElement.parentElement.open"
    )
    assert opened.evaluate("location.protocol") == "file:"
    assert opened.evaluate(FETCHED) == []
    assert opened.complaints == []


def test_links_to_the_service_name_the_run_s_project(opened: Page, service: Service) -> None:
    link = "document.querySelector('header [data-live]')"
    assert opened.evaluate(f"{link}.href") == f"{service.url}/runs/sick?project=default"
    opened.evaluate(
        "addEventListener('click', e => { window.left = !e.defaultPrevented; e.preventDefault() })"
    )
    opened.evaluate(f"{link}.click()")
    assert opened.evaluate("left"), "the live page is the service's, not a place in the file"
    runs = opened.evaluate("document.querySelector('.verdict a').href")
    assert runs == f"{service.url}/runs?project=default"


def test_every_colour_of_the_file_draws_and_a_layer_without_lines_says_so(opened: Page) -> None:
    count = opened.evaluate("document.querySelectorAll('.tools option').length")
    assert count == 8
    opened.fill(".tools select", "absmax")
    opened.wait("document.querySelector('.legend').innerText.includes('largest |gradient|')")
    opened.click("Unfold")
    row = "[...document.querySelectorAll('.label')].find(b => b.title.startsWith('3.bias'))"
    opened.wait(row)
    opened.evaluate(f"{row}.click()")
    opened.says("are not in this file", ".plots")
    assert opened.complaints == []


def test_the_keyboard_finds_the_first_nan(opened: Page) -> None:
    opened.press("n", "KeyN", "n")
    opened.wait(
        f"document.querySelector('[aria-live=polite]').innerText.includes('step {SICK_STEP}')"
    )


@pytest.mark.parametrize(("width", "scheme"), [(1440, "dark"), (1440, "light"), (360, "dark")])
def test_the_file_fits_phones_and_says_everything_to_everybody(
    opened: Page, file: Path, pictures: Path, width: int, scheme: str
) -> None:
    opened.size(width, 900)
    opened.scheme(scheme)
    opened.go(file.as_uri())
    opened.wait(SHOWN)
    opened.picture(pictures / f"export-{scheme}-{width}.png")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert serious(opened) == []


def test_the_run_page_has_a_button_for_the_same_file(
    service: Service, training: Training, tab: Page
) -> None:
    tab.go(f"{service.url}/runs/sick")
    tab.says("Export", ".verdict")
    link = tab.evaluate("document.querySelector('.verdict a[download]').getAttribute('href')")
    answer = service.call("GET", link)
    assert answer.status_code == 200
    assert "attachment" in answer.headers["content-disposition"]
    assert answer.headers["content-disposition"].endswith('"sick.html"')
    assert answer.text.startswith("<!doctype html>")
    refused = service.call("GET", "/v1/runs/sick/export?format=pdf")
    assert refused.status_code == 400
    assert "html" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [("from=100000", "from: 100000; no step is left"), ("from=9&to=3", "no step up to 3 is left")],
)
def test_steps_that_the_run_has_not_are_refused_before_anything_is_sent(
    service: Service, training: Training, asked: str, words: str
) -> None:
    refused = service.call("GET", f"/v1/runs/sick/export?format=html&{asked}")
    problem(refused, 400, "malformed")
    assert words in refused.json()["detail"]
    assert f"the run has steps 0 to {STEPS - 1}" in refused.json()["detail"]
