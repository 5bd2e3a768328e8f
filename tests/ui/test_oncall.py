"""At three in the morning: what broke, what to do first, and that it is done, from a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.server.traffic import batch, begin, frame, send
from tests.service import Service
from tests.ui.axe import serious
from tests.ui.browser import Page
from tests.ui.conftest import SICK_LAYER, SICK_STEP, Training, firing, until

LEAVE = "dispatchEvent(new Event('pagehide'))"  # what waits to be undone is sent at once
SMALL = """
[...document.querySelectorAll('[data-incident] .actions :is(button, select, a)')]
  .map(b => b.getBoundingClientRect()).filter(r => r.height < 44 || r.width < 44).length
"""

# Answers about alerts can be kept back (`hold`) or made refusals (`broken`); `asked` counts them.
BETWEEN = """
window.asked = window.given = 0;
const ask = window.fetch;
window.fetch = async (...of) => {
  const answer = await ask(...of);
  const url = String(of[0]);
  if (url.includes('/v1/stream')) window.streaming = true;
  if (!url.includes('/v1/alerts?') || !url.includes('limit=500')) return answer;
  window.asked++;
  await window.hold;
  setTimeout(() => window.given++);
  return window.broken ? new Response('{}', { status: 503 }) : answer;
};
"""
LOOK = "document.dispatchEvent(new Event('visibilitychange'))"  # as when a tab is seen again


@pytest.fixture(scope="module")
def pager() -> Iterator[str]:
    """The address of somebody who takes every message, and of a path that takes none."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(200 if self.path == "/takes" else 400)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture(scope="module")
