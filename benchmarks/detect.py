"""How many frames a second does one core judge, with every detector of the shipped rules on?

Two transformers train on one core, watched by the SDK with the standard preset and every step
captured: 12 blocks (148 parameters) and 166 blocks (1,996). What the SDK wrote is kept in the
user's cache folder and played through the same path as live data: decode the batch, join ranks
into steps, baselines, every detector, verdicts. Storing and notifying are not in it.

A figure is frames over seconds of processor time of the one thread that does it all, as many
steps as were recorded, from the first on; the median of several passes, of which each begins
anew. The parts come from one more pass with a clock around each call, so their sum is a little
more. ``alone`` is the same with one frame in each batch, which is what a trainer of a step a
second sends. ``snapshot`` is the state that is stored every 256 steps. The last line of stdout
is one JSON object.

    python benchmarks/detect.py                # trains for minutes the first time
    python benchmarks/detect.py --quick        # few steps: a smoke test
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import recorder

from gradwarden import wire
from gradwarden.spool import read_segment
from gradwarden_server.assets import ALERT_RULES
from gradwarden_server.detect import registry
from gradwarden_server.detect.assembler import Assembler
from gradwarden_server.detect.engine import RunDetectors
from gradwarden_server.rules import spec

GOALS = {"150": 2000.0, "2000": 300.0}
"""Least frames a second, by layers."""
SIZES = {"150": (12, 1500), "2000": (166, 400)}
"""Blocks of the transformer and steps that are recorded."""
QUICK = {"150": (12, 48), "2000": (24, 48)}
PASSES = 5
SNAPSHOT_STEPS = 256
"""As often as the service stores the state of a run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Record what is missing, measure; the exit code is 0 if every goal was met."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few steps: a smoke test")
    parser.add_argument("--passes", type=int, default=PASSES)
    options = parser.parse_args(argv)
    figures: dict[str, Any] = {"cores": os.cpu_count(), "load": load()}
    for layers, (blocks, steps) in (QUICK if options.quick else SIZES).items():
        figures[layers] = measured(Recording(recorded(blocks, steps)), options.passes)
    figures["load_after"] = load()
    met = {layers: figures[layers]["frames_per_second"] >= goal for layers, goal in GOALS.items()}
    print(json.dumps({"name": "detect", "figures": figures, "goals": GOALS, "met": met}))
    return 0 if options.quick or all(met.values()) else 1


def load() -> list[float]:
    return [round(value, 1) for value in os.getloadavg()]


def recorded(blocks: int, steps: int) -> Path:
    """The folder of what a transformer of so many blocks sent; trains where it is missing."""
    wanted = replace(
        recorder.recipe(steps), blocks=blocks, width=16, batch=4, length=16, preset="standard"
    )
    folder = recorder.cache_folder() / f"detect-{wanted.digest}"
    if folder.is_dir():
        return folder
    print(f"recording {steps} steps of {blocks} blocks ...", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix="making-", dir=folder.parent))
    try:
        # A process of its own, as the SDK's spool is finished when its process ends.
        trainer = multiprocessing.get_context("spawn").Process(
            target=recorder.train, args=("transformer", wanted, making)
        )
        trainer.start()
        trainer.join()
        if trainer.exitcode:
            raise SystemExit(f"training ended with {trainer.exitcode}")
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


@dataclass(frozen=True, slots=True)
class Message:
    """One batch as it travels, and when it was sent."""

    body: bytes
    sent_ns: int


class Recording:
    """What one run sent, in its order."""

    def __init__(self, folder: Path) -> None:
        records = [r for path in sorted(folder.rglob("*.spool")) for r in read_segment(path)]
        told = [wire.Layout.from_json(json.loads(r.body)) for r in records if r.kind == "layout"]
        self.layouts = {layout.hash: layout for layout in told}
        bodies = [r.body for r in records if r.kind == "batch"]
        batches = [wire.decode(body) for body in bodies]
        frames = [(b, f) for b in batches for f in b.frames]
        self.parameters = max(b.parameters for b in batches)
        self.matrices = sum(bool(f.values) for _, f in frames)
        self.frames = len(frames)
        self.messages = [Message(y, b.sent_ns) for y, b in zip(bodies, batches, strict=True)]
        self.alone = [Message(wire.encode(alone(b, f)), b.sent_ns) for b, f in frames]


def alone(batch: wire.Batch, frame: wire.Frame) -> wire.Batch:
    """A frame in a batch of its own, which has the columns that this frame needs."""
    if not frame.values:
        return replace(batch, frames=(frame,))
    rows = np.frombuffer(frame.values, "<f4").reshape(batch.parameters, -1)
    taken = [
        at
        for at, name in enumerate(batch.quantities)
        if name in wire.QUANTITIES or not np.isnan(rows[:, at]).all()
    ]
    values = np.ascontiguousarray(rows[:, taken]).tobytes()
    quantities = tuple(batch.quantities[at] for at in taken)
    return replace(batch, frames=(replace(frame, values=values),), quantities=quantities)


