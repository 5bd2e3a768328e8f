"""Judges a recorded run by the replay core with the shipped rules, and nothing else."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

from gradwarden import wire
from gradwarden.spool import read_segment, segments
from gradwarden.sync import find
from gradwarden_server.alerting.replay import Replay
from gradwarden_server.assets import ALERT_RULES
from gradwarden_server.cli import spooled
from gradwarden_server.detect import registry as detectors
from gradwarden_server.rules import spec
from gradwarden_server.rules.spec import RuleSet
from tests.zoo.cases import Case
from tests.zoo.clock import SECOND, rewrite
from tests.zoo.play import lives, start
from tests.zoo.score import Raised

JUDGED = "judged.json"
_FOR_EVER = 86_400 * SECOND


def judge(name: str, folder: Path) -> dict[str, Any]:
    """What the rules say of the run in ``folder``: ``raised`` (see Raised), ``steps``, ``error``.

    In a process of its own: two judgements at once share no interpreter.
    """
    process = start(_judge, name, folder)
    while lives(process, 60.0):
        pass
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
        spool = rewrite(spool, clock, folder / "clocked")
    rules = spec.load(ALERT_RULES, detectors.schemas(), detectors.BASELINE_SCHEMA)
    owner = CASES[name].owner
    own = [replace(r, params={**r.params, **owner.get(r.alert, {})}) for r in rules.detectors]
    rules = replace(rules, detectors=type(rules.detectors)(own))
    replay = _replayed(spool, rules, CASES[name])
    done = _done(spool)
    raised: dict[tuple[str, int], Raised] = {}
    for change in replay.changes:
        alert = change.alert
        if alert.fired_ns is not None:
            before = [step for time_ns, step in done if time_ns <= alert.fired_ns]
            step = before[-1] if before else 0
            said = Raised(alert.alertname, alert.severity, step, dict(alert.annotations))
            raised[alert.fingerprint, alert.fired_ns] = said
    held = {"raised": [asdict(r) for r in raised.values()], "steps": len({s for _, s in done})}
    (folder / JUDGED).write_text(json.dumps(held))


def _replayed(spool: Path, rules: RuleSet, case: Case) -> Replay:
    """The replay core over a spool, told besides what no spool keeps."""

    class Told(Replay):
        def __init__(self, rules: RuleSet, facts: Any, layouts: Any, processes: Any) -> None:
            processes = [
                replace(p, last_ns=p.last_ns + _FOR_EVER) if p.rank in case.stands else p
                for p in processes
            ]
            super().__init__(rules, facts, layouts, processes)

        def hear(self, batch: wire.Batch, ordinal: int, received_ns: int, **more: Any) -> None:
            if case.clock is not None and case.clock.outage is not None:
                arrived_ns = max(received_ns, batch.sent_ns)
                if arrived_ns - received_ns > SECOND:
                    self._now_ns = arrived_ns  # a service that is away asks nothing meanwhile
                received_ns = arrived_ns
            super().hear(batch, ordinal, received_ns, **more)

    with mock.patch.object(spooled, "Replay", Told):
        (one,) = spooled.judge(spool, rules)
    return one.replay


def _done(spool: Path) -> list[tuple[int, int]]:
    """When which step was done, by the recorded clock."""
    records = [r for d in find(spool) for p in segments(d) for r in read_segment(p)]
    batches = [wire.decode(r.body) for r in records if r.kind == "batch"]
    return sorted((f.time_ns, f.step) for b in batches for f in b.frames if f.scalars or f.values)
