"""A run that fell ill, as a diagnosis sees it, for the tables of its tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradwarden_server.diagnosis.case import Case, Happening, Place, Points, Span, Watched
from gradwarden_server.diagnosis.diagnose import diagnose
from gradwarden_server.diagnosis.words import Diagnosis
from gradwarden_server.model import Alert, AlertState

SECOND = 1_000_000_000
PARAMETERS = ("blocks.0.fc.weight", "blocks.0.fc.bias", "blocks.1.fc.weight", "head.weight")


class Stored:
    """Series as dictionaries of step to value, layers by (parameter, quantity)."""

    def __init__(
        self,
        scalars: Mapping[str, Mapping[int, float]] | None = None,
        layers: Mapping[tuple[str, str], Mapping[int, float]] | None = None,
    ) -> None:
        self._scalars, self._layers = scalars or {}, layers or {}

    def scalar(self, name: str, first: int, last: int) -> Points:
        return _within(self._scalars.get(name, {}), first, last)

    def layer(self, parameter: str, quantity: str, first: int, last: int) -> Points:
        return _within(self._layers.get((parameter, quantity), {}), first, last)


def _within(values: Mapping[int, float], first: int, last: int) -> Points:
    return [(step, values[step]) for step in sorted(values) if first <= step <= last]


def flat(value: float, last: int, first: int = 0) -> dict[int, float]:
    """The same value at every step."""
    return dict.fromkeys(range(first, last + 1), value)


def stepped(before: float, after: float, at: int, last: int) -> dict[int, float]:
    """One value before a step and another from it on."""
    return flat(before, at - 1) | flat(after, last, at)


def alert(
    name: str,
    step: int | None = None,
    severity: str = "page",
    *,
    until: int | None = None,
    attempt: int = 1,
    seen: int | None = None,
    **annotations: str,
) -> Alert:
    """An alert whose onset is ``step``, confirmed at step ``seen``, a second a step."""
    at = seen if seen is not None else step or 0
    state: AlertState = "firing" if until is None else "resolved"
    own = {"attempt": str(attempt), **annotations}
    if step is not None:
        own["step"] = str(step)
    return Alert(
        id=at + 1,
        project="p",
        run="r",
        labels={"alertname": name, "severity": severity, "run": "r"},
        annotations=own,
        state=state,
        active_ns=at * SECOND,
        fired_ns=at * SECOND,
        resolved_ns=None if until is None else until * SECOND,
    )


def saved(step: int, path: str = "", attempt: int = 1, **changed: Any) -> Happening:
    """A checkpoint that is whole and finite, unless told otherwise."""
    data = {
        "path": path or f"ckpt/{step}.pt",
        "ok": True,
        "saved_step": step,
        "sha256": "ab" * 32,
        "bytes": 1000,
        "finite": True,
        **changed,
    }
    return Happening(attempt, 0, step, step * SECOND, "checkpoint", data)


def mark(step: int, name: str, value: object = None) -> Happening:
    return Happening(1, 0, step, step * SECOND, "mark", {"name": name, "value": value})


def armed(*names: str, **others: str) -> tuple[Watched, ...]:
    """Coverage: these are armed; others are blind for a reason."""
    seeing = tuple(Watched(name, "armed") for name in names)
    return seeing + tuple(Watched(name, "blind", why) for name, why in others.items())


def case(
    *alerts: Alert,
    events: Sequence[Happening] = (),
    coverage: Sequence[Watched] = (),
    last: int = 2000,
    status: str = "running",
    world: int = 1,
    attempts: Sequence[Span] = (Span(1, 0),),
    places: Sequence[Place] = (Place(0, "host0"),),
) -> Case:
    return Case(
        run="r",
        name="r",
        status=status,
        path="/runs/r",
        last_step=last,
        newest=max(span.ordinal for span in attempts),
        world_size=world,
        alerts=alerts,
        events=events,
        coverage=coverage,
        attempts=attempts,
        places=places,
        parameters=PARAMETERS,
    )


def told(of: Case, series: Stored | None = None, at: int | None = None) -> Diagnosis:
    return diagnose(of, series, at)


def chains(of: Diagnosis) -> list[list[str]]:
    """The names of each story's findings, the origin first."""
    return [[of.finding(id_).name for id_ in story.findings] for story in of.stories]
