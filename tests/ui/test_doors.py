"""The way in: an empty house tells how to begin, a locked one asks for a token."""

from __future__ import annotations

from pathlib import Path

from tests.service import Service, gradwarden
from tests.ui.browser import Page


def test_an_empty_house_says_how_to_begin(service: Service, page: Page, pictures: Path) -> None:
    page.go(service.url)
    text = page.wait("document.querySelector('.empty')?.innerText")
    assert "gradwarden.watch(model, optimizer)" in text
    assert service.url in text
    page.picture(pictures / "empty.png")
    assert page.complaints == []


def test_a_locked_house_asks_for_a_token_and_keeps_none(
    dashboard: None, page: Page, pictures: Path, tmp_path: Path
) -> None:
    db = {"GRADWARDEN_DB": f"sqlite:///{tmp_path / 'service' / 'gradwarden.sqlite'}"}
    (tmp_path / "service").mkdir()
    made = gradwarden("token", "create", "--scope", "read", "--name", "ui", env=db)
    secret = next(word for word in made.stdout.split() if word.startswith("gw_"))
    locked = Service(tmp_path / "service", host="0.0.0.0")
    try:
        page.go(locked.url)
        page.wait("document.querySelector('input[type=password]')")
        page.picture(pictures / "login.png")
        write = (
            "(t => { const i = document.querySelector('input'); i.value = t;"
            " i.dispatchEvent(new Event('input')); })"
        )
        submit = "document.querySelector('form').requestSubmit()"
        page.evaluate(f"{write}('gw_wrong')")
        page.evaluate(submit)
        page.wait("document.querySelector('#problem').textContent.includes('unknown')")
        page.evaluate(f"{write}({secret!r})")
        page.evaluate(submit)
        page.wait("document.querySelector('.empty')")
        page.go(locked.url + "/runs")
        page.wait("document.querySelector('.empty')")
        assert page.evaluate("document.cookie") == "", "the session is out of scripts' reach"
        assert secret not in page.evaluate("JSON.stringify(localStorage) + location.href")
        refused = [text for text in page.complaints if "401" not in text]
        assert refused == []
    finally:
        locked.close()
