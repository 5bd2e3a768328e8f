"""How often do the shipped rules cry wolf? Simulated healthy trainings, judged by the real engine.

Ten million steps of trainings with some 300 layers each (what is drawn for them is told in
``soak_runs.py``) go through every detector. Whatever rises to a page or a ticket is false, each
time it rises, and is counted by detector: pages per 10^6 steps and tickets per 10^4, with the
rate that lies above the true one with 95 % certainty (Poisson; what is false tends to come in
clusters, so read it with care where one run raised many).

What was judged is kept in a file in the temporary folder, named by the detectors' and rules'
sources, the seed and this simulation: an interrupted soak goes on where it stopped, says what it
knows, and a changed detector begins anew. Each line of that file is a run; ``--run N`` plays one
again and tells each word of it. The last line of stdout is one JSON object.

    python benchmarks/soak_detect.py                   # 10^7 steps, two processes: hours
    python benchmarks/soak_detect.py --steps 100000    # minutes
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import soak_runs

from gradwarden_server import detect
from gradwarden_server.assets import ALERT_RULES
from gradwarden_server.detect import registry
from gradwarden_server.detect.engine import RunDetectors, Verdict
from gradwarden_server.detect.steps import Step
from gradwarden_server.model import Condition, RunFacts
from gradwarden_server.rules import spec

GOALS = {"pages_per_million": 1.0, "tickets_per_ten_thousand": 1.0}
"""Most that may be false over all detectors; met where the bound is below."""
STEPS = 10_000_000
TOGETHER = 32
TOLD_SECONDS = 10.0
_PER = {"page": 1e6, "ticket": 1e4}

Result = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Soak until enough steps were judged; the exit code is 0 if both goals are met."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--run", type=int, help="play this run alone and tell its words")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "gradwarden-soak"
    )
    options = parser.parse_args(argv)
    if options.run is not None:
        return one(options.seed, options.run)
    options.folder.mkdir(parents=True, exist_ok=True)
    kept = options.folder / f"soak-{sources()}-{options.seed}.jsonl"
    results = list(known(kept))
    print(f"{total(results):,} of {options.steps:,} steps are known from {kept}", flush=True)
    began = time.monotonic()
    try:
        soak(options, kept, results)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", flush=True)
    figures = {
        "steps": total(results),
        "seed": options.seed,
        "runs": len(results),
        "seconds": round(time.monotonic() - began, 1),
        **told(results),
    }
    met = {name: figures["bounds"][name] <= goal for name, goal in GOALS.items()}
    print(json.dumps({"name": "soak-detect", "figures": figures, "goals": GOALS, "met": met}))
    return 0 if all(met.values()) else 1


@cache
def shipped() -> spec.RuleSet:
    """The rules as they ship."""
    return spec.load(ALERT_RULES, registry.schemas(), registry.BASELINE_SCHEMA)


def sources() -> str:
    """A digest of all that a result depends on."""
    digest = hashlib.sha256()
    files = [*Path(detect.__file__).parent.glob("*.py"), *ALERT_RULES.glob("*.yaml")]
    for path in [*sorted(files), Path(soak_runs.__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def known(kept: Path) -> Iterator[Result]:
    """The runs that were judged before; a line that a crash tore is taken away."""
    if not kept.exists():
        return
    whole = 0
    with kept.open("r+b") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            yield json.loads(line)
        file.truncate(whole)


def total(results: Iterable[Result]) -> int:
    return sum(result["steps"] for result in results)


def soak(options: argparse.Namespace, kept: Path, results: list[Result]) -> None:
    """Judge runs until there are enough steps, and keep each."""
    done = {result["run"] for result in results}
    numbers = (n for n in range(10**9) if n not in done)
    began, before, last = time.monotonic(), total(results), 0.0
    context = multiprocessing.get_context("spawn")
    # An interrupt is for this process alone, which lets the others go.
    ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with (
        kept.open("a", encoding="utf-8") as file,
        context.Pool(options.processes, ignore) as pool,
    ):
        waiting = []
        while total(results) < options.steps:
            while len(waiting) < 2 * options.processes:
                waiting.append(pool.apply_async(judged, (options.seed, next(numbers))))
            result = waiting.pop(0).get()
            results.append(result)
            file.write(json.dumps(result, separators=(",", ":")) + "\n")
            file.flush()
            now = time.monotonic()
            if now - last >= TOLD_SECONDS:
                last = now
                progress(results, options.steps, (total(results) - before) / (now - began))
        pool.terminate()


def progress(results: Sequence[Result], steps: int, rate: float) -> None:
    """One line: how far, how fast, and what was raised so far."""
    have = total(results)
    left = (steps - have) / rate / 60 if rate else math.inf
    raised = Counter(severity for result in results for _, severity, _, _ in result["raised"])
    print(
        f"  {have:>10,} steps, {rate:6.0f} a second, {max(0.0, left):5.1f} min to go: "
        f"{raised['page']} pages, {raised['ticket']} tickets, {raised['note']} notes",
        flush=True,
    )


def judged(seed: int, number: int) -> Result:
    """One run, and each rise of an alert in it: name, severity, step and its summary."""
    run = soak_runs.Run(seed, number)
    rises: list[tuple[str, str, int, str]] = []
    standing: set[tuple[str, str]] = set()
    for step, conditions in played(run):
        for said in conditions:
            key = said.alertname, said.severity
            if said.active and key not in standing:
                standing.add(key)
                rises.append((*key, step, said.annotations.get("summary", "")))
            elif not said.active:
                standing.discard(key)
    return {"run": number, "steps": run.traits.steps, "raised": rises}


def played(run: soak_runs.Run) -> Iterator[tuple[int, Sequence[Condition]]]:
    """What the engine says of a run, verdict by verdict."""
    rules, traits = shipped(), run.traits
    detectors = RunDetectors(
        soak_runs.LAYOUTS.get, rules.detectors, rules.baseline, "prod", traits.ranks
    )
    waiting: list[Step] = []
    last = 0

    def judge() -> Iterator[tuple[int, Sequence[Condition]]]:
        verdicts: list[Verdict] = detectors.advance(waiting)
        waiting.clear()
        yield from ((v.step, v.conditions) for v in verdicts)

    for said in run:
        if isinstance(said, Step):
            waiting.append(said)
            last = said.step
            if len(waiting) >= TOGETHER:
                yield from judge()
        else:
            yield from judge()
            yield last, detectors.tick(said.now_ns, facts_of(run, said.now_ns), said.liveness)
    yield from judge()


def facts_of(run: soak_runs.Run, now_ns: int) -> RunFacts:
    """The run as the service would know it."""
    return RunFacts(
        row=1,
        project="soak",
        run="soak",
        name="soak",
        status="running",
        environment="prod",
        world_size=run.traits.ranks,
        labels={},
        dashboard_url="",
        started_ns=soak_runs.BEGAN_NS,
        last_seen_ns=now_ns,
        last_step=None,
    )


def upper(count: int) -> float:
    """The Poisson mean under which so few are seen with a chance of 5 %, by bisection."""
    low, high = float(count), count + 10 * math.sqrt(count + 1) + 10
    for _ in range(80):
        mean = (low + high) / 2
        terms = (math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1))
        low, high = (mean, high) if sum(terms) > 0.05 else (low, mean)
    return high


def told(results: Sequence[Result]) -> Result:
    """The table by detector, and the figures of all together."""
    steps = max(1, total(results))
    counts = Counter((a, s) for result in results for a, s, _, _ in result["raised"])
    runs = Counter(key for r in results for key in {(a, s) for a, s, _, _ in r["raised"]})
    print(f"{'':24}   pages  per 10^6 steps (95 %)   tickets  per 10^4 steps (95 %)   notes")
    figures: Result = {"detectors": {}}
    for alert in [rule.alert for rule in shipped().detectors]:
        figures["detectors"][alert] = one_line(
            alert, {s: counts[alert, s] for s in ("page", "ticket", "note")}, steps
        )
        affected = {s: runs[alert, s] for s in _PER if runs[alert, s]}
        if affected:
            figures["detectors"][alert]["runs"] = affected
    whole = {
        s: sum(n for (_, t), n in counts.items() if t == s) for s in ("page", "ticket", "note")
    }
    figures["all"] = everything = one_line("all together", whole, steps)
    figures["bounds"] = {
        "pages_per_million": everything["page_bound"],
        "tickets_per_ten_thousand": everything["ticket_bound"],
    }
    return figures


def one_line(name: str, counts: dict[str, int], steps: int) -> Result:
    """One row of the table, printed, and its figures."""
    found: Result = {"pages": counts["page"], "tickets": counts["ticket"], "notes": counts["note"]}
    for severity, per in _PER.items():
        found[f"{severity}_rate"] = round(counts[severity] * per / steps, 4)
        found[f"{severity}_bound"] = round(upper(counts[severity]) * per / steps, 4)
    print(
        f"{name:24} {found['pages']:7} {found['page_rate']:12.3f} (< {found['page_bound']:8.3f}) "
        f"{found['tickets']:9} {found['ticket_rate']:12.4f} (< {found['ticket_bound']:8.4f}) "
        f"{found['notes']:7}",
        flush=True,
    )
    return found


def one(seed: int, number: int) -> int:
    """Tell what was drawn for a run and what was said of it."""
    run = soak_runs.Run(seed, number)
    print(run.traits)
    for step, conditions in played(run):
        for said in conditions:
            if said.active:
                print(f"step {step}: {said.alertname} {said.severity}")
                for name, words in said.annotations.items():
                    print(f"    {name}: {words}")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
