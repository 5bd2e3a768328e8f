"""One frame from loss.backward() to a pager on loopback, every part real."""

from __future__ import annotations

from typing import Any

import pytest

from tests.walk.conftest import House

SICK_STEP = 37
SICK_LAYER = "inner.blocks.2.0"
SICK = ("--sick-step", str(SICK_STEP), "--pace", "0.01")

PAGED = {
    "a plain loop": [],
    "clipping, with the name imported before watch": ["--clip"],
}
SKIPPED = {
    "a loop that skips by the clipped norm": ["--skip", "by-norm"],
    "a loop that looks at the gradients itself": ["--skip", "by-gradients"],
}


def alerts_of(house: House, run: str, **query: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = house.get("/v1/alerts", run=run, **query)["items"]
    return items


@pytest.mark.parametrize(
    "loop",
    # The end of a sick run, below, is a plain loop too.
    [pytest.param(loop, marks=[] if PAGED[loop] else pytest.mark.full) for loop in PAGED],
)
def test_an_applied_nan_pages_with_its_layer_and_step(house: House, loop: str) -> None:
    with house.lasting(house.train, "sick", *PAGED[loop], *SICK):
        page = house.page("NonFiniteGradient")
    assert page["version"] == "4"
    assert page["status"] == "firing"
    (alert,) = page["alerts"]
    assert alert["labels"]["severity"] == "page"
    assert alert["labels"]["run"] == "sick"
    said = alert["annotations"]
    assert said["layer"] == SICK_LAYER
    assert said["step"] == str(SICK_STEP)
    assert "inner.blocks.3.0" in said["bracket"]
    assert said["first_action"]
    assert said["dashboard_url"] == f"{house.service.url}/runs/sick"
    runbook = house.fetch(said["runbook_url"].removeprefix(house.service.url))
    assert "NonFiniteGradient" in runbook


@pytest.mark.parametrize(
    "loop",
    [
        pytest.param(loop, marks=[] if at == 0 else pytest.mark.full)
        for at, loop in enumerate(SKIPPED)
    ],
)
def test_a_step_that_the_loop_skipped_is_a_note_that_wakes_nobody(house: House, loop: str) -> None:
    house.train("careful", *SKIPPED[loop], "--sick-step", str(SICK_STEP), "--steps", "80")
    house.until_judged("careful")
    (alert,) = alerts_of(house, "careful")
    assert (alert["alertname"], alert["severity"]) == ("NonFiniteGradient", "note")
    assert alert["annotations"]["layer"] == SICK_LAYER
    assert alert["annotations"]["step"] == str(SICK_STEP)
    assert house.pager.requests == []


def test_a_healthy_run_raises_nothing_and_its_record_is_whole(house: House) -> None:
    house.train("healthy", "--clip", "--steps", "80")
    house.until_judged("healthy")
    run = house.get("/v1/runs/healthy")
    assert run["status"] == "finished"
    assert run["health"] == "ok"
    assert run["step"] == 79
    assert alerts_of(house, "healthy") == []
    series = house.get("/v1/runs/healthy/series", keys="loss,grad_norm")
    assert series["step"] == list(range(80))
    assert all(isinstance(v, float) for v in series["keys"]["loss"]["last"])
    assert all(isinstance(v, float) for v in series["keys"]["grad_norm"]["last"])


def test_alerts_of_a_run_that_ends_well_resolve_and_say_why(house: House) -> None:
    with house.lasting(house.train, "sick", *SICK):
        house.page("NonFiniteGradient")
    house.until_judged("sick")
    alerts = alerts_of(house, "sick", state="resolved")
    assert {"NonFiniteGradient"} <= {a["alertname"] for a in alerts}
    story = house.get(f"/v1/alerts/{alerts[0]['id']}")
    assert [line["to"] for line in story["timeline"]][-1] == "resolved"
    assert story["timeline"][-1]["reason"] == "run_finished"
    # Its end closed the alerts; it does not make the run a healthy one.
    run = house.get("/v1/runs/sick")
    assert (run["health"], run["worst_layer"]) == ("crit", SICK_LAYER)
    assert house.page("NonFiniteGradient", "resolved")["alerts"][0]["status"] == "resolved"
