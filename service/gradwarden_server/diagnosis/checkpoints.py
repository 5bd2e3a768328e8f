"""The last good checkpoint: whole, finite, and saved well before anything began to go wrong."""

from __future__ import annotations

from collections.abc import Sequence

from gradwarden_server.diagnosis.case import Case, Happening
from gradwarden_server.diagnosis.incidents import Incident
from gradwarden_server.diagnosis.words import Checkpoint

CLEAN_STEPS = 200
"""Steps that must lie between a checkpoint and the onset of the first finding (PROTOCOL.md 9):
its cause may be older than its first sign."""

HARMFUL = frozenset(
    {
        "NonFiniteGradient",
        "NonFiniteLoss",
        "ExplodingGradient",
        "LossDivergence",
        "LossSpike",
        "GradientsNotZeroed",
        "ReplicaMismatch",
        "NeverSynchronized",
        "GradientUnderflow",
        "DeadLayer",
        "UpdateRatioOutOfBand",
        "StaleGradients",
    }
)
"""Sicknesses after which the weights may be harmed. The others cost time, not weights."""


def first_harm(story: Sequence[Incident]) -> Incident | None:
    """Where a story that may have harmed the weights began; None where none may have.

    A note alone harms nothing: a step that was skipped, a single spike.
    """
    if not any(one.name in HARMFUL and one.severity in ("page", "ticket") for one in story):
        return None
    steps = [one for one in story if one.step is not None]
    return min(steps, key=lambda one: one.order, default=None)


def last_good(case: Case, harm: Incident | None) -> tuple[Checkpoint | None, str]:
    """The newest good checkpoint before a harm, or of all where there is none, and why.

    Args:
        case: The run; its events tell of checkpoints.
        harm: Where the first harm began.
    """
    saved = newest_of_each_path(case)
    if not saved:
        return None, (
            "no checkpoint is known: save with monitor.checkpoint(path, step), so that one can be "
            "named"
        )
    latest = case.last_step or 0
    limit = latest - CLEAN_STEPS if harm is None or harm.step is None else harm.step - CLEAN_STEPS
    corrupt = {
        word
        for alert in case.alerts
        if alert.alertname == "CheckpointCorrupt"
        for word in (alert.annotations.get("path"),)
        if word
    }
    refused: list[str] = []
    looks = [e for e in case.events if e.kind == "checkpoint" and "verified" in e.data]
    for event in saved:
        step, path = saved_step(event), str(event.data.get("path", ""))
        after = [e.data for e in looks if e.data.get("path") == path and e.time_ns >= event.time_ns]
        bad = path in corrupt or any(not look.get("ok") for look in after)
        against = _against(case, event, step, limit, bad)
        if against is None:
            size = event.data.get("bytes")
            checkpoint = Checkpoint(
                path, step, str(event.data["sha256"]), size if isinstance(size, int) else None
            )
            again = any(look.get("verified") is True for look in after)
            return checkpoint, _why(harm, step, latest, again)
        refused.append(f"step {step}: {against}")
    return None, f"no good checkpoint among {len(saved)}: {'; '.join(refused[:3])}"


def newest_of_each_path(case: Case) -> list[Happening]:
    """The last save to each path, the newest step first: an earlier one was written over.

    An event with ``verified`` is a later look at a file, and no save.
    """
    held: dict[str, Happening] = {}
    for event in sorted(case.events, key=lambda e: (e.time_ns, e.attempt)):
        if event.kind == "checkpoint" and event.data.get("path") and "verified" not in event.data:
            path = str(event.data["path"])
            if event.data.get("ok") or path not in held:
                held[path] = event
    return sorted(held.values(), key=lambda e: (saved_step(e), e.attempt), reverse=True)


def saved_step(event: Happening) -> int:
    """The step whose weights a checkpoint holds."""
    said = event.data.get("saved_step")
    return said if isinstance(said, int) and not isinstance(said, bool) else event.step


def _against(case: Case, event: Happening, step: int, limit: int, corrupt: bool) -> str | None:
    """What speaks against a checkpoint; None where nothing does."""
    if not event.data.get("ok"):
        return "it was not written whole"
    if corrupt:
        return "its checksum or size is wrong"
    if not event.data.get("sha256"):
        return "it has no checksum"
    if event.data.get("finite") is False:
        return "its weights hold NaN or Inf"
    if event.data.get("finite") is None:
        return "nobody looked whether its weights are finite"
    span = next((s for s in case.attempts if s.ordinal == event.attempt), None)
    if span is not None and span.superseded_after is not None and step > span.superseded_after:
        return "a later attempt went back to before it"
    if step > limit:
        return f"fewer than {CLEAN_STEPS} clean steps behind it"
    return None


def _why(harm: Incident | None, step: int, latest: int, again: bool) -> str:
    checked = "verified since" if again else "recorded"
    whole = f"checksum {checked}, weights finite when it was saved"
    if harm is None or harm.step is None:
        return f"{whole}, {latest - step} steps behind it"
    return f"{whole}, {harm.step - step} steps before the first sign"
