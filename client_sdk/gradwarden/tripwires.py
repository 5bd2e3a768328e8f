"""Facts that need no service: poisoned weights, skipped steps, no gradient, born exploding.

Pure functions of what the frames say, run off the training thread. The full detectors live
in the server package; these are the ones that must speak at once, on a laptop too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from gradwarden import wire

SKIPPED_RUN = 10
"""Skipped steps in a row that are worth a line."""
UNSEEN_STEPS, DECLARED_STEPS = 50, 1000
"""Steps of its own optimizer after which a parameter that never had a gradient is named; the
later one where the model declares unused parameters."""
BORN_RATIO, BORN_TIMES, BORN_STEPS = 100.0, 5, 20
"""norm(gradient) > 100 norm(weight) in 5 of the first 20 steps: exploding from birth."""

_COLUMN = {name: i for i, name in enumerate(wire.COLUMNS)}


@dataclass(slots=True)
class Finding:
    """One line for a person: what, at which step, where."""

    kind: str
    step: int
    text: str
    layers: tuple[str, ...] = ()


@dataclass(slots=True)
class _Sick:
    step: int
    bracket: str
    layers: tuple[str, ...]


@dataclass(slots=True)
class Tripwires:
    """Advances by frames and answers findings; everything it knows goes into the exit table."""

    findings: list[Finding] = field(default_factory=list)
    steps: int = 0
    skipped: int = 0
    _skipped_row: int = 0
    _steps_seen: int = 0
    _last_counted: int = -1
    _sick: _Sick | None = None
    _told: set[str] = field(default_factory=set)
    _zero_born: set[str] = field(default_factory=set)
    _explosive: dict[str, int] = field(default_factory=dict)

    def advance(self, frame: wire.Frame, layout: wire.Layout | None) -> list[Finding]:
        """Take one frame, whose matrix has all of :data:`gradwarden.wire.COLUMNS`."""
        new: list[Finding] = []
        if frame.values and layout is not None:
            self.steps += frame.step != self._last_counted
            self._last_counted = frame.step
            matrix = Matrix(frame.values)
            self._note_nonfinite(frame.step, matrix, layout)
            new += self._born_exploding(frame.step, matrix, layout)
        elif any(e["kind"] == "nonfinite" for e in frame.events):
            where = "the layer is unknown, since this step was not captured"
            self._sick = _Sick(frame.step, where, ())
        for event in frame.events:
            new += self._without_gradient(frame.step, event)
        if frame.stepped is not None:
            new += self._verdict(frame)
        self.findings += new
        return new

    def _note_nonfinite(self, step: int, matrix: Matrix, layout: wire.Layout) -> None:
        nans, infs = matrix.column("nan"), matrix.column("inf")
        bad = set()
        if any(nans) or any(infs):  # what was not observed is NaN, and looks like it here
            counts = enumerate(zip(nans, infs, strict=True))
            bad = {i for i, (nan, inf) in counts if nan > 0 or inf > 0}
        if bad:
            layers = tuple(layout.parameters[i].name for i in sorted(bad))
            self._sick = _Sick(step, bracket(bad, matrix, layout), layers)
        elif self._sick is not None and self._sick.step != step:
            self._sick = None

    def _verdict(self, frame: wire.Frame) -> list[Finding]:
        sick = self._sick if self._sick is not None and self._sick.step == frame.step else None
        if frame.stepped:
            self._skipped_row = 0
            if sick is None:
                self._told.discard("applied")
                return []
            return self._once(
                "applied",
                Finding(
                    "applied non-finite gradient",
                    frame.step,
                    f"step {frame.step}: the optimizer applied NaN or Inf; {sick.bracket}. "
                    "The weights are poisoned: stop and go back to a checkpoint before this step",
                    sick.layers,
                ),
            )
        if frame.open:
            return []
        self.skipped += 1
        self._skipped_row += 1
        if sick is not None and "skip" not in self._told:
            self._told.add("skip")
            text = f"step {frame.step} was skipped, its gradient is NaN or Inf; {sick.bracket}"
            return [Finding("skipped non-finite step", frame.step, text, sick.layers)]
        if self._skipped_row == SKIPPED_RUN:
            where = f"; {sick.bracket}" if sick is not None else ""
            text = f"{SKIPPED_RUN} steps in a row were skipped, up to step {frame.step}{where}"
            return [Finding("run of skipped steps", frame.step, text)]
        return []

    def _born_exploding(self, step: int, matrix: Matrix, layout: wire.Layout) -> list[Finding]:
        if self.steps > BORN_STEPS:
            return []
        norms = zip(matrix.column("l2"), matrix.column("weight_l2"), strict=True)
        for row, (gradient, weight) in enumerate(norms):
            # What begins at zero (a bias, a shift) has no size of its own to be compared with.
            name = layout.parameters[row].name
            if weight == 0:
                self._zero_born.add(name)
            matrix_like = len(layout.parameters[row].shape) >= 2 and name not in self._zero_born
            sized = matrix_like and weight > 0 and math.isfinite(gradient)
            if sized and gradient > BORN_RATIO * weight:
                self._explosive[name] = self._explosive.get(name, 0) + 1
        worst = [n for n, times in self._explosive.items() if times >= BORN_TIMES]
        if not worst:
            return []
        text = (
            f"gradients are more than {BORN_RATIO:.0f} times their weights in {BORN_TIMES} of the "
            f"first {BORN_STEPS} steps ({_few(worst)}): lower the initial scale or normalise"
        )
        return self._once("born", Finding("exploding from birth", step, text, tuple(worst)))

    def _without_gradient(self, step: int, event: wire.Event) -> list[Finding]:
        if event["kind"] != "no_gradient" or not event["parameters"]:
            return []
        steps, names = event["steps"], tuple(event["parameters"])
        if steps < DECLARED_STEPS and event["declared"]:
            return []
        text = (
            f"{event['count']} trainable parameters had no gradient in {steps} steps of their "
            f"{event['optimizer']} ({_few(names)}): detached or unused"
        )
        return self._once("unseen", Finding("no gradient", step, text, names))

    def _once(self, key: str, finding: Finding) -> list[Finding]:
        if key in self._told:
            return []
        self._told.add(key)
        return [finding]


class Matrix:
    """Columns of a frame's [L, columns] matrix by name."""

    def __init__(self, values: bytes) -> None:
        self._cells = memoryview(values).cast("f")

    def column(self, name: str) -> list[float]:
        """One value per row, NaN where it was not measured."""
        found: list[float] = self._cells[_COLUMN[name] :: len(_COLUMN)].tolist()  # type: ignore[assignment]
        return found


