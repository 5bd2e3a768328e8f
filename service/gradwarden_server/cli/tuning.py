"""``gradwarden tune``: thresholds that stored runs speak for, as a diff of the rules."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from gradwarden_server.alerting.findings import Finding
from gradwarden_server.alerting.past import History
from gradwarden_server.alerting.tuning import LEAST_RUNS, Proposal, bound, proposals
from gradwarden_server.cli import histories, rulesets
from gradwarden_server.cli.bars import Told, bars
from gradwarden_server.cli.faults import DONE, NO, USAGE, CommandError
from gradwarden_server.cli.reading import Client
from gradwarden_server.cli.rule_edit import diff
from gradwarden_server.rules.spec import DetectorRule, RuleSet

_URGENT = ("page", "ticket")


@dataclass(slots=True)
class Outcome:
    """What became of one rule that spoke on good runs.

    ``loses`` names sick runs of which the rule would no longer tell; then nothing is proposed.
    """

    alert: str
    false_on: list[str]
    proposal: Proposal | None = None
    sick: int = 0
    loses: list[str] = field(default_factory=list)


def tune(options: argparse.Namespace) -> int:
    """Backtest the stored runs, and propose what keeps the good ones quiet."""
    if options.of_project:
        options.project = options.of_project
    client = Client(options)
    rules = rulesets.load(options.rules)
    good_names, sick_names = _named(client, options)
    with ExitStack() as stack, bars(not options.json) as told:
        good = _fetched(client, options.url, good_names, stack, told)
        if len(good) < LEAST_RUNS:
            return _too_few(good, options)
        sick = _fetched(client, options.url, sick_names, stack, told)
        outcomes = _tune(rules, good, sick, told)
    made = [o.proposal for o in outcomes if o.proposal is not None]
    text = diff(options.rules, made)
    if options.json:
        print(json.dumps(_face(good, sick, outcomes, text), indent=2))
        return DONE
    _tell(good, sick, outcomes)
    print(text, end="")
    return DONE


def _named(client: Client, options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Good runs and sick ones: as they are named, else finished and failed."""
    listed = []
    for named, state in ((options.good, "finished"), (options.sick, "failed")):
        faces = [] if named else histories.stored(client, state, "", options.limit)
        listed.append(list(named) or [face["run"] for face in faces])
    good, sick = listed
    both = sorted(set(good) & set(sick))
    if both:
        raise CommandError(f"{', '.join(both)}: either good or sick, not both", USAGE)
    return good, sick


def _fetched(
    client: Client, url: str, names: Sequence[str], stack: ExitStack, told: Told
) -> list[History]:
    """Those of which the service still has frames."""
    found = []
    for done, name in enumerate(names, 1):
        try:
            found.append(stack.enter_context(histories.fetched(client, name, url)))
        except CommandError as error:
            if error.code != USAGE:
                raise
        told("fetching", done, len(names))
    return found


def _tune(
    rules: RuleSet, good: Sequence[History], sick: Sequence[History], told: Told
) -> list[Outcome]:
    said = _judge(rules, good, told, "good runs")
    ill = _judge(rules, sick, told, "sick runs")
    outcomes = []
    for rule in rules.detectors:
        complaining = [h for h in good if rule.alert in said[h.run]]
        if not complaining:
            continue
        outcome = Outcome(rule.alert, [h.run for h in complaining])
        caught = [h for h in sick if rule.alert in ill[h.run]]
        outcome.sick = len(caught)
        for proposal in proposals(rule, _Trial(rules, complaining, told)):
            silent = _Trial(rules, caught, told)
            outcome.loses = [h.run for h in caught if silent.of(proposal.rule, h)]
            if not outcome.loses:
                outcome.proposal = proposal
                break
        outcomes.append(outcome)
    return outcomes


