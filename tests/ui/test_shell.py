"""The frame around every page: its ways, its keys, and whether the service is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradwarden_server.settings import Settings
from tests.service import Service
from tests.ui.browser import Page
from tests.ui.conftest import Training

NAV = "document.querySelector('nav')"
HERE = "document.querySelector('nav [aria-current]')?.textContent.trim()"


def test_every_page_has_an_address_and_a_place_in_the_navigation(
    service: Service, page: Page
) -> None:
    for path, word in (
        ("/", "Runs"),
        ("/runs", "Runs"),
        ("/runs/none-such", "Runs"),
        ("/oncall", "On-call"),
        ("/alerts/1", "On-call"),
        ("/slos", "SLOs"),
        ("/slos/finite-steps", "SLOs"),
        ("/silences", "Silences"),
        ("/settings", "Settings"),
    ):
        page.go(service.url + path)
        page.wait(f"location.pathname === {path!r} && {HERE}?.startsWith({word!r})")
    page.go(f"{service.url}/no/such/place")
    assert "Nothing lives at" in page.wait("document.querySelector('.lost')?.innerText")


def test_letters_lead_anywhere_until_they_are_switched_off(service: Service, page: Page) -> None:
    page.go(f"{service.url}/runs")
    page.wait(NAV)
    for letter, path in (("o", "/oncall"), ("l", "/slos"), ("s", "/silences"), ("r", "/runs")):
        page.press("g", text="g")
        page.press(letter, text=letter)
        page.wait(f"location.pathname === {path!r}")
    page.press("?", "Slash", "?")
    page.wait("document.querySelector('dialog input[type=checkbox]')")
    page.evaluate("document.querySelector('dialog input[type=checkbox]').click()")
    page.evaluate("document.querySelector('dialog button').click()")
    page.wait("!document.querySelector('dialog')")
    page.press("g", text="g")
    page.press("o", text="o")
    assert page.evaluate("location.pathname") == "/runs"
    page.go(f"{service.url}/runs")
    page.wait(NAV)
    page.press("g", text="g")
    page.press("o", text="o")
    assert page.evaluate("location.pathname") == "/runs", "the choice is remembered"
    assert page.complaints == []


def test_the_navigation_counts_what_fires_and_fits_a_phone(
    service: Service, training: Training, page: Page, pictures: Path
) -> None:
    page.size(360, 740)
    page.go(f"{service.url}/runs")
    page.wait(f"/On-call\\s*[1-9]/.test({NAV}?.innerText)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("[...document.querySelectorAll('nav a')].every(a => a.offsetHeight >= 40)")
    page.picture(pictures / "shell-360.png", full=False)
    assert page.complaints == []


def test_the_header_says_when_the_service_is_gone_and_how_old_the_data_is(
    service: Service, page: Page
) -> None:
    page.go(f"{service.url}/runs")
    page.wait("document.querySelector('header .live')?.innerText === 'live'")
    page.call("Network.enable")
    offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.call("Network.emulateNetworkConditions", offline=True, **offline)
    said = page.wait("document.querySelector('header .live.offline')?.innerText")
    assert said.startswith("offline, last data ")
    page.call("Network.emulateNetworkConditions", offline=False, **offline)
    page.wait("document.querySelector('header .live')?.innerText === 'live'")


def test_a_heatmap_can_stand_in_a_page_of_those_who_may_and_of_no_other(
    service: Service, training: Training, page: Page, pictures: Path
) -> None:
    policy = service.call("GET", "/embed/runs/sick").headers["content-security-policy"]
    assert "frame-ancestors 'self' http://localhost:* http://127.0.0.1:*" in policy
    other = service.call("GET", "/runs/sick").headers["content-security-policy"]
    assert "frame-ancestors 'none'" in other
    page.size(600, 420)
    page.go(f"{service.url}/embed/runs/sick?theme=light")
    page.wait("document.querySelector('[data-layer=cells]')")
    assert page.evaluate("document.querySelector('header')") is None
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 600
    page.picture(pictures / "embed.png")
    assert page.complaints == []


@pytest.mark.parametrize("origins", ["'self'; script-src *", "https://a.example\nX-Y: z", ""])
def test_origins_cannot_bend_the_policy(origins: str) -> None:
    with pytest.raises(ValueError, match="embed_origins"):
        Settings(embed_origins=origins)
