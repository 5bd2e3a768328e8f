"""The timeline of an alert: what it did, who was told, what people said, what held it back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, cast

from gradwarden_server.alerting.muting import MUTED, UNMUTED
from gradwarden_server.api.alert_schemas import TimelineFace
from gradwarden_server.api.plain import rfc3339
from gradwarden_server.model import TOLD_LATE
from gradwarden_server.store.alerts.ledger import ACKNOWLEDGED, NOTED, AlertStory, Transition
from gradwarden_server.store.alerts.told import Delivery

Kind = Literal["pending", "firing", "resolved"]
_SAID = {ACKNOWLEDGED: "acknowledged", NOTED: "note"}
_UNMUTED = (UNMUTED, TOLD_LATE)


def timeline(story: AlertStory, explained: Callable[[str], str]) -> list[TimelineFace]:
    """All lines, oldest first.

    Args:
        story: The alert.
        explained: Says who made a silence or a maintenance window, and why.
    """
    lines = [*_transitions(story.timeline, explained), *_messages(story.deliveries)]
    return [face for _, face in sorted(lines, key=lambda line: line[0])]


def _transitions(
    transitions: Iterable[Transition], explained: Callable[[str], str]
) -> Iterator[tuple[int, TimelineFace]]:
    held = ""
    for line in transitions:
        words = dict(line.annotations)
        said = _SAID.get(line.reason)
        if said is not None:
            who, text = words.pop("by", None), words.pop("text", None)
            yield line.at_ns, _face(line, said, words, who, text)
            continue
        mutes = words.pop("muted", "")
        if line.from_state != line.to_state:
            text = f"nobody is told: {explained(mutes)}" if mutes else None
            yield line.at_ns, _face(line, cast(Kind, line.to_state), words, None, text)
        elif line.reason == MUTED:
            if mutes != held:  # else only its end came to be known
                yield line.at_ns, _face(line, "muted", words, None, explained(mutes))
        elif line.reason in _UNMUTED:
            yield line.at_ns, _face(line, "unmuted", words, None, f"over: {explained(held)}")
        else:
            yield line.at_ns, _face(line, "enriched", words, None, None)
        held = mutes


def _messages(deliveries: Iterable[Delivery]) -> Iterator[tuple[int, TimelineFace]]:
    for one in deliveries:
        if one.at_ns is not None:
            yield (
                one.at_ns,
                TimelineFace(
                    at=rfc3339(one.at_ns),
                    kind="notified",
                    from_=None,
                    to=None,
                    reason=one.why,
                    who=one.receiver,
                    ok=one.ok,
                    text=one.detail,
                    annotations={},
                ),
            )


def _face(
    line: Transition, kind: str, words: Mapping[str, str], who: str | None, text: str | None
) -> TimelineFace:
    return TimelineFace.model_validate(
        {
            "at": rfc3339(line.at_ns),
            "kind": kind,
            "from_": line.from_state,
            "to": line.to_state,
            "reason": line.reason,
            "who": who,
            "ok": None,
            "text": text,
            "annotations": words,
        }
    )
