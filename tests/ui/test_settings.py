"""Settings, an empty house, and who may do what: in a house that asks everybody for a token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service import Service, gradwarden
from tests.ui.axe import serious
from tests.ui.browser import Page

PAGES = ["/runs", "/oncall", "/slos", "/silences", "/silences?new=1", "/report"]
LEAVE = "dispatchEvent(new Event('pagehide'))"  # what waits to be undone is sent at once
TABS = ["tokens", "receivers", "rules", "prices", "data", "appearance"]
SIGN_IN = (
    "fetch('/v1/session', {method: 'POST', headers: {'content-type': 'application/json'},"
    " body: JSON.stringify({token: %r})}).then(answer => answer.status)"
)


@pytest.fixture(scope="module")
def house(
    dashboard: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, dict[str, str]]]:
    """A service that is not on loopback, without a run, and a token for each role."""
    folder = tmp_path_factory.mktemp("house")
    env = {"GRADWARDEN_DB": f"sqlite:///{folder / 'gradwarden.sqlite'}"}
    made = gradwarden("token", "create", "--scope", "admin", "--name", "the-admin", env=env)
    admin = next(word for word in made.stdout.split() if word.startswith("gw_"))
    shadow = {"GRADWARDEN_SHADOW_DAYS": "14"}
    running = Service(folder, host="0.0.0.0", env=shadow, token=admin)
    body = {"name": "the-read", "scope": "read"}
    read = running.call("POST", "/v1/tokens", json=body).json()["secret"]
    yield running, {"admin": admin, "read": read}
    running.close()


def enter(tab: Page, house: tuple[Service, dict[str, str]], scope: str, path: str) -> None:
    """Go to a page as somebody with a token of this scope."""
    service, secrets = house
    tab.go(service.url)
    tab.wait("document.querySelector('input[type=password]')")
    assert tab.evaluate(SIGN_IN % secrets[scope]) == 200
    tab.complaints.clear()  # a stranger's first questions were refused
    tab.go(service.url + path)


def test_a_token_is_shown_once_and_can_be_revoked(
    house: tuple[Service, dict[str, str]], tab: Page, pictures: Path
) -> None:
    service, _ = house
    enter(tab, house, "admin", "/settings")
    assert "the-read" in tab.says("the-admin", "table")
    tab.fill("form input", "ci-train")
    assert tab.evaluate("document.querySelector('form select').value") == "ingest", "the least"
    tab.click("Make a token")
    secret = tab.wait("document.querySelector('.secret code')?.innerText")
    assert secret.startswith("gw_")
    asked = service.call("GET", "/v1/alerts", headers={"Authorization": f"Bearer {secret}"})
    assert asked.status_code == 403, "it may only send"
    tab.says("ci-train", "table")
    tab.click("I have it")
    tab.wait("!document.querySelector('.secret')")
    assert secret not in tab.evaluate("document.documentElement.outerHTML")
    tab.picture(pictures / "settings-tokens.png")
    tab.click("Revoke ci-train")
    tab.says("Revoked ci-train", ".held")
    tab.evaluate(LEAVE)
    tab.wait("!document.querySelector('table').innerText.includes('ci-train')")
    asked = service.call("GET", "/v1/alerts", headers={"Authorization": f"Bearer {secret}"})
    assert asked.status_code == 401
    assert tab.complaints == []


def test_who_may_only_read_is_told_which_role_is_needed(
    house: tuple[Service, dict[str, str]], tab: Page
) -> None:
    enter(tab, house, "read", "/settings")
    refused = tab.says("needs scope admin", "[role=alert]")
    assert "request " in refused
    tab.click("Rules")
    tab.says("Shadow period")
    tab.click("Let it page: NonFiniteGradient")
    tab.evaluate(LEAVE)
    tab.says("Not done", ".held .failed")
    assert "needs scope admin" in tab.says("Retry", ".held .failed")


def test_the_shadow_period_ends_for_one_rule_or_for_all(
    house: tuple[Service, dict[str, str]], tab: Page, pictures: Path
) -> None:
    service, _ = house
    enter(tab, house, "admin", "/settings?tab=rules")
    tab.says("Shadow period")
    tab.picture(pictures / "settings-rules.png")
    tab.click("Let it page: NonFiniteGradient")
    tab.evaluate(LEAVE)
    tab.says("NonFiniteGradient", "tbody")
    tab.says("ago", "td.right.nowrap:has(.muted)")
    pages = {one["alert"]: one["pages"] for one in service.get("/v1/shadow")["rules"]}
    assert pages["NonFiniteGradient"]
    assert not pages["RunStalled"]
    assert tab.complaints == []


def test_keeping_less_asks_twice(house: tuple[Service, dict[str, str]], tab: Page) -> None:
    service, _ = house
    enter(tab, house, "admin", "/settings?tab=data")
    before = service.get("/v1/retention")
    tab.wait("document.querySelector('form input')?.value")
    tab.fill("form input", "1.5")
    tab.click("Keep less…")
    tab.says("go for good")
    assert service.get("/v1/retention") == before
    tab.click("Yes, delete what is older")
    tab.says("Kept from now on")
    assert service.get("/v1/retention")["raw_days"] == 1.5
    assert tab.complaints == []


def test_looks_are_remembered_and_letters_can_be_switched_off(
    house: tuple[Service, dict[str, str]], tab: Page
) -> None:
    enter(tab, house, "read", "/settings?tab=appearance")
    ground = "getComputedStyle(document.body).backgroundColor"
    tab.says("Times of day")
    tab.evaluate("document.querySelector('input[value=light]').click()")
    tab.wait(f"{ground} === 'rgb(255, 255, 255)'")
    tab.evaluate("document.querySelector('input[value=comfortable]').click()")
    tab.evaluate("document.querySelector('input[value=utc]').click()")
    tab.evaluate("document.querySelector('input[type=checkbox]').click()")
    tab.go(house[0].url + "/silences")
    tab.says("Nothing is silenced")
    assert tab.evaluate(ground) == "rgb(255, 255, 255)"
    assert tab.evaluate("document.documentElement.dataset.density") == "comfortable"
    tab.press("c", text="c")
    assert not tab.evaluate("document.querySelector('form')")
    tab.evaluate("localStorage.clear()")
    tab.go(house[0].url + "/silences")
    tab.says("Nothing is silenced")
    tab.press("c", text="c")
    tab.wait("document.querySelector('form')")
    assert tab.complaints == []


def test_an_empty_house_says_on_every_page_what_comes_next(
    house: tuple[Service, dict[str, str]], tab: Page
) -> None:
    enter(tab, house, "admin", "/oncall")
    text = tab.says("All clear")
    assert "no run is live" in text
    assert "Nobody would be told" in tab.says("no receiver")
    tab.click("How to add one")
    assert "--receivers" in tab.says("Nobody is told")
    tab.go(house[0].url + "/silences")
    assert "on-call page" in tab.says("Nothing is silenced")
    assert tab.complaints == []


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_no_page_keeps_anybody_out(
    house: tuple[Service, dict[str, str]], tab: Page, scheme: str
) -> None:
    """axe-core finds nothing serious, at a width where nothing may be cut off either."""
    tab.scheme(scheme)
    enter(tab, house, "admin", "/runs")
    problems = {}
    for path in [*PAGES, *(f"/settings?tab={name}" for name in TABS)]:
        for width in (1440, 360):
            tab.size(width, 900)
            if width == 1440:
                tab.go(house[0].url + path)
                tab.wait("document.querySelector('main :is(h1, h2)')")
                tab.wait("!document.querySelector('.skeleton')")
                found = serious(tab)
            elif tab.evaluate("document.documentElement.scrollWidth") > width:
                found = [f"wider than {width} pixels"]
            if found:
                problems[f"{path} at {width}"] = found
            found = []
    assert problems == {}