class Player:
    """Plays a recording through what the service evaluates live runs with, from the start on."""

    def __init__(self, recording: Recording) -> None:
        self.assembler = Assembler(1, layouts=recording.layouts.get)
        rules = shipped()
        self.detectors = RunDetectors(recording.layouts.get, rules.detectors, rules.baseline)
        self.detectors.start(1)
        self.assembler.start(1, 1)
        self.decode: Callable[[bytes], wire.Batch] = wire.decode
        self.active: Counter[str] = Counter()

    def take(self, message: Message) -> None:
        """What :class:`gradwarden_server.alerting.watch.RunWatch` does with a batch."""
        self.assembler.add(self.decode(message.body), 1, message.sent_ns)
        for verdict in self.detectors.advance(self.assembler.release(message.sent_ns)):
            self.active.update(c.alertname for c in verdict.conditions if c.active)
        self.detectors.peek(self.assembler.urgent())


@cache
def shipped() -> spec.RuleSet:
    """The rules as they ship."""
    return spec.load(ALERT_RULES, registry.schemas(), registry.BASELINE_SCHEMA)


def measured(recording: Recording, passes: int) -> dict[str, Any]:
    """The rates of some passes, and where the time of one goes."""
    batches = len(recording.messages)
    print(
        f"{recording.parameters} layers: {recording.frames} frames in {batches} batches, "
        f"{recording.matrices} with a matrix",
        flush=True,
    )
    rates, walls, alone = [], [], []
    for number in range(passes):
        processor, wall, player = played(recording, recording.messages)
        rates.append(recording.frames / processor)
        walls.append(recording.frames / wall)
        alone.append(recording.frames / played(recording, recording.alone)[0])
        print(f"  pass {number + 1} of {passes}: {rates[-1]:8.0f} frames/s", flush=True)
    parts = shares(recording)
    figures = {
        "parameters": recording.parameters,
        "frames": recording.frames,
        "batches": batches,
        "matrices": recording.matrices,
        "frames_per_second": round(statistics.median(rates), 1),
        "frames_per_second_lowest": round(min(rates), 1),
        "frames_per_second_alone": round(statistics.median(alone), 1),
        "frames_per_wall_second": round(statistics.median(walls), 1),
        "us_per_frame": parts,
        "snapshot_ms": snapshot_ms(player),
        "raised": dict(sorted(player.active.items())),
    }
    told(figures)
    return figures


def played(recording: Recording, messages: Sequence[Message]) -> tuple[float, float, Player]:
    """Seconds of processor and of wall that one pass takes."""
    player = Player(recording)
    gc.collect()
    wall, processor = time.perf_counter(), time.thread_time()
    for message in messages:
        player.take(message)
    return time.thread_time() - processor, time.perf_counter() - wall, player


def shares(recording: Recording) -> dict[str, float]:
    """Microseconds a frame of each part and each detector, costliest first."""
    player, spent = Player(recording), Counter[str]()
    engine = player.detectors

    def clock(part: str, place: Any, name: str) -> None:
        call = getattr(place, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time_ns()
            try:
                return call(*args, **kwargs)
            finally:
                spent[part] += time.thread_time_ns() - began

        setattr(place, name, timed)

    clock("decode", player, "decode")
    for name in ("add", "release", "urgent"):
        clock("assembler", player.assembler, name)
    for name in ("advance", "peek"):
        clock("engine", engine, name)
    clock("baselines and context", engine._context, "observe")
    clock("speakers", engine._speakers, "observe")
    for alert, detector in engine._detectors.items():
        for name in ("advance", "peek", "requests"):
            clock(alert, detector, name)
    inner = ["baselines and context", "speakers", *engine._detectors]
    for message in recording.messages:
        player.take(message)
    spent["verdicts"] = spent.pop("engine") - sum(spent[part] for part in inner)
    return {part: round(ns / 1000 / recording.frames, 2) for part, ns in spent.most_common()}


def snapshot_ms(player: Player) -> float:
    """Milliseconds of processor that the state of the run costs where it ended."""
    began = time.thread_time()
    player.assembler.state()
    player.detectors.state()
    return round((time.thread_time() - began) * 1000, 2)


def told(figures: dict[str, Any]) -> None:
    """The rates and the parts as lines."""
    rate, parts = figures["frames_per_second"], figures["us_per_frame"]
    print(f"  {rate:.0f} frames/s, {figures['frames_per_second_alone']:.0f} one a batch")
    whole = sum(parts.values())
    for part, microseconds in parts.items():
        print(f"  {part:26} {microseconds:8.1f} us a frame  {microseconds / whole:6.1%}")
    each = figures["snapshot_ms"] * 1000 / SNAPSHOT_STEPS
    print(f"  {'snapshot, if stored':26} {each:8.1f} us a frame", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
