"""The communication hook itself: it stands between a reducer and its reduction, and listens.

With a hook DDP leaves the division to it. The default reduction is therefore rebuilt here to
the bit: DDP multiplies by 1/W while it copies into the bucket, which for W = 3 is not the same
as dividing by W, and divides where gradients already live in the bucket.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from gradwarden.instruments.communication.passages import Passage

P = ParamSpec("P")
R = TypeVar("R")

try:
    from torch._compile import _disable_dynamo
except ImportError:  # private name; without it a compiled step may trace into the relay
    _disable_dynamo = None  # type: ignore[assignment]


def _eager(fn: Any) -> Any:
    return fn if _disable_dynamo is None else _disable_dynamo(fn)


class Ear(Protocol):
    """Who listens to a reducer's buckets."""

    def bucket_ready(self, relay: Relay, bucket: Any) -> None:
        """The bucket holds this rank's own gradients, as nobody has touched them."""

    def bucket_leaves(self, relay: Relay, bucket: Any) -> Passage:
        """It is handed over now."""

    def failed(self, error: Exception) -> None:
        """Listening failed; the reduction did not."""


class Relay:
    """One reducer's hook: passes each bucket to the user's own hook, else to the default.

    It must not hold the reducer or its DDP, which hold it.
    """

    def __init__(self, ddp: DistributedDataParallel) -> None:
        self._ddp = weakref.ref(ddp)
        self.theirs: tuple[Any, Callable[[Any, Any], Any]] | None = None
        """State and hook that the user registered."""
        self.ears: tuple[Ear, ...] = ()
        self.joined: Any = None
        """The work whose result is how many ranks have not yet joined, under ``Join``."""

    @_eager
    def __call__(self, state: object, bucket: Any) -> Any:
        self.safely(self._ready, bucket)
        theirs = self.theirs
        if theirs is None:
            buffer = bucket.buffer()
            group = self._scale(buffer)
            passages = self.safely(self._leaves, bucket)
            work = dist.all_reduce(buffer, group=group, async_op=True)
            return work.get_future().then(partial(self._first, passages))
        passages = self.safely(self._leaves, bucket)
        future = theirs[1](theirs[0], bucket)
        if passages:  # what ``then`` returns is of a private class, so that its type tells nothing
            self.safely(future.add_done_callback, partial(_end, passages))
        return future

    def safely(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """Listen, so that it never costs a reduction: nobody listens after a failure."""
        try:
            return work(*args, **kwargs)
        except Exception as error:
            ears, self.ears = self.ears, ()
            for ear in ears:
                ear.failed(error)
            return None

    def _scale(self, buffer: Tensor) -> Any:
        """Divide as the reducer would have; the group that sums."""
        ddp = self._ddp()
        assert ddp is not None, "a reducer outlived its DistributedDataParallel"
        group = ddp.process_group
        count = dist.get_world_size(group)
        if self.joined is not None:
            self.joined.wait()
            count = int(self.joined.get_future().value()[0].item())
        if buffer.is_sparse or divides(ddp):
            buffer.div_(count)
        else:
            buffer.mul_(1.0 / count)
        return group

    def _first(self, passages: Sequence[Passage] | None, future: Future[Any]) -> Tensor:
        if passages:
            self.safely(_end, passages, future)
        tensor: Tensor = future.value()[0]
        return tensor

    def _ready(self, bucket: Any) -> None:
        for ear in self.ears:
            ear.bucket_ready(self, bucket)

    def _leaves(self, bucket: Any) -> list[Passage]:
        return [ear.bucket_leaves(self, bucket) for ear in self.ears]


def divides(ddp: DistributedDataParallel) -> bool:
    """Whether this DDP divides whole buckets, instead of multiplying while it copies."""
    return bool(getattr(ddp, "batched_grad_copy", False))


def _end(passages: Sequence[Passage], future: object) -> None:
    for passage in passages:  # on a thread of the backend: it only notes the moment
        passage.end()
