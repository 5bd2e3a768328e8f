"""One run's diagnosis. A pure function of what is stored, so it can be made anew at any time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gradwarden_server.diagnosis import actions, coverage, evidence, links, silent
from gradwarden_server.diagnosis.case import Case, NoSeries, Series
from gradwarden_server.diagnosis.causes import Link, joined, stories
from gradwarden_server.diagnosis.changes import changes
from gradwarden_server.diagnosis.checkpoints import first_harm, last_good
from gradwarden_server.diagnosis.closest import closest
from gradwarden_server.diagnosis.incidents import Incident, incidents
from gradwarden_server.diagnosis.patterns import PATTERNS, UNKNOWN, Pattern
from gradwarden_server.diagnosis.words import (
    Action,
    Checkpoint,
    Confidence,
    Diagnosis,
    Excluded,
    Finding,
    Story,
)

MOST = 50
"""Findings that are told; of more the least urgent are left out."""
_LEVELS: tuple[Confidence, ...] = ("low", "medium", "high")
_URGENT = ("page", "ticket")
_IGNORED = frozenset({"Watchdog"})


def diagnose(case: Case, series: Series | None = None, at: int | None = None) -> Diagnosis:
    """What ails a run, from what, how sure that is, and what to do first.

    Args:
        case: Its alerts, events, coverage and places.
        series: Its stored series; without them nothing is compared.
        at: Only what began up to this step of the newest attempts; None is all.
    """
    series = series or NoSeries()
    sick = [
        one
        for one in incidents(case.alerts, case.newest)
        if one.name not in _IGNORED and (at is None or one.step is None or one.step <= at)
    ]
    sick = _most(sick)
    changed = changes(case, series, sick)
    found = sorted([*changed, *sick], key=lambda i: (*i.order, i.kind == "alert", i.name))
    explained = joined(found)
    told = {cause.id for cause, _ in explained.values()}
    found = [one for one in found if one.kind == "alert" or one.id in told]
    held = sorted(stories(found, explained), key=_urgency)
    harm = _earliest(held)
    good, note = last_good(case, harm)
    writer = _Writer(case, series, found, explained, good, note)
    findings = [finding for story in held for finding in writer.story(story)]
    watched = coverage.summary(case.coverage)
    urgent = [story for story in held if _of(story) in _URGENT and not _healed(story)]
    strange = [story[0] for story in held if story[0].name not in PATTERNS]
    fits = any(story[0].name in PATTERNS and not _healed(story) for story in held)
    return Diagnosis(
        run=case.run,
        name=case.name,
        status=case.status,
        step=case.last_step,
        verdict=_verdict(urgent, watched.partly),
        headline=_headline(case, urgent, held, watched.armed, watched.of),
        stories=tuple(
            Story(story[0].id, tuple(one.id for one in story), _chain(story)) for story in held
        ),
        findings=tuple(sorted(findings, key=lambda f: _place(found, f.id))),
        last_good_checkpoint=good,
        checkpoint_note=note,
        coverage=watched,
        closest=() if fits else closest(case, series, strange[0].step if strange else at),
    )


class _Writer:
    """Turns incidents into findings."""

    def __init__(
        self,
        case: Case,
        series: Series,
        found: list[Incident],
        explained: Mapping[str, tuple[Incident, Link]],
        good: Checkpoint | None,
        note: str,
    ) -> None:
        self._case, self._series, self._found = case, series, found
        self._explained = explained
        self._good, self._note = good, note

    def story(self, story: Sequence[Incident]) -> list[Finding]:
        """The findings of one story, the root first."""
        return [self._finding(one, story) for one in story]

    def _finding(self, one: Incident, story: Sequence[Incident]) -> Finding:
        pattern = PATTERNS.get(one.name, UNKNOWN)
        out: tuple[Excluded, ...] = ()
        left: tuple[Excluded, ...] = ()
        if one.id in self._explained:
            cause, link = self._explained[one.id]
            words = f"it follows from {_short(cause)}"
            if one.said("cause") and not pattern.measured:
                words += f"; {one.said('cause')}"
            confidence: Confidence = link.sure
            why = _why_linked(cause, one, link)
            acts = actions.follow(story[0], _short(story[0]))
        else:
            one = silent.told(self._case, one)
            words = _cause(one, pattern)
            out, left = evidence.rivals(self._case, self._series, one, pattern, story, self._found)
            confidence, why = _sure(pattern, out, left)
            acts = self._acts(one, pattern, story)
        rank = one.rank
        return Finding(
            id=one.id,
            kind=one.kind,
            name=one.name,
            severity=one.severity,
            state=one.state,
            attempt=one.attempt,
            step=one.step,
            layer=one.said("layer") or None,
            rank=rank,
            node=one.said("node") or self._node(rank),
            symptom=one.said("summary") or one.name,
            cause=words,
            confidence=confidence,
            why=why,
            explained_by=self._explained[one.id][0].id if one.id in self._explained else None,
            explains=tuple(
                other.id
                for other in story
                if other.id in self._explained and self._explained[other.id][0].id == one.id
            ),
            evidence=evidence.evidence(
                self._case, self._series, one, pattern, alone=len(story) == 1
            ),
            actions=acts,
            ruled_out=out,
            not_ruled_out=left,
            runbook=links.runbook(one.name) if one.kind == "alert" else None,
            alerts=one.alerts,
        )

    def _acts(
        self, one: Incident, pattern: Pattern, story: Sequence[Incident]
    ) -> tuple[Action, ...]:
        harmed = first_harm(story) is not None
        return actions.actions(
            self._case, self._series, one, pattern, story, harmed, self._good, self._note
        )

    def _node(self, rank: str | None) -> str | None:
        place = self._case.place(int(rank)) if rank is not None and rank.isdecimal() else None
        return place.node or None if place is not None else None


def _cause(one: Incident, pattern: Pattern) -> str:
    said = one.said("cause")
    # What is so from the first step on has no before that it could be measured against.
    causal = not pattern.measured or "initialisation" in said
    return said if said and causal else pattern.cause


def _sure(
    pattern: Pattern, out: Sequence[Excluded], left: Sequence[Excluded]
) -> tuple[Confidence, str]:
    """A pattern's own confidence, less where most of what else it could be was not watched."""
    if left and len(left) > len(out):
        at = max(0, _LEVELS.index(pattern.confidence) - 1)
        names = ", ".join(item.what for item in left[:3])
        return _LEVELS[at], f"{pattern.why}; not ruled out: {names}"
    return pattern.confidence, pattern.why


