"""Does the dashboard keep its budgets: what is sent, first load, heatmap, panning, and memory?

A real service gets one run of 500 layers x 2,000 steps through its ingest endpoint, and a headless
Chromium without a GPU looks at it. Drawn means: a pixel was read back. The heatmap's time begins
when its last byte has arrived: the wait for the page's one thread is in it, and told by itself too.
Beside what a page needs before its first data stands all JavaScript that the run's page fetched
until it was idle. The hour of live appends is 3,600 more steps, sent as fast as the page takes them
in, so it says what they leave behind in memory and nothing of their pace. The last line of stdout
is one JSON object.

    python -m benchmarks.dashboard             # some minutes
    python -m benchmarks.dashboard --quick     # 40 layers x 200 steps: a smoke test
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from dashboards import build_web
from tests.ui.browser import Page, find
from tests.ui.test_bundle import needed, weigh

sys.path.insert(0, str(Path(__file__).parent))  # its siblings are scripts, not a package

from query_data import BATCH, Service, batch_of, begin, ingest, layout_of, wait, waiting

from gradwarden import wire

RUN = "bench-dashboard"
SEED = 7
SICK = 150
"""The step at which one element of one layer is NaN."""
_COUNTED = [wire.QUANTITIES.index(name) for name in ("nan", "inf")]
APPEND = 120
"""Steps that are sent at once while the page looks on."""
GOALS = {
    "first_load_kib": 60.0,
    "oncall_kib": 40.0,
    "usable_ms": 1000.0,
    "heatmap_ms": 100.0,
    "pan_p95_ms": 16.7,
    "heap_mib": 150.0,
}
# When the first element of a kind stood there, in milliseconds since the page was asked for; of
# the heatmap, when a pixel of what was painted had been read. And when the page had its bytes.
WATCH = """
window.seen = {};
new MutationObserver(() => {
  for (const selector of ['a.run', '[data-layer=cells]', '.uplot']) {
    const found = !(selector in seen) && document.querySelector(selector);
    if (!found) continue;
    if (found instanceof HTMLCanvasElement) {
      const at = [found.width >> 1, found.height >> 1, 1, 1];
      if (!found.getContext('2d').getImageData(...at).data[3]) continue;
    }
    seen[selector] = performance.now();
  }
}).observe(document, { childList: true, subtree: true, attributes: true });
const whole = Response.prototype.arrayBuffer;
Response.prototype.arrayBuffer = async function () {
  const bytes = await whole.call(this);
  if (this.url.includes('/heatmap')) window.handed ??= performance.now();
  return bytes;
};
"""
# The request; until the page's one thread came to its bytes; from there until a pixel was read.
STAGES = """
(() => {
  const answers = performance.getEntriesByType('resource').filter(e => e.name.includes('/heatmap'));
  const [{ startTime, responseEnd }] = answers;
  return [responseEnd - startTime, handed - responseEnd, seen['[data-layer=cells]'] - handed];
})()
"""
# The scripts that the page fetched until for two seconds nothing more was asked for.
SCRIPTS = """
new Promise(done => {
  let timer;
  const told = () => performance.getEntriesByType('resource').map(entry => entry.name);
  const idle = () => done(told().filter(name => name.endsWith('.js')));
  const wait = () => { clearTimeout(timer); timer = setTimeout(idle, 2000); };
  new PerformanceObserver(wait).observe({ type: 'resource' });
  wait();
})
"""
PAN = """
(async () => {
  const canvas = document.querySelector('[data-layer=cells]');
  const over = document.querySelector('[data-layer=cursor]');
  const box = over.getBoundingClientRect();
  const took = [];
  for (let k = 0; k < 60; k++) {
    const began = performance.now();
    over.dispatchEvent(new WheelEvent('wheel', { deltaY: k < 30 ? 12 : -12, shiftKey: true,
      clientX: box.x + box.width / 2, clientY: box.y + 5, bubbles: true, cancelable: true }));
    await Promise.resolve();
    canvas.getContext('2d').getImageData(1, 1, 1, 1);
    took.push(performance.now() - began);
    await new Promise(requestAnimationFrame);
  }
  return took;
})()
"""


def values(layers: int, steps: range) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Norms that drift, other statistics some part of them; one NaN element in all of it."""
    rng = np.random.default_rng([SEED, steps.start])
    norms = np.exp(rng.normal(-2.0, 1.0, (len(steps), layers, 1)))
    found = (norms * np.linspace(1.0, 0.1, len(wire.QUANTITIES))).astype(np.float32)
    found[:, :, _COUNTED] = 0.0
    if SICK in steps:
        found[SICK - steps.start, layers // 2, wire.QUANTITIES.index("nan")] = 1.0
    return found


def send(service: Service, layers: int, steps: range) -> None:
    """Some steps of the run."""
    for first in range(steps.start, steps.stop, BATCH):
        part = range(first, min(first + BATCH, steps.stop))
        ingest(service, batch_of(RUN, 0, part, layout_of(layers), values(layers, part)))


def heap_mib(page: Page) -> float:
    """JavaScript memory in use after a collection."""
    page.call("HeapProfiler.collectGarbage")
    return float(page.call("Runtime.getHeapUsage")["usedSize"]) / 2**20


def bundles() -> dict[str, float]:
    """KiB that each page needs before its first data, gzipped."""
    (index,) = build_web.DIST.glob("assets/index-*.js")
    found = {}
    for file in sorted(build_web.WEB.glob("src/pages/*.svelte")):
        (chunk,) = build_web.DIST.glob(f"assets/{file.stem}-*.js")
        found[file.stem] = round(weigh(needed(index) | needed(chunk)), 1)
    return found


def opened(page: Page, url: str, selector: str) -> float:
    """Milliseconds from asking for a page until it showed this."""
    page.go("about:blank")
    page.go(url)
    page.wait(f"window.seen && seen[{selector!r}]", limit=120)
    return float(page.evaluate(f"seen[{selector!r}]"))


def measure(layers: int, steps: int, more: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Every figure."""
    executable = find()
    if executable is None:
        raise SystemExit("needs chromium: apt-get install -y --no-install-recommends chromium")
    began = time.perf_counter()
    service = Service(folder, evaluate=True)
    url = service.url
    try:
        begin(service, RUN, layout_of(layers))
        send(service, layers, range(steps))
        wait(lambda: waiting(service) == 0, began, "compaction")
        with Page(executable, folder / "profile") as page:
            page.size(1440, 900)
            page.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
            usable = [opened(page, f"{url}/runs", "a.run") for _ in range(rounds)]
            stages: list[list[float]] = []
            for _ in range(rounds):
                opened(page, f"{url}/runs/{RUN}", "[data-layer=cells]")
                stages.append(page.evaluate(STAGES))
            scripts = page.evaluate(SCRIPTS)
            page.go(f"{url}/runs/{RUN}?from={steps // 4}&to={steps // 2}")
            page.wait("window.seen && seen['[data-layer=cells]'] && seen['.uplot']", limit=120)
            pans = sorted(page.evaluate(PAN))
            opened(page, f"{url}/runs/{RUN}", ".uplot")
            before = heap_mib(page)
            for first in range(steps, steps + more, APPEND):
                until = min(first + APPEND, steps + more)
                send(service, layers, range(first, until))
                shown = "document.querySelector('.window')?.innerText"
                page.wait(f"{shown}?.includes('{until - 1:,}')", limit=120)
            after = heap_mib(page)
            wrong = page.complaints
    finally:
        service.stop()
    request, queue, draw = (statistics.median(part) for part in zip(*stages, strict=True))
    files = {build_web.DIST / "assets" / name.rpartition("/")[2] for name in scripts}
    return {
        "usable_ms": round(statistics.median(usable), 1),
        "run_idle_kib": round(weigh(files), 1),
        "heatmap_ms": round(statistics.median(q + d for _, q, d in stages), 1),
        "heatmap_draw_ms": round(draw, 1),
        "heatmap_request_ms": round(request, 1),
        "heatmap_queue_ms": round(queue, 1),
        "pan_p50_ms": round(pans[len(pans) // 2], 2),
        "pan_p95_ms": round(pans[int(0.95 * (len(pans) - 1))], 2),
        "heap_before_mib": round(before, 1),
        "heap_mib": round(after, 1),
        "complaints": wrong[:3],
    }


def main() -> int:
    """Measure, print, and say which budgets are kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    layers, steps, more, rounds = (40, 200, 60, 3) if quick else (500, 2000, 3600, 9)
    build_web.build()
    sizes = bundles()
    print(f"{'KiB gz before the first data':34}" + "  ".join(f"{k} {v}" for k, v in sizes.items()))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(layers, steps, more, rounds, Path(folder))
    found |= {"first_load_kib": max(sizes.values()), "oncall_kib": sizes["OnCall"]}
    for name in ("heatmap_request_ms", "heatmap_queue_ms", "heatmap_draw_ms"):
        print(f"{name:34}{found[name]:10.1f}")
    for name, goal in GOALS.items():
        kept = "kept" if found[name] <= goal else "MISSED"
        beside = f"; run's page {found['run_idle_kib']} until idle" * (name == "first_load_kib")
        print(f"{name:34}{found[name]:10.1f}   goal {goal:g}, {kept}{beside}")
    told = {"layers": layers, "steps": steps, "appended": more, "load": os.getloadavg()[0]}
    goals = {name: found[name] <= goal for name, goal in GOALS.items()}
    print(json.dumps(told | found | {"bundles_kib": sizes, "kept": goals}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
