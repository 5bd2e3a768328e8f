"""Training in eval mode by mistake: dropout does nothing, batch norm learns no statistics."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from gradwarden.collect import Pending
from gradwarden.frames import FrameBook
from gradwarden.layout import clean

EVERY = 50
"""Steps from one look at the modules to the next."""
_MOST_NAMES = 8


class EvalMode:
    """Looks at the mode that steps are trained in and says when it begins and ends being eval.

    The event is ``{"kind": "eval_mode", "modules": [...]}``: the root's class name if the root
    is in eval mode, else the modules that are, if that is every Dropout and BatchNorm under
    trainable parameters. An empty list ends it.
    """

    name = "eval mode"

    def __init__(self, model: nn.Module, book: FrameBook) -> None:
        self._model, self._book = weakref.ref(model), book
        self._steps = 0
        self._said: list[str] = []

    def start(self) -> None:
        """Nothing to install: modes are looked at, not listened to."""

    def step_ended(self) -> Mapping[str, float | Pending]:
        """No scalars; an event when the mode changed, at the first step or within 50."""
        model = self._model()
        if model is not None and self._steps % EVERY == 0:
            modules = in_eval_mode(model)
            if modules != self._said:
                self._said = modules
                self._book.event({"kind": "eval_mode", "modules": modules}, urgent=False)
        self._steps += 1
        return {}

    def stop(self) -> None:
        """Nothing to undo."""

    def status(self) -> str:
        """Always ``on``."""
        return "on"


def in_eval_mode(model: nn.Module) -> list[str]:
    """What speaks for training in eval mode, at most 8 names; empty if nothing does.

    A frozen batch norm, and dropout beside parameters that are all frozen (a teacher's), are
    left out: they may be in eval mode on purpose.
    """
    if not model.training:
        return [type(model).__name__]
    found: list[tuple[str, nn.Module]] = []
    for path, owner in model.named_modules():
        for name, module in owner.named_children():
            if _switches(module) and _learns(module, owner):
                found.append((f"{path}.{name}" if path else name, module))
    if any(module.training for _, module in found):
        return []
    return [clean(name) for name, _ in found[:_MOST_NAMES]]


def _switches(module: nn.Module) -> bool:
    """Whether the mode changes what it computes."""
    if isinstance(module, _DropoutNd):
        return module.p > 0
    return isinstance(module, _BatchNorm) and module.track_running_stats


def _learns(module: nn.Module, owner: nn.Module) -> bool:
    """Whether it stands under trainable parameters: its own, else those it stands beside."""
    own = list(module.parameters())
    return any(p.requires_grad for p in own or owner.parameters())
