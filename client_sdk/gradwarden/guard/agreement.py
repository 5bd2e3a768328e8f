"""One word for all ranks: an asynchronous MAX all-reduce per step, heard two steps later.

It has a process group of its own, always gloo over host memory, so that no device waits and
no collective of the training is disturbed. A rank that dies or stays away loses the guard,
never the training.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from gradwarden.errors import ConfigurationError
from gradwarden.guard.decision import Word

LAG = 2
"""Steps between a word and its hearing: by then even a slow rank's backward has passed it."""
NEVER = timedelta(days=1)
"""Of the group itself: a rank may evaluate alone for hours, and what waits is told ``timeout``."""
PATIENCE = 60.0
"""Seconds that all ranks have to come to ``watch(guard=)``."""
MOST = 64
"""Checkpoints that one rank may offer for a rollback."""
_NOTHING = -(1 << 62)

_bound = 0
_afloat: list[tuple[Any, Any]] = []
"""Groups and their works that are not known to be done."""


class Lost(Exception):
    """Another rank is gone or too late; the ranks can no longer agree."""


@dataclass(slots=True)
class Said:
    """This rank's word on one step and the joint word in the making."""

    step: int
    own: Word
    joint: torch.Tensor
    work: Any


@dataclass(slots=True)
class Agreement:
    """The ranks' joint words. Alone, what this process says is heard at once."""

    rank: int = 0
    world: int = 1
    group: Any = None
    timeout: float = 300.0
    _said: deque[Said] = field(default_factory=deque)

    @property
    def alone(self) -> bool:
        return self.group is None

    def say(self, step: int, own: Word) -> None:
        """Start to join the words of one step; never waits."""
        joint = torch.tensor([own.encode()], dtype=torch.int32, device="cpu")
        work = None
        if self.group is not None:
            work = self._start(dist.all_reduce, joint, op=dist.ReduceOp.MAX)
        self._said.append(Said(step, own, joint, work))

    def hear(self) -> tuple[int, Word, Word] | None:
        """Step, own and joint word of two steps ago; None while nothing is that old."""
        if len(self._said) < (1 if self.alone else LAG):
            return None
        said = self._said.popleft()
        self._finish(said.work)
        return said.step, said.own, Word.decode(int(said.joint))

    def void(self) -> None:
        """After a joint action: what was said of the steps before it counts no more."""
        self._said.clear()

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank; waits for all of them."""
        return here if self.alone else bool(self._reduced(int(here), dist.ReduceOp.MAX))

    def all(self, here: bool) -> bool:
        """Whether it is so on every rank; waits for all of them."""
        return here if self.alone else bool(self._reduced(int(here), dist.ReduceOp.MIN))

    def common(self, numbers: Sequence[int]) -> list[int]:
        """What every rank has among its numbers, the largest first; waits for all of them."""
        mine = sorted(set(numbers), reverse=True)[:MOST]
        if self.alone:
            return mine
        padded = torch.tensor(
            mine + [_NOTHING] * (MOST - len(mine)), dtype=torch.int64, device="cpu"
        )
        theirs = [torch.empty_like(padded) for _ in range(self.world)]
        self._finish(self._start(dist.all_gather, theirs, padded))
        shared = set(mine).intersection(*(t.tolist() for t in theirs))
        return sorted(shared - {_NOTHING}, reverse=True)

    def _reduced(self, number: int, op: Any) -> int:
        value = torch.tensor([number], dtype=torch.int32, device="cpu")
        self._finish(self._start(dist.all_reduce, value, op=op))
        return int(value)

    def _start(self, collective: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            work = collective(*args, group=self.group, async_op=True, **kwargs)
        except Exception as error:  # a peer is known to be gone, or the user destroyed the groups
            raise Lost(_short(error)) from error
        _afloat[:] = [(g, w) for g, w in _afloat if not w.is_completed()] + [(self.group, work)]
        return work

    def _finish(self, work: Any) -> None:
        if work is None:
            return
        try:
            work.wait(timedelta(seconds=self.timeout))
        except Exception as error:
            raise Lost(_short(error)) from error


@atexit.register
def _leave() -> None:
    """Let the process end although another rank never came.

    The destructor of a gloo group waits for its works, so one that still has some must not be
    destroyed: it ends with the process.
    """
    for group, work in _afloat:
        if not work.is_completed():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


def agree(timeout: float, said: str) -> Agreement:
    """The agreement of all ranks of the default process group; a collective call.

    ``said`` tells what this rank was asked to do; all ranks must be asked the same. Who comes
    is counted in the group's store first, so that a missing rank is a refusal, not a hang.

    Raises:
        ConfigurationError: a rank is missing for ``PATIENCE`` seconds or was asked otherwise,
            or no process group can be made; on all ranks that came.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return Agreement()
    rank, world = dist.get_rank(), dist.get_world_size()
    if world == 1:
        return Agreement()
    if not dist.is_gloo_available():
        raise ConfigurationError("guard: several ranks need torch's gloo backend, not built here")
    _gather(rank, world, said)
    try:
        group = dist.new_group(backend="gloo", timeout=NEVER)
    except Exception as error:
        raise ConfigurationError(f"guard: no process group: {_short(error)}") from error
    return Agreement(rank, world, group, timeout)


def _gather(rank: int, world: int, said: str) -> None:
    global _bound
    try:
        from torch.distributed.distributed_c10d import _get_default_store
    except ImportError:  # private name: a missing rank then shows as a timeout of new_group
        return
    store = _get_default_store()
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    key = f"gradwarden/guard/{restart}/{_bound}"
    _bound += 1
    deadline = time.monotonic() + PATIENCE
    if rank == 0:
        store.set(key, said)
    if _until(lambda: store.check([key]), deadline):
        if bytes(store.get(key)).decode() != said:
            store.add(f"{key}/other", 1)
        store.add(f"{key}/here", 1)
        if _until(lambda: store.add(f"{key}/here", 0) >= world, deadline):
            if store.add(f"{key}/other", 0):
                raise ConfigurationError("guard: ranks were given different guards: give the same")
            return
    raise ConfigurationError(
        f"guard: not all {world} ranks came within {PATIENCE:.0f} s: "
        "call watch(guard=) on every rank, or on none"
    )


def _until(true: Callable[[], bool], deadline: float) -> bool:
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
