"""The heatmap's picker over a real run: what each quantity shows, and what it does not claim."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.service import Service
from tests.ui.browser import Page
from tests.ui.conftest import SICK_STEP, STEPS, Training
from tests.ui.test_pages import MAGENTA, open_run

PICK = """
(metric => {
  const select = document.querySelector('.tools select');
  select.value = metric;
  select.dispatchEvent(new Event('change', { bubbles: true }));
  return select.value;
})
"""
# The share of the first row's pixels left of `until` that show a value: neither ground nor hatch.
FILLED = """
((from, until) => {
  const canvas = document.querySelector('[data-layer=cells]');
  const [a, b] = [from, until].map(x => Math.floor(x * canvas.width));
  const data = canvas.getContext('2d').getImageData(a, 6, b - a, 1).data;
  let filled = 0;
  for (let k = 0; k < data.length; k += 4)
    filled += data[k + 3] > 0 && Math.max(data[k], data[k + 1], data[k + 2]) > 80;
  return filled / (b - a);
})
"""
LEGEND = "document.querySelector('.legend').innerText"
MEASURED = ["l2", "rms", "absmax", "zero", "tiny", "nan", "update_ratio", "weight_l2"]


def pick(page: Page, metric: str, says: str) -> None:
    assert page.evaluate(f"{PICK}('{metric}')") == metric
    page.wait(f"{LEGEND}.includes('{says}')")
    expected = "" if metric == "l2" else f"m={metric}"
    page.wait(f"location.search.includes('{expected}')")


def tip(page: Page, step: int) -> str:
    """What the tooltip says of the first row's cell at ``step``."""
    x, y, width, _ = page.evaluate(
        "(r => [r.x, r.y, r.width, r.height])"
        "(document.querySelector('[data-layer=cursor]').getBoundingClientRect())"
    )
    page.mouse("mouseMoved", x + width * (step + 0.5) / STEPS, y + 5)
    text: str = page.wait(
        f"(t => t?.includes('step {step}') && t)(document.querySelector('.tip')?.innerText)"
    )
    return text


def test_the_picker_offers_what_is_measured(
    service: Service, training: Training, page: Page
) -> None:
    open_run(page, service)
    offered = page.evaluate("[...document.querySelectorAll('.tools option')].map(o => o.value)")
    assert offered == MEASURED
    pick(page, "rms", "gradient RMS")
    assert "RMS" in tip(page, 100)
    marks = page.wait(f"(m => m.count && m)({MAGENTA}('[data-layer=cells]'))")
    assert marks["first"] == pytest.approx(SICK_STEP / STEPS, abs=0.03)
    assert "no data" in page.evaluate(LEGEND)
    assert page.complaints == []


@pytest.mark.parametrize(
    ("metric", "label", "unit"),
    [("update_ratio", "update / weight norm", "ratio"), ("weight_l2", "weight L2 norm", "L2")],
)
def test_what_is_measured_in_turns_is_held_until_the_gradient_is_sick(
    service: Service,
    training: Training,
    page: Page,
    pictures: Path,
    metric: str,
    label: str,
    unit: str,
) -> None:
    open_run(page, service)
    pick(page, metric, label)
    page.wait(f"{LEGEND}.includes('measured in turns')")
    assert "no data" not in page.evaluate(LEGEND)
    page.wait(f"{FILLED}(0.1, 0.6) > 0.99")
    marks = page.evaluate(f"{MAGENTA}('[data-layer=cells]')")
    assert marks["first"] == pytest.approx(SICK_STEP / STEPS, abs=0.03)
    assert "NaN in" in tip(page, SICK_STEP + 5)
    text = tip(page, 100)
    assert unit in text
    assert "measured at step" in text
    page.picture(pictures / f"run-{metric}.png")
    assert page.complaints == []


def test_the_phases_of_a_step_are_a_chart(
    service: Service, training: Training, page: Page, pictures: Path
) -> None:
    open_run(page, service)
    chart = page.wait("document.querySelector('[aria-label=\"Seconds of a step\"]')?.innerText")
    readings = dict(re.findall(r"(\w[\w ]*?)\s+([\d.e-]+)(?:\n|$)", chart))
    assert set(readings) == {"forward", "backward", "optimizer", "in all"}, "it has no loader"
    assert 0 < float(readings["backward"]) < float(readings["in all"])
    page.picture(pictures / "run-phases.png")
    assert page.complaints == []
