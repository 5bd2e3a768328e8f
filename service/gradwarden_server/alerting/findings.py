"""What rules found in a run, one line an incident, and how two judgements of it differ.

Pure. A ticket of a shadow period and a note on old data count as what they would have been, so
that what was told live can be compared with what a replay finds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradwarden_server.model import SEVERITIES, SHADOW, Change, Severity

BACKFILL = "backfill"
_LATE = "found late; was a "


@dataclass(frozen=True, slots=True)
class Finding:
    """One incident at one severity; ``ended`` is why it is over, None while it stands."""

    alert: str
    severity: str
    attempt: int | None
    step: int | None
    summary: str
    layer: str | None = None
    rank: str | None = None
    ended: str | None = None

    @property
    def place(self) -> tuple[str, str, int, int]:
        """What it is found again by."""
        return self.alert, self.severity, self.attempt or 0, self.step or 0


@dataclass(frozen=True, slots=True)
class Difference:
    """What changed from one judgement to another; ``moved`` pairs a finding before and after."""

    gone: tuple[Finding, ...]
    new: tuple[Finding, ...]
    moved: tuple[tuple[Finding, Finding], ...]

    def __bool__(self) -> bool:
        return bool(self.gone or self.new or self.moved)


def of_changes(changes: Iterable[Change]) -> list[Finding]:
    """The incidents that fired, in the order in which they did."""
    found: list[Finding] = []
    standing: dict[str, int] = {}
    for change in changes:
        key = change.alert.fingerprint
        if change.to_state == "firing" and key not in standing:
            standing[key] = len(found)
            found.append(_finding(change.alert.labels, change.alert.annotations))
        elif change.to_state == "resolved" and key in standing:
            at = standing.pop(key)
            found[at] = replace(found[at], ended=change.reason)
        elif key in standing:
            at = standing[key]
            found[at] = _finding(change.alert.labels, change.alert.annotations)
    return found


def of_faces(faces: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """The incidents among alerts as the API tells them, in the order in which they fired."""
    fired = [face for face in faces if face["fired_at"] is not None]
    fired.sort(key=lambda face: (face["fired_at"], face["id"]))
    return [
        replace(
            _finding(face["labels"], face["annotations"]),
            ended=face["reason"] if face["state"] == "resolved" else None,
        )
        for face in fired
    ]


def compare(before: Sequence[Finding], after: Sequence[Finding]) -> Difference:
    """What went, what came, and what is found at another step.

    Findings at one place are the same, whatever their words; of the rest, those of one alert
    and severity are paired in their order.
    """
    left = list(before)
    rest = []
    for finding in after:
        same = next((f for f in left if f.place == finding.place), None)
        if same is None:
            rest.append(finding)
        else:
            left.remove(same)
    moved, new = [], []
    for finding in rest:
        kind = (finding.alert, finding.severity)
        was = next((f for f in left if (f.alert, f.severity) == kind), None)
        if was is None:
            new.append(finding)
        else:
            left.remove(was)
            moved.append((was, finding))
    return Difference(tuple(left), tuple(new), tuple(moved))


def counts(findings: Iterable[Finding]) -> dict[str, dict[Severity, int]]:
    """Pages, tickets and notes by rule."""
    table: dict[str, dict[Severity, int]] = {}
    for finding in findings:
        row = table.setdefault(finding.alert, dict.fromkeys(SEVERITIES, 0))
        for severity in SEVERITIES:
            row[severity] += finding.severity == severity
    return table


def _finding(labels: Mapping[str, str], words: Mapping[str, str]) -> Finding:
    severity = labels["severity"]
    if SHADOW in words:
        severity = "page"
    if words.get(BACKFILL, "").startswith(_LATE):
        severity = words[BACKFILL].removeprefix(_LATE)
    return Finding(
        alert=labels["alertname"],
        severity=severity,
        attempt=_number(words.get("attempt")),
        step=_number(words.get("step")),
        summary=words.get("summary", ""),
        layer=words.get("layer"),
        rank=words.get("rank"),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
