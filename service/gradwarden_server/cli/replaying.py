"""``gradwarden replay``: what rules find in a stored run, and how that differs from live."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gradwarden_server.alerting.findings import (
    Difference,
    Finding,
    compare,
    of_changes,
    of_faces,
)
from gradwarden_server.cli import histories, rulesets, spooled
from gradwarden_server.cli.bars import bars
from gradwarden_server.cli.faults import DONE, USAGE, CommandError
from gradwarden_server.cli.reading import Client, table

_BY_HEARTBEATS = ("run_stalled", "rank_silent", "run_failed")
_COLUMNS = ("step", "severity", "alert", "attempt", "layer", "rank", "ended", "summary")


def replay(options: argparse.Namespace) -> int:
    """Judge one stored run, or the runs of a spool, anew."""
    rules = rulesets.load(options.rules)
    if options.spool is not None:
        return _spool(options)
    if options.run is None:
        raise CommandError("name a run, or a folder with --spool DIR", USAGE)
    client = Client(options)
    fetched = histories.fetched(client, options.run, options.url)
    with fetched as history, bars(not options.json) as told:
        [found] = history.judge([rules], told)
    live = of_faces(histories.raised(client, options.run))
    difference = compare(live, found)
    if options.json:
        print(json.dumps(_face(options.run, history.frames, found, difference), indent=2))
        return DONE
    _tell(found, "no alert")
    print()
    _tell_difference(difference)
    by_heartbeats = {r.alert for r in rules.detectors if r.detector in _BY_HEARTBEATS}
    inferred = sorted(by_heartbeats & {f.alert for f in (*difference.gone, *difference.new)})
    if inferred:
        print(f"heartbeats are not kept: when {', '.join(inferred)} spoke can only be inferred")
    return DONE


def _spool(options: argparse.Namespace) -> int:
    try:
        judged = spooled.judge(options.spool, rulesets.load(options.rules))
    except FileNotFoundError as error:
        raise CommandError(str(error), USAGE) from None
    wanted = [one for one in judged if options.run in (None, one.facts.run)]
    if not wanted:
        known = ", ".join(one.facts.run for one in judged) or "it holds no run"
        raise CommandError(f"{options.spool}: no run {options.run}; {known}", USAGE)
    found = {one.facts.run: of_changes(one.replay.changes) for one in wanted}
    if options.json:
        items = [{"run": run, "alerts": _rows(findings)} for run, findings in found.items()]
        print(json.dumps({"items": items}, indent=2))
        return DONE
    for run, findings in found.items():
        print(f"{run}:")
        _tell(findings, "no alert")
    return DONE


def _face(run: str, frames: int, found: Sequence[Finding], apart: Difference) -> dict[str, Any]:
    return {
        "run": run,
        "frames": frames,
        "alerts": _rows(found),
        "only_live": _rows(apart.gone),
        "only_replayed": _rows(apart.new),
        "moved": [{"live": asdict(a), "replayed": asdict(b)} for a, b in apart.moved],
    }


def _tell(findings: Sequence[Finding], none: str) -> None:
    table(_COLUMNS, [{**row, "ended": row["ended"] or "stands"} for row in _rows(findings)], none)


def _tell_difference(apart: Difference) -> None:
    if not apart:
        print("the same alerts were raised live")
        return
    for words, findings in (
        ("raised live, and not by these rules:", apart.gone),
        ("raised by these rules, and not live:", apart.new),
    ):
        if findings:
            print(words)
            _tell(findings, "")
    for was, now in apart.moved:
        print(f"{now.severity} {now.alert}: live at step {was.step}, replayed at step {now.step}")


def _rows(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [asdict(finding) for finding in findings]
