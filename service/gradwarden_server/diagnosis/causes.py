"""Which finding explains which: known ways from one sickness to the next, and who came first.

A link says that one *can* bring the other about; that it did follows from the order of their
onsets. Slow sicknesses of time are confirmed minutes after they began, each by its own clock,
so there standing at the same time is enough and the table alone says which is the origin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gradwarden_server.diagnosis.changes import ATTEMPT, BATCHES, LR, MARK
from gradwarden_server.diagnosis.incidents import Incident
from gradwarden_server.diagnosis.words import Confidence

Test = Callable[[Incident, Incident], bool]

SOON = 200
"""Steps within which an effect follows at once."""
HEALED = 50
"""Steps within which what is over by then still explains what follows."""
LATER = 1000
"""Steps within which what goes on still explains what it led to."""


@dataclass(frozen=True, slots=True)
class Link:
    """One way from a cause to an effect.

    ``when`` is ``before`` where the cause's onset comes first by at most ``within`` steps, and
    ``beside`` where both stand at the same time. ``sure`` is how well the one explains the
    other when both are there.
    """

    cause: str
    effect: str
    within: int = SOON
    when: Literal["before", "beside"] = "before"
    sure: Confidence = "high"
    test: Test | None = None

    def holds(self, cause: Incident, effect: Incident) -> bool:
        """Whether the one explains the other here."""
        if self.test is not None and not self.test(cause, effect):
            return False
        if self.when == "beside":
            return cause.attempt <= effect.attempt and cause.stands_at(effect)
        if cause.attempt != effect.attempt:
            return False
        if cause.step is None or effect.step is None:
            return cause.active_ns <= effect.active_ns and cause.stands_at(effect)
        apart = effect.step - cause.step
        if cause.kind == "alert" and not cause.stands_at(effect):
            return 0 <= apart <= min(HEALED, self.within)
        lasting = cause.kind == "alert" and cause.severity != "note"
        return apart >= 0 and (apart <= self.within or lasting)


def out_of_memory(effect: Incident) -> bool:
    """Whether a failure was for want of memory."""
    text = (effect.said("cause") + effect.said("summary")).lower()
    return any(sign in text for sign in ("out of memory", "outofmemory", "memoryerror"))


def applied(one: Incident) -> bool:
    """Whether a non-finite gradient reached the weights."""
    return "applied" in one.said("summary")


def _from_the_loss(one: Incident) -> bool:
    """Whether all gradients are bad at once, as behind a bad loss."""
    return "the loss or the input" in one.said("bracket") or "loss itself" in one.said("cause")


def _for_want_of_memory(_: Incident, effect: Incident) -> bool:
    return out_of_memory(effect)


def _not_for_memory(cause: Incident, effect: Incident) -> bool:
    return not out_of_memory(effect) and cause.severity in ("page", "ticket")


def _told_by_loss(cause: Incident, effect: Incident) -> bool:
    same = cause.step is not None and cause.step == effect.step
    return same and _from_the_loss(effect)


def _then_loss(cause: Incident, effect: Incident) -> bool:
    same = cause.step is not None and cause.step == effect.step
    return not (same and _from_the_loss(cause))


def _skips(_: Incident, effect: Incident) -> bool:
    return not applied(effect)


def _waits_for_data(_: Incident, effect: Incident) -> bool:
    return "data" in effect.said("phase")


def _links() -> Iterator[Link]:
    unstable = ("ExplodingGradient", "LossSpike", "LossDivergence", "NonFiniteGradient")
    shaken = (*unstable, "NonFiniteLoss", "UpdateRatioOutOfBand", "ClipSaturation")
    for effect in (*shaken, "LossScaleCollapse", "DeadLayer", "GradientShift"):
        yield Link(LR, effect)
    for effect in ("LossSpike", "LossDivergence", "ExplodingGradient", "GradientShift"):
        yield Link(MARK, effect, 100, sure="medium")
        yield Link(ATTEMPT, effect, 100, sure="medium")
    yield Link(MARK, "ThroughputDrop", 100, sure="medium")
    yield Link(MARK, "InputBound", 100, sure="medium")
    yield Link(ATTEMPT, "ReplicaMismatch", 100, sure="medium")
    for effect in ("GradientShift", "LossSpike", "GpuMemoryPressure"):
        yield Link(BATCHES, effect, sure="medium")
    yield Link(BATCHES, "RunFailed", test=_for_want_of_memory)

    for effect in ("LossSpike", "LossDivergence", "ClipSaturation", "UpdateRatioOutOfBand"):
        yield Link("ExplodingGradient", effect, LATER)
    for effect in ("NonFiniteGradient", "NonFiniteLoss", "LossScaleCollapse", "GradientShift"):
        yield Link("ExplodingGradient", effect, LATER)
    yield Link("ExplodingGradient", "DeadLayer", LATER, sure="medium")
    for effect in ("ExplodingGradient", "NonFiniteGradient", "NonFiniteLoss", "DeadLayer"):
        yield Link("UpdateRatioOutOfBand", effect, LATER, sure="medium")
    for effect in ("NonFiniteGradient", "NonFiniteLoss"):
        yield Link("LossDivergence", effect, LATER, sure="medium")
        yield Link("GradientUnderflow", effect, sure="low")
    for effect in ("LossSpike", "LossDivergence"):
        yield Link("GradientShift", effect, sure="low")
        yield Link("ReplicaMismatch", effect, LATER, sure="medium")
    yield Link("GradientsNotZeroed", "ExplodingGradient", LATER)
    for effect in ("LossDivergence", "ClipSaturation", "GradientShift", "StaleGradients"):
        yield Link("GradientsNotZeroed", effect, LATER, sure="medium")

    yield Link("NonFiniteLoss", "NonFiniteGradient", 0, test=_told_by_loss)
    yield Link("NonFiniteGradient", "NonFiniteLoss", test=_then_loss)
    yield Link("NonFiniteGradient", "LossDivergence")
    yield Link("NonFiniteLoss", "LossScaleCollapse")
    yield Link("LossDivergence", "LossSpike", LATER)
    yield Link("LossScaleCollapse", "NonFiniteGradient", when="beside", test=_skips)
    yield Link("GradientUnderflow", "LossScaleCollapse", when="beside", sure="medium")

    for cause in ("GradientUnderflow", "DeadLayer"):
        yield Link(cause, "VanishingGradient", LATER, "beside", "medium")
    for cause in ("NoGradient", "TrainingInEvalMode", "VanishingGradient", "DeadLayer"):
        yield Link(cause, "LossPlateau", when="beside", sure="medium")
    for cause in ("GradientUnderflow", "UpdateRatioOutOfBand", "ClipSaturation"):
        yield Link(cause, "LossPlateau", when="beside", sure="medium")
    yield Link("NeverSynchronized", "ReplicaMismatch", when="beside")
    yield Link("NeverSynchronized", "LossDivergence", LATER, sure="medium")

    yield Link("InputBound", "Straggler", when="beside", test=_waits_for_data)
    for cause in ("Straggler", "InputBound", "AllReduceSlow", "CheckpointSlow"):
        yield Link(cause, "ThroughputDrop", when="beside")
    yield Link("GpuMemoryPressure", "ThroughputDrop", when="beside", sure="medium")
    yield Link("OverheadBudgetExceeded", "ThroughputDrop", when="beside", sure="low")
    yield Link("Straggler", "AllReduceSlow", when="beside")
    yield Link("GpuMemoryPressure", "Straggler", when="beside", sure="medium")
    yield Link("RankSilent", "RunStalled", when="beside")
    yield Link("RankSilent", "AllReduceSlow", when="beside", sure="medium")
    yield Link("CheckpointSlow", "RunStalled", when="beside", sure="medium")
    yield Link("CheckpointSlow", "CheckpointStale", when="beside", sure="medium")

    yield Link("GpuMemoryPressure", "RunFailed", LATER, test=_for_want_of_memory)
    for cause in ("NonFiniteLoss", "NonFiniteGradient", "ExplodingGradient", "LossDivergence"):
        yield Link(cause, "RunFailed", LATER, test=_not_for_memory)
    for cause in ("RankSilent", "RunStalled"):
        yield Link(cause, "RunFailed", when="beside", test=_not_for_memory)
    for cause in ("ReplicaMismatch", "CheckpointCorrupt"):
        yield Link(cause, "RunFailed", sure="low", test=_not_for_memory)


LINKS: Mapping[tuple[str, str], Link] = {(link.cause, link.effect): link for link in _links()}
"""By cause and effect."""


def joined(found: Sequence[Incident]) -> dict[str, tuple[Incident, Link]]:
    """By id of an incident that another one explains: that one, and the link between them.

    Of several that could explain it the nearest before it does, for that one is explained by
    what came before in turn: the chain ends at the origin. Sicknesses go before changes of the
    same step, the surer link before the other.
    """
    explained: dict[str, tuple[Incident, Link]] = {}
    for effect in found:
        candidates = []
        for cause in found:
            link = LINKS.get((cause.name, effect.name))
            if link is None or cause.id == effect.id or not link.holds(cause, effect):
                continue
            near = -1 if cause.step is None or effect.step is None else cause.step
            sure = ("low", "medium", "high").index(link.sure)
            weight = (
                cause.severity in ("page", "ticket") or cause.kind == "change",
                near,
                cause.kind == "alert",
                sure,
            )
            candidates.append((weight, cause, link))
        for _, cause, link in sorted(candidates, key=lambda c: c[0], reverse=True):
            if not _leads_to(explained, cause.id, effect.id):
                explained[effect.id] = cause, link
                break
    return explained


def _leads_to(explained: Mapping[str, tuple[Incident, Link]], start: str, end: str) -> bool:
    """Whether ``end`` is among what explains ``start``."""
    at = start
    while at in explained:
        at = explained[at][0].id
        if at == end:
            return True
    return False


def stories(
    found: Sequence[Incident], explained: Mapping[str, tuple[Incident, Link]]
) -> list[list[Incident]]:
    """Incidents of one origin together, in the order of their onset, the origin first."""
    held: dict[str, list[Incident]] = {}
    for one in found:
        root = one
        while root.id in explained:
            root = explained[root.id][0]
        held.setdefault(root.id, []).append(one)
    return [sorted(story, key=lambda i: (i.id != root, i.order)) for root, story in held.items()]
