"""What one run's steps mean for its alerts. Pure: what is told and when are arguments.

Live evaluation and the replay of history both stand on this, so they cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from gradwarden import wire
from gradwarden_server.alerting import lifecycle, shadow, translate
from gradwarden_server.alerting.muting import Muting
from gradwarden_server.detect.assembler import Assembler
from gradwarden_server.detect.base import Liveness
from gradwarden_server.detect.engine import RunDetectors, Verdict
from gradwarden_server.model import Alert, Change, Condition, Quiet, RunFacts
from gradwarden_server.rules.spec import RuleSet

BACKFILL_NS = 600 * 1_000_000_000
"""Findings on data older than this are history and a note, never a page."""

_ENDINGS = {"finished": lifecycle.RUN_FINISHED, "cancelled": lifecycle.RUN_CANCELLED}

Layouts = Callable[[str], wire.Layout | None]
Outcome = tuple[int, Sequence[Condition]]


class Judging:
    """The assembler and detectors of one run, and the words that its alerts get.

    Args:
        rules: What to judge by.
        facts: The run as it is now; set anew whenever it changes.
        layouts: Finds a layout by its hash.
        external_url: What links begin with.
    """

    def __init__(self, rules: RuleSet, facts: RunFacts, layouts: Layouts, external_url: str):
        self.facts = facts
        self.shadow = shadow.OPEN
        """Whose pages reach people as tickets now."""
        self.silences: Sequence[Quiet] = ()
        """What people do not want to hear now."""
        self.elsewhere: Sequence[Alert] = ()
        """Alerts of the project that explain some of this run's."""
        self._rules = rules
        self._layouts = layouts
        self._url = external_url
        self._labels = {rule.alert: rule.labels for rule in rules.detectors}
        self._runbooks = {rule.alert: rule.runbook for rule in rules.detectors}
        self.forget()

    def forget(self) -> None:
        """Begin anew, as with the run's first frame."""
        self.detectors = RunDetectors(
            self._layouts,
            self._rules.detectors,
            self._rules.baseline,
            environment=self.facts.environment,
            world_size=self.facts.world_size,
        )
        self.assembler = Assembler(self.facts.world_size, layouts=self._layouts)

    def start(self, ordinal: int, world_size: int) -> None:
        """Tell how many ranks the newest attempt has."""
        self.assembler.start(ordinal, world_size)
        self.detectors.start(world_size)

    def outcome(self, verdict: Verdict, now_ns: int) -> Outcome:
        """What a verdict says at its moment; on old data it is history."""
        conditions: Sequence[Condition] = verdict.conditions
        if verdict.time_ns < now_ns - BACKFILL_NS:
            conditions = [translate.as_history(c) for c in conditions]
        return min(verdict.time_ns, now_ns), self.dress(conditions)

    def tick(self, now_ns: int, liveness: Liveness) -> Outcome:
        """What time alone tells."""
        return now_ns, self.dress(self.detectors.tick(now_ns, self.facts, liveness))

    def dress(self, conditions: Iterable[Condition]) -> list[Condition]:
        """Add the links that every alert carries."""
        dressed = []
        for condition in conditions:
            if not condition.active:
                dressed.append(
                    replace(condition, annotations={}) if condition.annotations else condition
                )
                continue
            slug = self._runbooks.get(condition.alertname)
            links = {"dashboard_url": self.facts.dashboard_url}
            if slug:
                links["runbook_url"] = f"{self._url}/runbooks/{slug}"
            dressed.append(replace(condition, annotations={**links, **condition.annotations}))
        return dressed

    def changes(
        self, standing: Mapping[str, Alert], outcomes: Iterable[Outcome], now_ns: int, drained: bool
    ) -> tuple[list[Change], dict[str, Alert]]:
        """What the outcomes change, in order, and the alerts that are open behind them.

        Args:
            standing: The open alerts by fingerprint.
            outcomes: Conditions with their moments.
            now_ns: By the clock that judges.
            drained: Whether everything that the run sent was judged; only then does its good
                end close what is open.
        """
        settled = dict(standing)
        changes: list[Change] = []
        moment = 0
        promoted = self.shadow.promotions(standing)
        for at_ns, conditions in [(now_ns, promoted), *outcomes] if promoted else outcomes:
            moment = max(moment, at_ns)
            # All clear where nothing stands changes nothing, which is how most steps are.
            open_ = {alert.alertname for alert in settled.values()}
            heard = [c for c in conditions if c.active or c.alertname in open_]
            if not heard:
                continue
            turned = self.shadow.turn(heard, settled, self.facts)
            new = lifecycle.advance(settled, self.facts, turned, moment, labels=self._labels)
            settled = lifecycle.settle(settled, new)
            changes += new
        ending = _ENDINGS.get(self.facts.status)
        if ending is not None and drained and self.assembler.deadline_ns is None:
            new = lifecycle.resolve_all(settled, ending, max(moment, now_ns))
            changes += new
        muting = Muting(self._rules.inhibitions, self.silences, self.elsewhere)
        return muting.apply(standing, changes, now_ns)
