"""``Snapshot``: save and restore callables over everything that a training step changes."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gradwarden.checkpoint import flush
from gradwarden.errors import ConfigurationError
from gradwarden.identity import place
from gradwarden.owner import inner

VERSION = 1


class Snapshot:
    """Saves model, optimizer, scheduler, scaler and random state; restores them in place.

    ``Guard(on_nonfinite="rollback", save=snapshot.save, restore=snapshot.restore)``. Several
    models, optimizers or schedulers are given as lists. Every rank writes a file of its own
    under ``path``, so that it works on disks that ranks do not share and with shards.
    """

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module],
        optimizer: Optimizer | Sequence[Optimizer],
        scheduler: Any = None,
        scaler: Any = None,
        *,
        path: str | os.PathLike[str],
    ) -> None:
        """``scheduler`` and ``scaler`` are anything with state_dict and load_state_dict.

        Raises:
            ConfigurationError: a part has no state to save, or ``path`` cannot be a folder.
        """
        self._parts: dict[str, list[Any]] = {
            "model": _listed(model),
            "optimizer": [inner(o) for o in _listed(optimizer)],
            "scheduler": _listed(scheduler),
            "scaler": _listed(scaler),
        }
        for name, parts in self._parts.items():
            for part in parts:
                if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
                    raise ConfigurationError(
                        f"Snapshot({name}={type(part).__name__}): give what has state_dict and "
                        "load_state_dict"
                    )
        self._folder = Path(path)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"Snapshot(path={str(path)!r}): {error}") from error

    def save(self, step: int) -> Path:
        """Write the state after ``step`` (-1: before the first): complete under its name or not.

        Raises:
            OSError: the disk does not take it.
        """
        name = f"step-{step:09d}" if step >= 0 else "start"
        target = self._folder / f"{name}.rank{place().rank}.pt"
        draft = target.with_name(f".{target.name}.{os.getpid()}.partial")
        state = {n: [p.state_dict() for p in parts] for n, parts in self._parts.items()}
        try:
            torch.save({"version": VERSION, "step": step, "random": _random(), **state}, draft)
            flush(draft)
            os.replace(draft, target)
        finally:
            draft.unlink(missing_ok=True)
        return target

    def restore(self, path: str | os.PathLike[str]) -> int:
        """Put everything back as :meth:`save` found it; the step that was saved.

        Tensors go back to where the model and the optimizer live now. Only load files that
        you trust: like any pickle they can run code.
        """
        # On the host first: optimizers move their state to its parameters, random state stays.
        saved = torch.load(path, map_location="cpu", weights_only=False)
        if saved["version"] != VERSION:
            raise ValueError(f"{path}: a snapshot of version {saved['version']}, not {VERSION}")
        for name, parts in self._parts.items():
            for part, state in zip(parts, saved[name], strict=True):
                part.load_state_dict(state)
        _set_random(saved["random"])
        return int(saved["step"])


def _listed(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, (list, tuple)) else [given]


def _random() -> dict[str, Any]:
    numpy = sys.modules.get("numpy")  # its state matters only where the loop uses it
    return {
        "python": random.getstate(),
        "numpy": numpy.random.get_state() if numpy is not None else None,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random(state: dict[str, Any]) -> None:
    numpy = sys.modules.get("numpy")
    random.setstate(state["python"])
    if numpy is not None and state["numpy"] is not None:
        numpy.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
