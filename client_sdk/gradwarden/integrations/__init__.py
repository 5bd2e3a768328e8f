"""Thin bridges to trainers and trackers. Each module needs its own library; nothing imports them.

Capture stays where it always is, at the entry of clipping or at the optimizer's step. A bridge
only says what hooks cannot know: step numbers, losses, pauses, checkpoints, and how a run ends.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec

from torch import Tensor, nn
from torch.optim import Optimizer

from gradwarden.attach import Monitor
from gradwarden.errors import Faults
from gradwarden.owner import inner
from gradwarden.settings import Settings

P = ParamSpec("P")
_faults = Faults()


def guarded(hook: Callable[P, None]) -> Callable[P, None]:
    """A hook that somebody's trainer calls: what it raises is said once and stays with us."""

    @functools.wraps(hook)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> None:
        _faults.quiet(hook.__qualname__, hook, *args, **kwargs)

    return quiet


def check(options: Mapping[str, Any]) -> None:
    """Refuse options that ``watch`` would refuse, where a person can still see it.

    Raises:
        ConfigurationError: an option is unusable.
    """
    Settings.resolve(**{k: v for k, v in options.items() if k != "guard"})


def filled(options: Mapping[str, Any], **inferred: Any) -> dict[str, Any]:
    """Options of ``watch``, and what a trainer knows for those that nobody gave."""
    told = {k: v for k, v in options.items() if v is not None}
    absent = {k: v for k, v in inferred.items() if f"GRADWARDEN_{k.upper()}" not in os.environ}
    return {**absent, **told}


def numbers(found: object) -> dict[str, float | Tensor]:
    """The entries of a mapping that are one number each; tensors are not read."""
    if not isinstance(found, Mapping):
        return {}
    return {
        str(name): value
        for name, value in found.items()
        if (isinstance(value, (int, float)) and not isinstance(value, bool))
        or (isinstance(value, Tensor) and value.numel() == 1)
    }


def owning(model: nn.Module, optimizers: Iterable[object]) -> list[Optimizer] | None:
    """Those optimizers that hold parameters of the model; None if there are none.

    Some trainers hand out stand-ins until the real optimizer exists. Then none is named and the
    hooks find it at its first step.
    """
    ours = {id(p) for p in model.parameters()}
    held = [o for o in map(inner, optimizers) if isinstance(o, Optimizer)]
    return [o for o in held if any(id(p) in ours for g in o.param_groups for p in g["params"])] or (
        None
    )


def saved(monitor: Monitor, path: str | os.PathLike[str], step: int) -> None:
    """Tell of a checkpoint that the trainer wrote; a thread flushes it and takes its checksum."""
    session = monitor._session
    session.quietly("checkpoint", session.checkpoints.saved, path, step)
