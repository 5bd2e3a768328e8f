"""Which pages reach people as tickets: a project's shadow period, and rules on probation.

Pure. The severity of a condition is turned before the state machine sees it, so live
evaluation, a restart and a replay agree. What was proved, and not judged by a threshold, pages
always; so does a drill, which is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from gradwarden_server.model import (
    DRILL,
    PROOF,
    SHADOW,
    WOULD_HAVE_PAGED,
    Alert,
    Condition,
    RunFacts,
)

FINISHED_RUNS = 3
"""A shadow period lasts until so many runs finished, and as many days as the settings say."""
PROMOTED = "promoted"
DAY_NS = 86_400 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class Shadow:
    """Whose pages are tickets now.

    ``period`` says that the project is in its shadow period; ``rules`` names rules that are on
    probation by their files, ``promoted`` rules that page whatever else is said.
    """

    period: bool = False
    rules: frozenset[str] = field(default_factory=frozenset)
    promoted: frozenset[str] = field(default_factory=frozenset)

    def holds(self, alertname: str) -> bool:
        """Whether pages of this rule are tickets."""
        return alertname not in self.promoted and (self.period or alertname in self.rules)

    def turn(
        self, conditions: Iterable[Condition], standing: Mapping[str, Alert], run: RunFacts
    ) -> list[Condition]:
        """The conditions of one moment with the severities that people are told.

        Args:
            conditions: What the rules say.
            standing: The open alerts. One that paged stays a page until it is over.
            run: The run that they speak of.
        """
        paged, shadowed = set(), set()
        for alert in standing.values():
            if alert.severity == "page":
                paged.add(alert.alertname)
            elif SHADOW in alert.annotations:
                shadowed.add(alert.alertname)
        turned = []
        for condition in conditions:
            if condition.severity != "page":
                turned.append(condition)
            elif (
                condition.active
                and condition.alertname not in paged
                and self._turns(condition, run)
            ):
                words = {**condition.annotations, SHADOW: WOULD_HAVE_PAGED}
                turned.append(replace(condition, severity="ticket", annotations=words))
            else:
                turned.append(condition)
                if condition.alertname in shadowed:  # its detector may know no tickets
                    over = PROMOTED if condition.active else condition.reason
                    turned.append(Condition(condition.alertname, "ticket", False, {}, over))
        return turned

    def promotions(self, standing: Mapping[str, Alert]) -> list[Condition]:
        """What standing tickets that would have paged become once nothing holds them back.

        They page, once: what the detectors say next finds the page standing.
        """
        conditions = []
        for alert in standing.values():
            held_back = alert.severity == "ticket" and SHADOW in alert.annotations
            if held_back and alert.state == "firing" and not self.holds(alert.alertname):
                words = {k: v for k, v in alert.annotations.items() if k != SHADOW}
                conditions += [
                    Condition(alert.alertname, "page", True, words, PROMOTED),
                    Condition(alert.alertname, "ticket", False, {}, PROMOTED),
                ]
        return conditions

    def _turns(self, condition: Condition, run: RunFacts) -> bool:
        proved = PROOF in condition.annotations
        drill = run.labels.get(DRILL) == "true"
        return self.holds(condition.alertname) and not (proved or drill)


OPEN = Shadow()
"""Nothing is held back."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a project's shadow period got."""

    days: float
    finished_runs: int
    wanted_days: float

    @property
    def over(self) -> bool:
        """Whether it has seen enough."""
        enough = self.days >= self.wanted_days and self.finished_runs >= FINISHED_RUNS
        return self.wanted_days <= 0 or enough

    @property
    def words(self) -> str:
        """For people."""
        days = f"{min(self.days, self.wanted_days):.1f} of {self.wanted_days:g} days"
        runs = min(self.finished_runs, FINISHED_RUNS)
        return f"{days}, {runs} of {FINISHED_RUNS} finished runs"


def progress(
    created_ns: int | None, finished_runs: int, now_ns: int, wanted_days: float
) -> Progress:
    """How far; a project that nobody wrote to begins now."""
    days = 0.0 if created_ns is None else max(0, now_ns - created_ns) / DAY_NS
    return Progress(days, finished_runs, wanted_days)
