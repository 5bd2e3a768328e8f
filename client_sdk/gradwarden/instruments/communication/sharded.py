"""FSDP2: the time of its reduce-scatters and all-gathers, by giving them a clock.

Each parameter group of ``fully_shard`` calls an object to communicate. That object becomes an
instance of a subclass of its own class whose call is timed, so that it is the same object with
the same state, and every check of its type still holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from gradwarden.instruments.communication.passages import Passage
from gradwarden.layout import clean

Heard = Callable[[str, Tensor, Callable[[], list[str]]], Passage]
"""Told the kind of collective, what this rank brings, and how its parameters are called."""


class Sharded:
    """The parameter groups of one model that were given a clock."""

    def __init__(self, heard: Heard, failed: Callable[[Exception], None]) -> None:
        self._heard, self._failed = heard, failed
        self._timed: dict[int, tuple[Any, type]] = {}
        self._deaf = False

    def find(self, model: nn.Module, wants: Callable[[str], bool]) -> int:
        """Give the groups that ``wants`` the backend of a clock; how many there are.

        Raises:
            AttributeError: this torch keeps its groups elsewhere.
        """
        groups = 0
        for name, module in model.named_modules():
            state = _state(module)
            for group in () if state is None else _groups(state):
                groups += 1
                if wants(dist.get_backend(group._reduce_scatter_process_group)):
                    names = functools.partial(_names, name, module, group)
                    self._time(group._reduce_scatter_comm, "reduce_scatter", names)
                    self._time(group._all_gather_comm, "all_gather", names)
        return groups

    def stop(self) -> None:
        """Everything is of its own class again."""
        for comm, original in self._timed.values():
            if type(comm).__bases__ == (original,):
                comm.__class__ = original
        self._timed.clear()

    def _time(self, comm: Any, kind: str, names: Callable[[], list[str]]) -> None:
        if id(comm) in self._timed:
            return
        original: Any = type(comm)

        def call(comm: Any, *args: Any, **kwargs: Any) -> Any:
            passage = self._hear(kind, args, kwargs, names)
            work = original.__call__(comm, *args, **kwargs)
            if passage is not None:
                _end(passage, work)
            return work

        comm.__class__ = type(original.__name__, (original,), {"__call__": call})
        self._timed[id(comm)] = (comm, original)

    def _hear(
        self, kind: str, args: Any, kwargs: Any, names: Callable[[], list[str]]
    ) -> Passage | None:
        if self._deaf:
            return None
        try:
            given = kwargs["input_tensor"] if "input_tensor" in kwargs else args[1]
            return self._heard(kind, given, names)
        except Exception as error:  # listening must never cost a collective
            self._deaf = True
            self._failed(error)
            return None


def _end(passage: Passage, work: Any) -> None:
    """A call that returns no work has blocked the host or its stream until it was done."""
    if isinstance(work, dist.Work) and not work.is_completed():
        work.get_future().add_done_callback(lambda _: passage.end())
    else:
        passage.end()


def _state(module: nn.Module) -> Any:
    get = getattr(module, "_get_fsdp_state", None)
    return get() if callable(get) else None


def _groups(state: Any) -> list[Any]:
    many = getattr(state, "_fsdp_param_groups", None)
    if many is not None:
        return list(many)
    one = state._fsdp_param_group
    return [] if one is None else [one]


def _names(prefix: str, module: nn.Module, group: Any) -> list[str]:
    """The parameters of a group; all of its module's where torch does not tell."""
    told = [getattr(p, "_param_fqn", None) for p in group.fsdp_params]
    if told and all(told):
        return [clean(str(name)) for name in told]
    dot = f"{prefix}." if prefix else ""
    return [clean(f"{dot}{name}") for name, _ in module.named_parameters()]


def sharded(model: nn.Module) -> bool:
    """Whether ``fully_shard`` was applied anywhere in a model."""
    return any(_state(module) is not None for module in model.modules())