def _judge(rules: RuleSet, runs: Sequence[History], told: Told, what: str) -> dict[str, set[str]]:
    """By run, the rules that raised a page or a ticket."""
    found = {}
    for done, history in enumerate(runs, 1):
        found[history.run] = _urgent(history.judge([rules], _nobody)[0])
        told(what, done, len(runs))
    return found


class _Trial:
    """Tries variants of one rule on some runs."""

    def __init__(self, rules: RuleSet, runs: Sequence[History], told: Told) -> None:
        self._rules = rules
        self._runs = runs
        self._told = told
        self._tried = 0

    def __call__(self, variants: Sequence[DetectorRule]) -> list[bool]:
        """Whether each says nothing on all of the runs."""
        quiet = [True] * len(variants)
        for history in self._runs:
            left = [i for i, ok in enumerate(quiet) if ok]
            if not left:
                break
            alone = [replace(self._rules, detectors=(variants[i],)) for i in left]
            for i, findings in zip(left, history.judge(alone, _nobody), strict=True):
                quiet[i] = not _urgent(findings)
        self._tried += len(variants)
        if variants:
            self._told(f"trying {variants[0].alert}", self._tried, self._tried)
        return quiet

    def of(self, variant: DetectorRule, history: History) -> bool:
        """Whether it says nothing on one run."""
        alone = replace(self._rules, detectors=(variant,))
        return not _urgent(history.judge([alone], _nobody)[0])


def _urgent(findings: Sequence[Finding]) -> set[str]:
    return {f.alert for f in findings if f.severity in _URGENT}


def _nobody(what: str, done: int, total: int) -> None:
    """Progress within one run is not shown."""


def _steps(runs: Sequence[History]) -> int:
    return sum(history.frames for history in runs)


def _too_few(good: Sequence[History], options: argparse.Namespace) -> int:
    text = (
        f"{len(good)} good runs ({_steps(good)} frames) are too few to move a threshold: a rule "
        f"that is quiet on all of them may still be wrong in up to {bound(len(good)):.0%} of runs. "
        f"{LEAST_RUNS} are needed; name them with --good, or wait for more runs to finish"
    )
    if options.json:
        print(json.dumps({"good": len(good), "proposals": [], "diff": "", "why": text}, indent=2))
    else:
        print(text)
    return NO


def _face(
    good: Sequence[History], sick: Sequence[History], outcomes: Sequence[Outcome], text: str
) -> dict[str, Any]:
    return {
        "good": len(good),
        "sick": len(sick),
        "bound": bound(len(good)),
        "proposals": [
            {
                "alert": o.alert,
                "false_on": o.false_on,
                "param": o.proposal and o.proposal.param,
                "old": o.proposal and o.proposal.old,
                "new": o.proposal and o.proposal.new,
                "sick": o.sick,
                "loses": o.loses,
            }
            for o in outcomes
        ],
        "diff": text,
    }


def _tell(good: Sequence[History], sick: Sequence[History], outcomes: Sequence[Outcome]) -> None:
    print(f"{len(good)} good runs ({_steps(good)} frames), {len(sick)} sick ones")
    if not outcomes:
        print("no rule raised a page or a ticket on a good run; nothing to change")
    for o in outcomes:
        where = f"on {len(o.false_on)} good runs ({', '.join(o.false_on[:3])})"
        if o.proposal is not None:
            p = o.proposal
            kept = f"; still told of {o.sick} of {o.sick} sick runs" if o.sick else ""
            untried = "" if o.sick else "; on no sick run was it ever right, so that is not known"
            print(f"{o.alert}: spoke {where}: {p.param} {p.old:g} -> {p.new:g}{kept}{untried}")
        elif o.loses:
            print(f"{o.alert}: spoke {where}: what would quiet it misses {', '.join(o.loses[:3])}")
        else:
            print(f"{o.alert}: spoke {where}: no one number quiets it; look at those runs first")
    share = f"{bound(len(good)):.0%}"
    print(f"quiet on {len(good)} runs still leaves up to {share} of runs with a false alert (95 %)")
