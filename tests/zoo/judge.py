"""Judges a recorded run by the replay core with the shipped rules, and nothing else."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradwarden_server.alerting.spooled import replay_spool

from gradwarden import wire
from gradwarden.spool import read_segment, segments
from gradwarden.sync import find
from gradwarden_server.assets import ALERT_RULES
from gradwarden_server.detect import registry as detectors
from gradwarden_server.rules import spec
from tests.zoo.clock import rewrite
from tests.zoo.play import context
from tests.zoo.score import Raised

JUDGED = "judged.json"


def judge(name: str, folder: Path) -> dict[str, Any]:
    """What the rules say of the run in ``folder``: ``raised`` (see Raised), ``steps``, ``error``.

    In a process of its own: two judgements at once share no interpreter.
    """
    process = context().Process(target=_judge, args=(name, folder))
    process.start()
    process.join()
    path = folder / JUDGED
    if not path.exists():
        return {"raised": [], "steps": 0, "error": f"judging ended with {process.exitcode}"}
    held: dict[str, Any] = json.loads(path.read_text())
    return held


def _judge(name: str, folder: Path) -> None:
    from tests.zoo.registry import CASES

    os.dup2(os.open(folder / "judge.log", os.O_CREAT | os.O_WRONLY), 2)
    spool = folder / "spool"
    clock = CASES[name].clock
    if clock is not None:
        rewrite(spool, clock)
    rules = spec.load(ALERT_RULES, detectors.schemas(), detectors.BASELINE_SCHEMA)
    (replayed,) = replay_spool(spool, rules)
    done = _done(spool)
    raised: dict[tuple[str, int], Raised] = {}
    for change in replayed.changes:
        alert = change.alert
        if alert.fired_ns is not None:
            before = [step for time_ns, step in done if time_ns <= alert.fired_ns]
            step = before[-1] if before else 0
            said = Raised(alert.alertname, alert.severity, step, dict(alert.annotations))
            raised[alert.fingerprint, alert.fired_ns] = said
    held = {"raised": [asdict(r) for r in raised.values()], "steps": len({s for _, s in done})}
    (folder / JUDGED).write_text(json.dumps(held))


def _done(spool: Path) -> list[tuple[int, int]]:
    """When which step was done, by the recorded clock."""
    records = [r for d in find(spool) for p in segments(d) for r in read_segment(p)]
    batches = [wire.decode(r.body) for r in records if r.kind == "batch"]
    return sorted((f.time_ns, f.step) for b in batches for f in b.frames if f.scalars or f.values)