def _why_linked(cause: Incident, one: Incident, link: Link) -> str:
    if link.when == "beside" or cause.step is None or one.step is None:
        return f"both stood at the same time, and {cause.name} is known to bring it about"
    apart = one.step - cause.step
    when = "in the same step" if apart == 0 else f"{apart} steps before"
    return f"{cause.name} came {when}, and is known to bring it about"


def _short(one: Incident) -> str:
    """A finding in a few words."""
    at = "" if one.step is None else f" at step {one.step}"
    return f"{_SHORT.get(one.name, one.name)}{at}"


_SHORT = {
    "LearningRateJump": "a jump of the learning rate",
    "BatchChange": "a change of the batch",
    "Mark": "a marked change",
    "NewAttempt": "a new attempt",
}


def _chain(story: Sequence[Incident]) -> str:
    """The names in their order, each once, with how often it came."""
    first: dict[str, Incident] = {}
    times: dict[str, int] = {}
    for one in story:
        first.setdefault(one.name, one)
        times[one.name] = times.get(one.name, 0) + 1
    return " -> ".join(
        _short(one) + (f" ({times[name]} times)" if times[name] > 1 else "")
        for name, one in first.items()
    )


def _of(story: Sequence[Incident]) -> str:
    """The severity of the worst of a story."""
    held = {one.severity for one in story}
    return next((s for s in ("page", "ticket", "note") if s in held), "note")


def _urgency(story: Sequence[Incident]) -> tuple[int, bool, tuple[int, int, int]]:
    severity = ("page", "ticket", "note").index(_of(story))
    return severity, _healed(story), story[0].order


def _healed(story: Sequence[Incident]) -> bool:
    """Whether all of it went by itself."""
    return all(one.state in ("healed", "change") for one in story)


def _earliest(held: Sequence[Sequence[Incident]]) -> Incident | None:
    """The first sign of harm to the weights, over all stories that did not heal."""
    standing = [story for story in held if not _healed(story)]
    harms = [harm for story in standing if (harm := first_harm(story)) is not None]
    return min(harms, key=lambda one: one.order, default=None)


def _most(sick: list[Incident]) -> list[Incident]:
    """At most :data:`MOST`, the most urgent of them, by onset."""
    order = {"page": 0, "ticket": 1, "note": 2, None: 3}
    kept = sorted(sick, key=lambda one: (order[one.severity], one.order))[:MOST]
    return sorted(kept, key=lambda one: one.order)


def _place(found: Sequence[Incident], id_: str) -> int:
    return next(n for n, one in enumerate(found) if one.id == id_)


def _verdict(urgent: Sequence[Sequence[Incident]], partly: bool) -> str:
    if any(_of(story) == "page" for story in urgent):
        return "critical"
    if urgent:
        return "at risk"
    return coverage.PARTLY if partly else coverage.HEALTHY


def _headline(
    case: Case,
    urgent: Sequence[Sequence[Incident]],
    held: Sequence[Sequence[Incident]],
    armed: int,
    of: int,
) -> str:
    if urgent:
        root = urgent[0][0]
        text = root.said("summary") or root.name
        if "_" not in text.split()[0]:  # a series is called what it is called
            text = text[0].upper() + text[1:]
        if len(urgent[0]) > 1:
            text += f"; what followed: {_chain(urgent[0][1:])}"
        return text
    healed = [story for story in held if _of(story) in _URGENT]
    notes = sum(len(story) for story in held)
    many = "a note" if notes == 1 else f"{notes} notes"
    quiet = f"{many} and nothing more" if notes else "no known pattern"
    if healed:
        quiet = f"healed by now: {_chain(healed[0])}"
    if case.status == "failed" and not held:
        quiet = "the run failed, and no known pattern says why"
    return f"{quiet}; {armed} of {of} detectors armed"
