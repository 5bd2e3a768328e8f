"""The instrument ``communication``: the best provider for each backend, or the reason for none."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor, nn

from gradwarden.collect import Collector, Pending
from gradwarden.errors import Faults
from gradwarden.frames import FrameBook
from gradwarden.instruments.clock import Clock
from gradwarden.instruments.communication.local import LocalFlags
from gradwarden.instruments.communication.passages import Passage, exchanges, reductions
from gradwarden.layout import clean

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel

    from gradwarden.instruments.communication.logged import Logged
    from gradwarden.instruments.communication.nccl import Completions
    from gradwarden.instruments.communication.relay import Relay
    from gradwarden.instruments.communication.sharded import Sharded

NOT_PROVEN = "off: not proven on NCCL yet; comm='hook' or 'nccl' turns it on"
_MOST_PASSAGES = 16384
"""Of one step; a loop that never steps does not fill the memory."""
_SEARCHES = 3
"""Steps after which a model that is not sharded yet is not asked again."""
_RING = 512


class Communication:
    """Times a model's collectives and flags its own bad gradients before they are summed.

    Scalars of a step: ``allreduce_seconds`` is the first bucket's, waiting for other ranks
    included, ``allreduce_exposed_seconds`` reaches from the last hand-over to the last return,
    ``allreduce_total_seconds`` from the first to the last; ``allreduce_bytes`` and
    ``allreduce_buckets`` are counts. ``local_nonfinite_buckets`` is how many buckets held a NaN
    or an Inf of this rank's own. FSDP2 has ``reduce_scatter_seconds``, ``all_gather_seconds``
    and their ``_bytes``: this rank's time in all calls of the step. A step without a reduction
    has none of them, nor has what nobody measured.

    Args:
        model: The watched model, in or around its wrapper.
        comm: ``auto``, ``off``, ``hook``, ``ddp`` or ``nccl``. ``auto`` takes the hook on gloo.
        book: Where events go.
        faults: Who is told of failures.
    """

    name = "communication"

    def __init__(self, model: nn.Module, comm: str, book: FrameBook, faults: Faults) -> None:
        self._model, self._comm, self._book, self._faults = model, comm, book, faults
        self._flags = LocalFlags(Collector(_RING))
        self._passages: dict[int, deque[Passage]] = {}
        self._exchanges: dict[str, deque[Passage]] = {}
        self._logged: weakref.WeakKeyDictionary[DistributedDataParallel, Logged] = (
            weakref.WeakKeyDictionary()
        )
        self._completions: Completions | None = None
        self._sharded: Sharded | None = None
        self._searches = 0
        self._said = "off: comm='off'" if comm == "off" else ""
        self._clocks: dict[Any, Clock] = {}

    # -- the instrument's face --------------------------------------------------------------

    def start(self) -> None:
        """Find the model's DDPs, now and when they are made.

        Raises:
            AttributeError: this torch lacks a private name that a hook needs.
        """
        if self._comm == "off" or not dist.is_available():
            return
        from gradwarden.instruments.communication import adoption

        adoption.add(self, self._model)

    def step_ended(self) -> Mapping[str, float | Pending]:
        """What the step cost; numbers that are still on a device come as they arrive."""
        if self._comm == "off" or not (dist.is_available() and dist.is_initialized()):
            return {}
        self._look_around()
        taken = [_drain(held) for held in list(self._passages.values())]
        numbers = reductions([passages for passages in taken if passages])
        for logged in list(self._logged.values()):
            for name, value in logged.step_ended().items():
                numbers.setdefault(name, value)
        numbers |= exchanges({kind: _drain(held) for kind, held in self._exchanges.items()})
        if self._completions is not None:
            numbers |= self._completions.step_ended()
        count, events = self._flags.step_ended(self._book.step_now)
        if count is not None:
            numbers["local_nonfinite_buckets"] = count
        for event in events:
            self._book.event(event)
        return numbers

    def stop(self) -> None:
        """Listen no more; what stays in a reducer passes every bucket on."""
        if self._comm == "off" or not dist.is_available():
            return
        from gradwarden.instruments.communication import adoption

        adoption.remove(self)
        for logged in list(self._logged.values()):
            logged.stop()
        if self._completions is not None:
            self._completions.stop()
        if self._sharded is not None:
            self._sharded.stop()

    def status(self) -> str:
        """``on``, how, and what is not; or why there is nothing."""
        if self._said:
            return self._said
        if not (dist.is_available() and dist.is_initialized()):
            return "off: no process group"
        return "off: no DistributedDataParallel and no fully_shard seen yet"

    def pending(self) -> str:
        """The oldest reduction or exchange that did not end yet, in words; asked by any thread."""
        held = {"all-reduce": [p for each in list(self._passages.values()) for p in list(each)]}
        held |= {kind: list(each) for kind, each in list(self._exchanges.items())}
        open_ = [(p.begun.at, kind, p) for kind, each in held.items() for p in each if not p.ended]
        if not open_:
            return ""
        _, kind, oldest = min(open_, key=lambda found: found[0])
        return f"{kind} {oldest.index} of {oldest.size} bytes"

    # -- what the adoption asks -------------------------------------------------------------

    def owns(self, ddp: DistributedDataParallel) -> bool:
        mine = {id(p) for p in self._model.parameters()}
        return any(id(p) in mine for p in ddp.module.parameters())

    def wants(self, ddp: DistributedDataParallel) -> bool:
        backend = dist.get_backend(ddp.process_group)
        if self._comm == "ddp":
            self._read_log(ddp, "asked for")
        elif self._comm == "nccl":
            self._said = self._complete(backend)
        elif self._comm == "auto" and backend != "gloo":
            self._said = NOT_PROVEN if backend == "nccl" else f"off: not proven on {backend}"
        else:
            return True
        return False

    def adopted(self, ddp: DistributedDataParallel, refusal: str | None) -> None:
        if refusal is not None:
            self._read_log(ddp, refusal)
            return
        logged = self._logged.pop(ddp, None)
        if logged is not None:
            logged.stop()
        self._said = "on"

    def failed(self, error: Exception) -> None:
        self._faults.record(self.name, error)
        self._said = f"off: {type(error).__name__}"
        self._faults.quiet("communication's end", self.stop)  # the last that is asked of it

    # -- what a reducer tells ---------------------------------------------------------------

    def bucket_ready(self, relay: Relay, bucket: Any) -> None:
        self._flags.look(bucket.index(), bucket.buffer(), lambda: self._bad_names(bucket))

    def bucket_leaves(self, relay: Relay, bucket: Any) -> Passage:
        buffer = bucket.buffer()
        passage = Passage(bucket.index(), _size(buffer), self._clock(buffer))
        self._held(self._passages, id(relay)).append(passage)
        return passage

    def _bad_names(self, bucket: Any) -> list[str]:
        """Bad parameters of a bucket on a host; on a device all of it, since reading waits."""
        named = {id(p): clean(n) for n, p in self._model.named_parameters()}
        parameters = bucket.parameters()
        if not bucket.buffer().is_cuda and not bucket.buffer().is_sparse:
            gradients = zip(parameters, bucket.gradients(), strict=True)
            parameters = [p for p, g in gradients if not bool(g.isfinite().all())]
        return [named[id(p)] for p in parameters if id(p) in named]

    # -- what fully_shard's groups tell -----------------------------------------------------

    def _look_around(self) -> None:
        if self._sharded is not None or self._searches >= _SEARCHES:
            return
        from gradwarden.instruments.communication import sharded

        self._searches += 1
        if not sharded.sharded(self._model):
            return
        self._searches = _SEARCHES
        if self._comm == "nccl":
            self._said = self._complete(dist.get_backend())
            return
        refused: list[str] = []

        def wants(backend: str) -> bool:
            if self._comm == "hook" or backend.endswith("gloo"):
                return True
            refused.append(backend)
            return False

        self._sharded = sharded.Sharded(self._exchange, self.failed)
        try:
            self._sharded.find(self._model, wants)
        except AttributeError as error:
            self._said = f"unknown: this torch keeps fully_shard's groups elsewhere ({error})"
            return
        self._said = NOT_PROVEN if refused else "on"

    def _exchange(self, kind: str, given: Tensor, names: Callable[[], list[str]]) -> Passage:
        held = self._held(self._exchanges, kind)
        if kind == "reduce_scatter":
            self._flags.look(len(held), given, names)
        passage = Passage(len(held), _size(given), self._clock(given))
        held.append(passage)
        return passage

    # -- the other providers ----------------------------------------------------------------

    def _read_log(self, ddp: DistributedDataParallel, reason: str) -> None:
        if ddp in self._logged:
            return
        backend = dist.get_backend(ddp.process_group)
        if ddp.device_type != "cpu" or backend != "gloo":
            self._said = f"off: {reason}; DDP's own log is read on gloo only"
            return
        from gradwarden.instruments.communication.logged import Logged

        try:
            self._logged[ddp] = Logged(ddp)
        except AttributeError as error:
            self._said = f"off: {reason}; this torch hides DDP's log ({error})"
            return
        self._said = f"on: by DDP's own log, without local flags ({reason})"

    def _complete(self, backend: str) -> str:
        if backend != "nccl":
            return f"off: comm='nccl' on {backend}"
        from gradwarden.instruments.communication.nccl import Completions

        try:
            self._completions = self._completions or Completions()
        except (AttributeError, RuntimeError) as error:
            return f"off: NCCL does not tell ({str(error)[:120]})"
        return "on: by NCCL's completions, which come late; without local flags"

    def _clock(self, tensor: Tensor) -> Clock:
        clock = self._clocks.get(tensor.device)
        if clock is None:
            clock = self._clocks[tensor.device] = Clock(tensor.device)
        return clock

    @staticmethod
    def _held(by_key: dict[Any, deque[Passage]], key: Any) -> deque[Passage]:
        held = by_key.get(key)
        if held is None:
            held = by_key[key] = deque(maxlen=_MOST_PASSAGES)
        return held


def _drain(held: deque[Passage]) -> list[Passage]:
    taken = []
    while held:
        taken.append(held.popleft())
    return taken


def _size(tensor: Tensor) -> int:
    """Bytes that travel."""
    values = tensor._values() if tensor.is_sparse else tensor
    return values.numel() * values.element_size()
