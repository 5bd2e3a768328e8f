"""Which DDPs are ours, whenever they were made, and how a user's own hook finds its place.

torch lets one hook in per reducer. Ours sits there first; the call with which a user registers
his own is taken where ``DistributedDataParallel.register_comm_hook`` hands it to the reducer,
after all of its checks, and his hook then runs inside ours. A second one is refused by torch
itself, as always.
"""

from __future__ import annotations

import functools
import gc
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import distributed, nn
from torch.distributed.algorithms import join
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel as DDP

from gradwarden.instruments.communication.relay import Ear, Relay, divides

TAKEN = "a communication hook was registered before watch()"
IN_PLACE = "gradient_as_bucket_view divides in place, which a hook cannot repeat on {} ranks"


class Adopter(Ear, Protocol):
    """Whose model's DDPs are looked for."""

    def wants(self, ddp: DDP) -> bool:
        """Whether its reducer is to be listened to; the adopter remembers the DDP itself."""

    def adopted(self, ddp: DDP, refusal: str | None) -> None:
        """It is listened to, or why not."""

    def owns(self, ddp: DDP) -> bool:
        """Whether it reduces a parameter of the watched model."""


dist: Any = distributed  # with its private names
_lock = threading.RLock()
_adopters: tuple[Adopter, ...] = ()
_relays: weakref.WeakKeyDictionary[Any, Relay] = weakref.WeakKeyDictionary()
_ours: weakref.WeakSet[DDP] = weakref.WeakSet()
_undo: list[Callable[[], None]] = []
_plain: tuple[Any, Any] | None = None
"""torch's own two functions that give a reducer its hook, while ours stand in for them."""


def add(adopter: Adopter, model: nn.Module) -> None:
    """Adopt the DDPs of this adopter's model: those that live, and those that are made."""
    global _adopters
    with _lock:
        _install()
        _adopters = (*_adopters, adopter)
    for ddp in _living(model):
        _meet(ddp, (adopter,))


def remove(adopter: Adopter) -> None:
    """Stop listening. Reducers keep their relay, since torch cannot take a hook back.

    While one of them lives a user may still register a hook of his own, which is let in.
    """
    global _adopters
    with _lock:
        _adopters = tuple(a for a in _adopters if a is not adopter)
        for relay in _relays.values():
            relay.ears = tuple(ear for ear in relay.ears if ear is not adopter)
        if not _adopters:
            while _undo:
                _undo.pop()()
            if not _relays:
                _restore()


def _install() -> None:
    global _plain
    if _plain is None:
        _plain = dist._register_comm_hook, dist._register_builtin_comm_hook
        dist._register_comm_hook = _register
        dist._register_builtin_comm_hook = _register_builtin
    if not _undo:
        _replace(DDP, "__init__", _made)
        _replace(join.Join, "notify_join_context", _joins, staticmethod)


def _restore() -> None:
    global _plain
    if _plain is not None and dist._register_comm_hook is _register:
        dist._register_comm_hook, dist._register_builtin_comm_hook = _plain
        _plain = None


def _replace(owner: Any, name: str, wrap: Any, kind: Any = lambda function: function) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def patched(*args: Any, **kwargs: Any) -> Any:
        return wrap(original, *args, **kwargs)

    setattr(owner, name, kind(patched))

    def restore() -> None:
        if getattr(owner, name, None) is patched:  # else another library wrapped it meanwhile
            setattr(owner, name, kind(original))

    _undo.append(restore)


def _made(original: Any, ddp: DDP, *args: Any, **kwargs: Any) -> None:
    original(ddp, *args, **kwargs)
    try:
        _meet(ddp, _adopters)
    except Exception as error:  # the model goes on without us
        for adopter in _adopters:
            adopter.failed(error)


def _joins(original: Any, joinable: Any) -> Any:
    work = original(joinable)
    relay = _relays.get(getattr(joinable, "reducer", None)) if isinstance(joinable, DDP) else None
    if work is not None and relay is not None:
        # What the reducer was told last stands until it is told anew, as in the reducer.
        relay.joined = None if getattr(joinable, "_divide_by_initial_world_size", True) else work
    return work


def _living(model: nn.Module) -> list[DDP]:
    """The DDPs in or around a model. Around it there is no way but to look at every object."""
    inside = [m for m in model.modules() if isinstance(m, DDP)]
    if inside or not dist.is_initialized():
        return inside
    kinds = {DDP} | _subclasses(DDP)
    return [found for found in gc.get_objects() if type(found) in kinds]


def _subclasses(kind: type) -> set[type]:
    below: set[type] = set(kind.__subclasses__())
    return below.union(*map(_subclasses, below))


def _meet(ddp: DDP, adopters: Iterable[Adopter]) -> None:
    for adopter in adopters:
        if adopter.owns(ddp):
            _ours.add(ddp)
            if adopter.wants(ddp):
                adopter.adopted(ddp, _adopt(ddp, adopter))


def _adopt(ddp: DDP, ear: Ear) -> str | None:
    reducer = getattr(ddp, "reducer", None)
    if reducer is None or getattr(ddp, "_use_python_reducer", False):
        return "its gradients do not go through a reducer"
    with _lock:
        relay = _relays.get(reducer)
        if relay is None:
            refusal = _refusal(ddp)
            if refusal is not None:
                return refusal
            relay = Relay(ddp)
            try:
                _original()[0](reducer, None, relay)
            except RuntimeError:
                return TAKEN
            _relays[reducer] = relay
        relay.ears = (*relay.ears, ear)
    return None


def _refusal(ddp: DDP) -> str | None:
    """Why the default reduction of this DDP could not be repeated to the bit."""
    if any(p.is_complex() for p in ddp.module.parameters()):
        return "complex gradients"
    ranks = dist.get_world_size(ddp.process_group)
    if ddp.gradient_as_bucket_view and not divides(ddp) and ranks & (ranks - 1):
        return IN_PLACE.format(ranks)
    return None


def _original() -> tuple[Any, Any]:
    return _plain or (dist._register_comm_hook, dist._register_builtin_comm_hook)


def _register(reducer: Any, state: object, comm_hook: Any) -> None:
    relay = _relays.get(reducer)
    if relay is not None and relay.theirs is None:
        relay.theirs = state, comm_hook
        return
    ddp = next((d for d in _ours if getattr(d, "reducer", None) is reducer), None)
    ears = [a for a in _adopters if ddp is not None and a.owns(ddp) and a.wants(ddp)]
    if relay is not None or ddp is None or not ears:
        _original()[0](reducer, state, comm_hook)
        return
    relay = Relay(ddp)  # nothing of ours could sit there before: it would have scaled
    relay.theirs = state, comm_hook
    _original()[0](reducer, None, relay)
    with _lock:
        _relays[reducer] = relay
        relay.ears = tuple(ears)
    for ear in ears:
        ear.adopted(ddp, None)


def _register_builtin(reducer: Any, comm_hook_type: Any) -> None:
    relay = _relays.get(reducer)
    ddp = next((d for d in _ours if getattr(d, "reducer", None) is reducer), None)
    hook = _BUILTIN.get(comm_hook_type)
    if relay is None or relay.theirs is not None or ddp is None or hook is None:
        _original()[1](reducer, comm_hook_type)
        return
    relay.theirs = ddp.process_group, hook


_BUILTIN: dict[Any, Any] = {
    dist.BuiltinCommHookType.ALLREDUCE: default_hooks.allreduce_hook,
    dist.BuiltinCommHookType.FP16_COMPRESS: default_hooks.fp16_compress_hook,
}
"""What torch's two built-in hooks do, as hooks that can run inside ours."""
