"""What people choose and try in Settings: a rule's numbers on kept runs, and colours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.service import Service
from tests.ui.axe import serious
from tests.ui.browser import Page
from tests.ui.conftest import SICK_STEP, Training

FORM = "[aria-label='Backtest NonFiniteLoss']"
GREY = """
(canvas => {
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height / 2);
  let grey = 0, colour = 0;
  for (let k = 0; k < data.length; k += 4 * 997) {
    if (data[k] > 250 && data[k + 1] < 90) continue;
    if (data[k] === data[k + 1] && data[k] === data[k + 2]) grey++; else colour++;
  }
  return grey / (grey + colour);
})(document.querySelector('[data-layer=cells]'))
"""


def opened(tab: Page, service: Service) -> None:
    """The rule of the loss in Settings, with its numbers."""
    tab.go(f"{service.url}/settings?tab=rules&q=NonFiniteLoss")
    tab.wait("document.querySelector('tbody summary')")
    tab.evaluate("document.querySelector('tbody summary').click()")
    tab.wait(f"document.querySelector({FORM!r})")


@pytest.mark.parametrize(("width", "scheme"), [(1440, "dark"), (360, "light")])
def test_a_rule_is_tried_on_kept_runs_and_nobody_is_told(
    service: Service, training: Training, tab: Page, pictures: Path, width: int, scheme: str
) -> None:
    before = len(service.get("/v1/alerts?limit=500")["items"])
    tab.size(width, 900)
    tab.scheme(scheme)
    opened(tab, service)
    steps = width // 10
    tab.fill(f"{FORM} fieldset label:last-of-type input", str(steps))
    tab.click("Backtest", FORM)
    said = tab.wait(
        f"(t => t.includes('with clean_steps {steps}.') && t)"
        "(document.querySelector('tbody').innerText)",
        90,
    )
    assert "Judged 1 run of the last 7 days" in said
    assert "1 page" in said
    link = tab.evaluate("document.querySelector('li.same a').getAttribute('href')")
    assert link.startswith("/runs/sick?from=")
    assert f"at step {SICK_STEP + 1}" in said
    assert len(service.get("/v1/alerts?limit=500")["items"]) == before
    tab.picture(pictures / f"backtest-{scheme}-{width}.png")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert serious(tab) == []
    assert tab.complaints == []


def test_a_number_that_cannot_be_is_refused_in_words(
    service: Service, training: Training, tab: Page
) -> None:
    opened(tab, service)
    tab.fill(f"{FORM} fieldset label:last-of-type input", "many")
    tab.click("Backtest", FORM)
    tab.says("expected int", "tbody")


def test_the_chosen_colours_draw_heatmaps(
    service: Service, training: Training, tab: Page, pictures: Path
) -> None:
    run = f"{service.url}/runs/sick"
    tab.go(run)
    tab.wait("document.querySelector('[data-layer=cells]')")
    assert tab.evaluate(GREY) < 0.5
    tab.go(f"{service.url}/settings?tab=appearance")
    tab.says("Colours of heatmaps")
    tab.picture(pictures / "settings-appearance.png")
    tab.evaluate("document.querySelector('input[value=grey]').click()")
    tab.go(run)
    tab.wait("document.querySelector('[data-layer=cells]')")
    assert tab.evaluate(GREY) > 0.8
    tab.evaluate("localStorage.clear()")
    assert tab.complaints == []