def bracket(bad: set[int], matrix: Matrix, layout: wire.Layout) -> str:
    """The last clean layer on the loss side and the first bad one; the fault lies between.

    Gradients flow from the loss down, so what comes after the first bad row is aftermath.
    """
    names = [p.name for p in layout.parameters]
    seen = matrix.column("nan")
    order = [i for i in layout.backward if not math.isnan(seen[i])]
    if not order:
        return f"in {_few([names[i] for i in sorted(bad)])}"
    layers: list[str] = []
    sick: set[str] = set()
    for i in order:
        layer = layout.parameters[i].layer
        if layer not in layers:
            layers.append(layer)
        if i in bad:
            sick.add(layer)
    first = next(n for n, layer in enumerate(layers) if layer in sick)
    if first == 0:
        where = "every layer" if len(sick) == len(layers) else f"from {layers[0]} on"
        return f"{where}: look at the loss and the input"
    return f"between {layers[first - 1]} (clean) and {layers[first]} (first bad)"


def table(tripwires: Tripwires, lost: int) -> list[str]:
    """The short table printed at exit; empty when there is nothing to tell."""
    if not tripwires.findings and not tripwires.skipped and not lost:
        return []
    lines = [f"{'finding':<30} {'step':>8}  where"] if tripwires.findings else []
    for finding in tripwires.findings[:20]:
        lines.append(f"{finding.kind:<30} {finding.step:>8}  {_few(finding.layers) or '-'}")
    told = f"skipped {tripwires.skipped}, frames dropped {lost}"
    lines.append(f"steps captured {tripwires.steps}, {told}")
    return lines


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more
