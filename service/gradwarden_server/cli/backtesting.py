"""``gradwarden backtest``: old rules and new ones over many stored runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gradwarden_server.alerting.findings import Difference, Finding, compare, counts
from gradwarden_server.cli import histories, rulesets
from gradwarden_server.cli.bars import bars
from gradwarden_server.cli.faults import DONE, USAGE, CommandError
from gradwarden_server.cli.reading import Client, table
from gradwarden_server.model import SEVERITIES
from gradwarden_server.rules.spec import RuleSet

_PLURAL = {"page": "pages", "ticket": "tickets", "note": "notes"}


@dataclass(frozen=True, slots=True)
class Tested:
    """One run under both sets of rules."""

    run: str
    status: str
    frames: int
    old: list[Finding]
    new: list[Finding]

    @property
    def difference(self) -> Difference:
        """What the new rules change."""
        return compare(self.old, self.new)


def backtest(options: argparse.Namespace) -> int:
    """Judge stored runs by both, and tell what each rule raises."""
    old, new = rulesets.load(options.against), rulesets.load(options.rules)
    client = Client(options)
    names = chosen(client, options)
    skipped: dict[str, str] = {}
    with bars(not options.json) as told:
        tested = list(_test(client, options.url, names, [old, new], told, skipped))
    rows = _rows(tested)
    if options.json:
        print(json.dumps(_face(tested, rows, skipped), indent=2))
        return DONE
    frames = sum(one.frames for one in tested)
    print(f"{len(tested)} runs, {frames} frames; old -> new")
    columns = ("alert", "pages", "tickets", "notes", "runs")
    table(columns, [_side_by_side(row) for row in rows], "no rule raised anything")
    for one in tested:
        _tell(one)
    for run, why in skipped.items():
        print(f"left out: {run}: {why}")
    return DONE


def chosen(client: Client, options: argparse.Namespace) -> list[str]:
    """The runs that the options name, newest first.

    Raises:
        CommandError: there are none.
    """
    if options.runs:
        return list(options.runs)
    faces = histories.stored(client, options.state, options.query, options.limit)
    if not faces:
        raise CommandError("no stored run is like that; see: gradwarden runs", USAGE)
    return [face["run"] for face in faces]


def _test(
    client: Client,
    url: str,
    names: Sequence[str],
    rules: Sequence[RuleSet],
    told: Callable[[str, int, int], None],
    skipped: dict[str, str],
) -> Iterator[Tested]:
    for done, name in enumerate(names):
        told("runs", done, len(names))
        try:
            with histories.fetched(client, name, url) as history:
                old, new = history.judge(rules, lambda *_: None)
        except CommandError as error:
            if error.code != USAGE:
                raise
            skipped[name] = str(error)
            continue
        yield Tested(name, history.head.run.status, history.frames, old, new)
    told("runs", len(names), len(names))


def _rows(tested: Sequence[Tested]) -> list[dict[str, Any]]:
    """For each rule that raised something: how often at which severity, and in how many runs."""
    sides = {}
    for side in ("old", "new"):
        findings = [f for one in tested for f in getattr(one, side)]
        sides[side] = counts(findings), [{f.alert for f in getattr(one, side)} for one in tested]
    names = sorted(set(sides["old"][0]) | set(sides["new"][0]))
    return [
        {
            "alert": name,
            **{
                side: {
                    **{_PLURAL[s]: table_.get(name, {}).get(s, 0) for s in SEVERITIES},
                    "runs": sum(name in raised for raised in runs),
                }
                for side, (table_, runs) in sides.items()
            },
        }
        for name in names
    ]


def _side_by_side(row: dict[str, Any]) -> dict[str, Any]:
    old, new = row["old"], row["new"]
    cells = {
        name: str(old[name]) if old[name] == new[name] else f"{old[name]} -> {new[name]}"
        for name in old
    }
    return {"alert": row["alert"], **cells}


def _face(
    tested: Sequence[Tested], rows: list[dict[str, Any]], skipped: dict[str, str]
) -> dict[str, Any]:
    return {
        "rules": rows,
        "runs": [
            {
                "run": one.run,
                "status": one.status,
                "frames": one.frames,
                "old": [asdict(f) for f in one.old],
                "new": [asdict(f) for f in one.new],
            }
            for one in tested
        ],
        "left_out": [{"run": run, "why": why} for run, why in skipped.items()],
    }


def _tell(one: Tested) -> None:
    apart = one.difference
    for sign, findings in (("-", apart.gone), ("+", apart.new)):
        for f in findings:
            where = "" if f.step is None else f" at step {f.step}"
            print(f"{sign} {one.run} ({one.status}): {f.severity} {f.alert}{where}")
    for was, now in apart.moved:
        words = f"{now.severity} {now.alert} at step {was.step} -> {now.step}"
        print(f"~ {one.run} ({one.status}): {words}")