def service(
    dashboard: None, pager: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A real service that tells one receiver who listens and one who does not."""
    receivers = "receivers:\n" + "".join(
        f"  - {{name: {name}, type: webhook, url: '{pager}/{path}', allow_private: true,"
        " severities: [page, ticket]}\n"
        for name, path in (("ops", "takes"), ("desk", "refuses"))
    )
    running = Service(tmp_path_factory.mktemp("service"), receivers=receivers)
    yield running
    running.close()


@pytest.fixture(scope="module")
def sick(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """Three real runs that fell ill in the same way; the ids of their NonFiniteGradient."""
    names = ("seen", "hushed", "told")
    sickness = ("--sick-step", str(SICK_STEP), "--runs", ",".join(names), "--hold")
    runs = Training(service, "unused", tmp_path_factory.mktemp("training"), *sickness)
    try:
        until(lambda: all(firing(service, name) >= 2 for name in names))
        items = service.get("/v1/alerts?state=firing")["items"]
        cause = [one for one in items if one["alertname"] == "NonFiniteGradient"]
        yield {one["labels"]["run"]: one["id"] for one in cause}
    finally:
        runs.end()


def card(alert: int) -> str:
    return f"[data-incident='{alert}']"


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_phone_shows_one_card_for_a_run_and_its_cause(
    service: Service, sick: dict[str, int], tab: Page, pictures: Path, scheme: str
) -> None:
    tab.size(360, 740)
    tab.scheme(scheme)
    tab.go(f"{service.url}/oncall")
    text = tab.says("NonFiniteGradient", card(sick["seen"]))
    assert "seen" in text
    assert "owner mei" in text
    assert SICK_LAYER in text
    assert f"step {SICK_STEP}" in text
    assert "because of it: NonFiniteLoss" in text
    assert "Do first:" in text
    assert re.search(r"process-minute", text), "what it costs"
    assert "told: ops" in text
    assert "not told: desk" in text
    assert tab.evaluate("document.querySelectorAll('[data-incident]').length") == 3
    assert "3 firing" in tab.says("telemetry")
    assert tab.evaluate(SMALL) == 0, "a target for a thumb has 44 pixels"
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    assert serious(tab) == []
    tab.picture(pictures / f"oncall-{scheme}-360.png")
    assert tab.complaints == []


def test_an_acknowledgement_can_be_taken_back_and_is_sent_when_the_page_is_left(
    service: Service, sick: dict[str, int], tab: Page
) -> None:
    alert = sick["seen"]
    tab.go(f"{service.url}/oncall")
    tab.click("Ack", card(alert))
    tab.says("Acknowledged NonFiniteGradient on seen", ".held")
    tab.says("Taken care of", card(alert))
    tab.click("Undo")
    tab.wait("!document.querySelector('.held .deed')")
    assert service.get(f"/v1/alerts/{alert}")["acknowledged_at"] is None

    tab.evaluate(f'document.querySelector("{card(alert)} [data-row]").focus()')
    tab.press("a", text="a")
    tab.says("Acknowledged", ".held")
    tab.go("about:blank")
    until(lambda: service.get(f"/v1/alerts/{alert}")["acknowledged_at"] is not None)
    tab.go(f"{service.url}/oncall")
    tab.says("Taken care of by", card(alert))
    assert tab.complaints == []


def test_a_silence_hides_the_card_and_stands_on_its_page_with_what_it_hides(
    service: Service, sick: dict[str, int], tab: Page, pictures: Path
) -> None:
    alert = sick["hushed"]
    tab.go(f"{service.url}/oncall")
    tab.click("Silence 1 h", card(alert))
    tab.wait(f'!document.querySelector("{card(alert)}")')
    tab.evaluate(LEAVE)
    tab.wait("!document.querySelector('.held .deed')")  # it was taken, or says what went wrong
    assert service.get("/v1/silences?state=active")["items"]
    until(lambda: service.get(f"/v1/alerts/{alert}")["muted"] is not None)
    tab.click("1 silenced (show)")
    tab.wait(f'document.querySelector("{card(alert)}")')
    assert tab.evaluate("location.search") == "?silenced=1"

    tab.go(f"{service.url}/silences")
    row = tab.says("1 firing", "tbody")
    assert 'run="hushed"' in row
    assert f"alert {alert}" in row
    tab.picture(pictures / "silences.png")
    ends = service.get("/v1/silences?state=active")["items"][0]["ends_at"]
    tab.click("+1 h")
    tab.evaluate(LEAVE)
    until(lambda: service.get("/v1/silences?state=active")["items"][0]["ends_at"] > ends)
    tab.click("End")
    tab.evaluate(LEAVE)
    tab.says("Nothing is silenced")
    tab.click("Ended 1")
    assert 'run="hushed"' in tab.says("ago", "tbody")
    assert tab.complaints == []


def test_an_alert_tells_its_story_and_keeps_what_people_did(
    service: Service, sick: dict[str, int], tab: Page, pictures: Path
) -> None:
    alert = sick["told"]
    tab.go(f"{service.url}/alerts/{alert}")
    for part in ("Mitigate, safest first", "gradient norm of 1.mix", "same cause, layer"):
        text = tab.says(part)  # each panel comes when it has its data
    assert "told ops" in text
    assert "desk was not told" in text
    assert "pending → firing" in text
    assert "values before" in text
    assert re.search(r"gradient norm of 1\.mix.*NaN or Inf in \d+ steps", text, re.DOTALL)
    assert tab.evaluate("document.querySelectorAll('figure rect.nan').length") >= 1
    link = "document.querySelector('#runbook .markdown a')"
    assert tab.evaluate(f"{link}.getAttribute('href')") == "/runbooks/LossScaleCollapse"

    tab.evaluate("document.querySelector('.todo input').click()")
    tab.says("Done: Skipped", ".held")
    tab.evaluate(LEAVE)
    tab.wait("document.querySelector('.todo input').disabled")
    tab.fill("#note", "blank sample in shard 7")
    tab.click("Add the note")
    tab.says("blank sample in shard 7", "[aria-labelledby=notes]")
    until(lambda: "Done: Skipped" in str(service.get(f"/v1/alerts/{alert}")["timeline"]))
    tab.go(f"{service.url}/alerts/{alert}")
    assert "ticked a step" in tab.says("note of", "[aria-labelledby=timeline]")
    tab.picture(pictures / "alert.png")

    tab.go(f"{service.url}/alerts/{sick['seen']}")
    tab.says("blank sample in shard 7", "[aria-labelledby=similar]")
    assert tab.complaints == []


def test_a_new_silence_shows_what_it_would_hide_and_a_long_one_asks_twice(
    service: Service, sick: dict[str, int], tab: Page, pictures: Path
) -> None:
    tab.go(f"{service.url}/silences?new=1&alert={sick['told']}")
    tab.says("Hides 1 now", ".preview")
    tab.picture(pictures / "silence-new.png")
    tab.click("Remove this condition", ".row:nth-of-type(1)")
    tab.says("Hides 3 now", ".preview")
    assert "past 7 days" in tab.says("would have hidden 3", ".preview")
    tab.fill("#comment", "storage moves")
    tab.evaluate("document.querySelector('input[value=until]').click()")
    tab.fill("[aria-label=Until]", "2038-01-01T00:00")
    before = len(service.get("/v1/silences")["items"])
    tab.evaluate("document.querySelector('form').requestSubmit()")
    tab.says("the next shift", "[role=alert]")
    assert len(service.get("/v1/silences")["items"]) == before
    tab.fill("[aria-label=Until]", "2000-01-01T00:00")
    tab.says("over before it begins", "form")
    tab.click("Cancel")
    tab.wait("!document.querySelector('form')")
    assert tab.evaluate("location.search") == ""
    assert tab.complaints == []


def test_planned_work_comes_back_every_week_and_can_be_ended(
    service: Service, sick: dict[str, int], tab: Page
) -> None:
    tab.go(f"{service.url}/silences?new=1")
    tab.fill("input[name=label]", "cluster")
    tab.fill("input[name=value]", "gpu-7")
    tab.fill("#comment", "patch day")
    tab.fill("form .adds select", "weekly")
    tab.wait("document.querySelector('input[value=sun]')")
    tab.evaluate("document.querySelector('input[value=sun]').click()")
    tab.click("Plan it")
    tab.wait("!document.querySelector('form')")
    [planned] = service.get("/v1/maintenance")["items"]
    assert planned["weekly"]["days"] == ["sun"]
    tab.go(f"{service.url}/silences?state={'active' if planned['open'] else 'pending'}")
    assert "every sun at 02:00" in tab.says("gpu-7", "tbody")
    tab.click("End for good")
    tab.evaluate(LEAVE)
    until(lambda: service.get("/v1/maintenance")["items"][0]["state"] == "ended")
    assert tab.complaints == []


def test_a_lead_sees_the_fleet_the_objectives_and_the_week(
    service: Service, sick: dict[str, int], tab: Page, pictures: Path
) -> None:
    tab.go(f"{service.url}/runs")
    fleet = tab.says("GPU-hours at risk", "[aria-label='The fleet']")
    assert re.search(r"Reporting\s+\d of 3 live runs", fleet)
    tab.click("Weekly report")
    tab.click("this week so far")
    text = tab.says("NonFiniteGradient", "main")
    assert "mei" in text, "whose hours they were"
    assert tab.evaluate("location.search") == "?week=now"
    tab.picture(pictures / "report.png")
    tab.click("Say what a GPU costs")
    tab.fill("form input[type=number]", "2.5")
    tab.click("Keep")
    tab.says("Reports use these prices")
    assert service.get("/v1/prices")["items"][0]["per_hour"] == 2.5

    tab.go(f"{service.url}/slos")
    name = tab.wait("document.querySelector('tbody a[data-row]')?.innerText")
    tab.picture(pictures / "slos.png")
    tab.click(name)
    tab.says("Who spends it")
    tab.wait("!document.querySelector('.skeleton')")
    tab.picture(pictures / "slo.png")
    assert tab.complaints == []


def test_a_receiver_is_tested_and_what_never_arrived_is_sent_again(
    service: Service, sick: dict[str, int], tab: Page, pictures: Path
) -> None:
    tab.go(f"{service.url}/settings?tab=receivers")
    tab.click("Send a test to ops")
    tab.says("took it in")
    tab.click("Send a test to desk")
    tab.says("did not take it: HTTP 400")
    tab.says("HTTP 400", "[aria-labelledby=dead] tbody")
    tab.picture(pictures / "settings-receivers.png")
    tried = service.get("/v1/deliveries?state=dead")["items"][0]["last_try_at"]
    tab.click("Send again to desk")
    tab.evaluate(LEAVE)
    dead = "/v1/deliveries?state=dead,waiting,sent"
    until(lambda: tried not in [one["last_try_at"] for one in service.get(dead)["items"][:1]])
    assert tab.complaints == []


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_no_page_with_something_on_it_keeps_anybody_out(
    service: Service, sick: dict[str, int], tab: Page, scheme: str
) -> None:
    """axe-core finds nothing serious, and nothing is wider than a phone."""
    tab.scheme(scheme)
    slo = service.get("/v1/slos")["items"][0]["id"]
    problems = {}
    paths = ["/runs", "/runs/told", f"/alerts/{sick['told']}", "/slos", f"/slos/{slo}"]
    for path in [*paths, "/report?week=now", "/silences?state=expired"]:
        tab.size(1440, 900)
        tab.go(service.url + path)
        tab.wait("document.querySelector('main :is(h1, h2)')")
        tab.wait("!document.querySelector('.skeleton')")
        found = serious(tab)
        tab.size(360, 740)
        if tab.evaluate("document.documentElement.scrollWidth") > 360:
            found.append("wider than 360 pixels")
        if found:
            problems[path] = found
    assert problems == {}


def test_without_a_line_the_last_list_stays_and_says_its_age(
    service: Service, sick: dict[str, int], tab: Page
) -> None:
    tab.go(f"{service.url}/oncall")
    tab.says("NonFiniteGradient", card(sick["told"]))
    tab.network(offline=True)
    banner = tab.says("does not answer", "[role=alert]")
    assert "Showing what was known" in banner
    assert tab.evaluate("document.querySelectorAll('[data-incident]').length") >= 2
    tab.click("Ack", card(sick["told"]))
    tab.evaluate(LEAVE)
    tab.says("Not done", ".held .failed")
    assert not tab.evaluate(f'document.querySelector("{card(sick["told"])} .acked")')
    tab.network()
    tab.click("Retry", ".held")
    until(lambda: service.get(f"/v1/alerts/{sick['told']}")["acknowledged_at"] is not None)
    tab.wait("!document.querySelector('[role=alert]')")


def test_a_slow_line_shows_where_things_will_be_and_a_wrong_number_what_to_do(
    service: Service, sick: dict[str, int], tab: Page
) -> None:
    tab.go(f"{service.url}/oncall")
    tab.says("NonFiniteGradient", card(sick["told"]))
    tab.network(latency_ms=1500)
    tab.evaluate(f"history.pushState(null, '', '/alerts/{sick['told']}')")
    tab.evaluate("dispatchEvent(new PopStateEvent('popstate'))")
    tab.wait("document.querySelector('main .skeleton[aria-busy=true]')")
    tab.network()
    tab.says("Mitigate, safest first")
    tab.go(f"{service.url}/alerts/999")
    problem = tab.says("no such alert", "[role=alert]")
    assert "request " in problem
    assert "Retry" in problem


@pytest.fixture
def between(tab: Page) -> Iterator[Page]:
    """A tab in which answers can be held."""
    script = tab.call("Page.addScriptToEvaluateOnNewDocument", source=BETWEEN)
    yield tab
    tab.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])


def watch(service: Service, page: Page, run: str) -> None:
    """The page hears news, and shows that the run is ill."""
    begin(service, run)
    assert send(service, batch(run, [frame(1), frame(2, bad_row=1)])).status_code == 200
    until(lambda: firing(service, run))
    page.go(f"{service.url}/oncall")
    page.says(f"name of {run}")
    page.wait("window.streaming && asked === given")


def recover(service: Service, page: Page, run: str) -> None:
    """The run is deleted, so its alert is over, and the page hears of it."""
    assert service.call("DELETE", f"/v1/runs/{run}").status_code == 204
    page.wait(f"!document.querySelector('main').innerText.includes('name of {run}')")


def test_an_older_answer_does_not_put_back_what_is_over(service: Service, between: Page) -> None:
    watch(service, between, "brief")
    before = between.evaluate("asked")
    between.evaluate("window.hold = new Promise(done => { window.release = done }); 0")
    between.evaluate(LOOK)
    between.wait(f"asked > {before}")
    recover(service, between, "brief")
    between.evaluate("release()")
    between.wait(f"given > {before + 1}")  # the older answer, and that to what the news led to
    assert "name of brief" not in between.evaluate("document.querySelector('main').innerText")


def test_news_of_an_end_do_not_make_the_other_cards_new(service: Service, between: Page) -> None:
    watch(service, between, "passing")
    between.evaluate("window.broken = true")
    between.evaluate(LOOK)
    between.says("Showing what was known", "[role=alert]")
    recover(service, between, "passing")
    between.says("Showing what was known", "[role=alert]")
