"""What a diagnosis says: findings, joined into stories. Frozen, and plain enough for JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Confidence = Literal["high", "medium", "low"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """One thing that was seen; ``path`` shows it on the dashboard."""

    text: str
    path: str
    series: str | None = None
    layer: str | None = None
    rank: str | None = None
    first_step: int | None = None
    last_step: int | None = None


@dataclass(frozen=True, slots=True)
class Action:
    """Something to do. ``command`` stands only where it is known to be right here.

    ``loses`` says what work is lost by it, None where none is.
    """

    text: str
    command: str | None
    risk: str
    loses: str | None


@dataclass(frozen=True, slots=True)
class Excluded:
    """Another cause that was looked for, and what speaks against it."""

    what: str
    by: str


@dataclass(frozen=True, slots=True)
class Near:
    """A known pattern that comes close to what was seen and does not fit it.

    ``signs`` is what of it was seen, ``against`` what speaks against it.
    """

    name: str
    cause: str
    signs: tuple[Evidence, ...]
    against: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """One sickness, or the change that began one.

    ``state`` is ``healed`` where it went by itself, and ``ended`` where the run did first.
    ``step`` and ``attempt`` are its onset. ``explained_by`` and ``explains`` are ids of other
    findings of the same run. The first of ``actions`` is the first safe one.
    """

    id: str
    kind: Literal["alert", "change"]
    name: str
    severity: Literal["page", "ticket", "note"] | None
    state: Literal["firing", "pending", "healed", "ended", "change"]
    attempt: int
    step: int | None
    layer: str | None
    rank: str | None
    node: str | None
    symptom: str
    cause: str
    confidence: Confidence
    why: str
    explained_by: str | None
    explains: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    actions: tuple[Action, ...]
    ruled_out: tuple[Excluded, ...]
    not_ruled_out: tuple[Excluded, ...]
    runbook: str | None
    alerts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Story:
    """Findings of one origin in the order of their onset; the first is the root."""

    root: str
    findings: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint with a checksum, finite weights, and enough clean steps behind it."""

    path: str
    step: int
    sha256: str
    bytes: int | None


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of what could be watched was; ``gaps`` say what would arm the rest."""

    armed: int
    of: int
    partly: bool
    gaps: tuple[Excluded, ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What ails a run; the stories with the worst first, the findings by onset.

    ``closest`` are known patterns that come near, where none fits.
    """

    run: str
    name: str
    status: str
    step: int | None
    verdict: str
    headline: str
    stories: tuple[Story, ...]
    findings: tuple[Finding, ...]
    last_good_checkpoint: Checkpoint | None
    checkpoint_note: str
    coverage: Coverage
    closest: tuple[Near, ...]

    def finding(self, id_: str) -> Finding:
        """A finding by its id.

        Raises:
            KeyError: there is none.
        """
        for finding in self.findings:
            if finding.id == id_:
                return finding
        raise KeyError(id_)
