"""Where torch is listened to: the entry of clipping, the optimizer's step, the scaler, zero_grad.

Everything is patched once per process, passed on to all listeners, and undone with the last
of them. Patches sit *inside* ``torch.nn.utils.clip_grad``, on the globals that the public
functions look up when called, so that names imported before ``watch`` are heard too.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any, ParamSpec, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad
from torch.optim import Optimizer
from torch.optim import optimizer as optimizer_module

from gradwarden.errors import Faults
from gradwarden.guard.options import Halted

P = ParamSpec("P")

try:
    from torch._compile import _disable_dynamo
except ImportError:  # private name; without it a compiled step may trace into the hooks
    _disable_dynamo = None  # type: ignore[assignment]


def _eager(fn: Callable[P, None]) -> Callable[P, None]:
    """Keep the compiler out of a hook: one graph break instead of a trace through it."""
    return fn if _disable_dynamo is None else _disable_dynamo(fn)


class Listener(Protocol):
    """What a monitor hears."""

    faults: Faults

    def clip_enters(self, gradients: list[Tensor], exact: bool) -> None: ...

    def clip_leaves(self, gradients: list[Tensor], total: Tensor | None, most: float) -> None: ...

    def step_enters(
        self, optimizer: Optimizer, closure: bool, within: Sequence[Optimizer]
    ) -> None: ...

    def stop_if_halted(self) -> None:
        """Raises Halted where a guard was told to."""

    def step_leaves(self, optimizer: Optimizer) -> None: ...

    def scaler_enters(self, scaler: Any, optimizer: Optimizer) -> None: ...

    def scaler_leaves(self, scaler: Any, optimizer: Optimizer) -> None: ...

    def unscaled(self, optimizer: Optimizer) -> None: ...

    def zero_enters(self, who: Optimizer | nn.Module) -> None: ...

    def zero_leaves(self, who: Optimizer | nn.Module) -> None: ...


_lock = threading.RLock()
_listeners: tuple[Listener, ...] = ()
_undo: list[Callable[[], None]] = []
_inside = threading.local()
found: tuple[str, ...] = ()
"""Names of the hooks that this torch offers, as the start event reports them."""


def add(listener: Listener) -> None:
    """Let a listener hear; the first one installs the patches."""
    global _listeners, found
    with _lock:
        _listeners = (*_listeners, listener)
        if len(_listeners) == 1:
            found = tuple(name for name, install in _INSTALLS if _installed(install))


def remove(listener: Listener) -> None:
    """Let a listener go; the last one undoes every patch."""
    global _listeners, found
    with _lock:
        _listeners = tuple(x for x in _listeners if x is not listener)
        if not _listeners:
            while _undo:
                _undo.pop()()
            found = ()


def _installed(install: Callable[[], None]) -> bool:
    try:
        install()
    except Exception:  # this torch lacks the private name: that hook is not among ``found``
        return False
    return True


def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    original = getattr(owner, name)
    patched = functools.wraps(original)(make(original))
    setattr(owner, name, patched)

    def restore() -> None:
        # If another library wrapped our wrapper meanwhile, it stays and hears no listener.
        if getattr(owner, name, None) is patched:
            setattr(owner, name, original)

    _undo.append(restore)


def _tell_here(what: str, arguments: Callable[[], tuple[Any, ...] | None]) -> None:
    """Tell all listeners, unless there are no arguments.

    Whatever goes wrong ends here, counted and said once; but a guard may be told to halt.
    """
    for listener in _listeners:
        try:
            told = arguments()
            if told is not None:
                getattr(listener, what)(*told)
        except Halted:
            raise
        except Exception as error:
            listener.faults.record(f"hook {what}", error, fatal=False)


_tell = _eager(_tell_here)
"""The same where a compiler may be tracing."""


def _install_clip() -> None:
    def enters(original: Any) -> Any:
        def group(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_compiling() and tensors and tensors[0]:
                _tell("clip_enters", lambda: (tensors[0], getattr(_inside, "depth", 0) > 0))
            return original(tensors, *args, **kwargs)

        return group

    def norms(original: Any) -> Any:
        def total_norm(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return original(*args, **kwargs)
            _inside.norm_type = args[1] if len(args) > 1 else kwargs.get("norm_type", 2.0)
            with _depth():
                return original(*args, **kwargs)

        return total_norm

    def clips(original: Any) -> Any:
        def clip(parameters: Any, max_norm: Any, total_norm: Any, *args: Any, **kw: Any) -> Any:
            if torch.compiler.is_compiling():
                return original(parameters, max_norm, total_norm, *args, **kw)
            if not isinstance(parameters, Tensor):
                parameters = list(parameters)
            with _depth():
                result = original(parameters, max_norm, total_norm, *args, **kw)
            euclidean = getattr(_inside, "norm_type", 2.0) in (2, 2.0, "2")
            _inside.norm_type = 2.0
            norm = total_norm if euclidean else None
            _tell("clip_leaves", lambda: (_gradients(parameters), norm, max_norm))
            return result

        return clip

    _replace(clip_grad, "_group_tensors_by_device_and_dtype", enters)
    if hasattr(clip_grad, "_get_total_norm") and hasattr(clip_grad, "_clip_grads_with_norm_"):
        _replace(clip_grad, "_get_total_norm", norms)
        _replace(clip_grad, "_clip_grads_with_norm_", clips)
    flat = sys.modules.get("torch.distributed.fsdp.fully_sharded_data_parallel")
    if flat is not None:
        _patch_flat_clip(flat.FullyShardedDataParallel)


def _patch_flat_clip(wrapper: Any) -> None:
    """FullyShardedDataParallel clips by itself; where it is in use it was imported before."""

    def clips(original: Any) -> Any:
        def clip_grad_norm_(self: nn.Module, max_norm: Any, norm_type: Any = 2.0) -> Any:
            _tell("clip_enters", lambda: (_gradients(self.parameters()), True))
            with _depth():
                total = original(self, max_norm, norm_type)
            norm = total if norm_type in (2, 2.0, "2") else None
            _tell("clip_leaves", lambda: (_gradients(self.parameters()), norm, float(max_norm)))
            return total

        return clip_grad_norm_

    _replace(wrapper, "clip_grad_norm_", clips)


class _depth:
    """Marks calls whose effect on the gradients is known when they return."""

    def __enter__(self) -> None:
        _inside.depth = getattr(_inside, "depth", 0) + 1

    def __exit__(self, *_: object) -> None:
        _inside.depth -= 1


def _gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    listed = [parameters] if isinstance(parameters, Tensor) else parameters
    return [p.grad for p in listed if p.grad is not None]


def _install_step() -> None:
    @_eager
    def before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        _tell_here("step_enters", lambda: _entering(optimizer, callable(closure)))

    @_eager
    def after(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if calls(optimizer)[0] <= 1:
            _tell_here("step_leaves", lambda: (optimizer,))
            _tell_here("stop_if_halted", tuple)

    _undo.append(optimizer_module.register_optimizer_step_pre_hook(before).remove)
    _undo.append(optimizer_module.register_optimizer_step_post_hook(after).remove)


def _entering(optimizer: Optimizer, closure: bool) -> tuple[Any, ...] | None:
    own, others = calls(optimizer)
    return (optimizer, closure, others) if own <= 1 else None


def calls(optimizer: Optimizer) -> tuple[int, list[Optimizer]]:
    """How many live ``step`` calls are this optimizer's, and the others around them.

    A subclass that calls ``super().step()`` runs the hooks twice, and the post hook does not
    run when ``step`` raises, so a counter would stick; the stack itself does not lie.
    """
    own, others = 0, []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "wrapper" and code.co_filename == _STEP_FILE:
            stepping = frame.f_locals.get("self")
            if stepping is optimizer:
                own += 1
            elif isinstance(stepping, Optimizer):
                others.append(stepping)
        frame = frame.f_back
    return own, others


_STEP_FILE = optimizer_module.__file__


def _install_scaler() -> None:
    def wrap(original: Any) -> Any:
        def step(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            _tell("scaler_enters", lambda: (self, optimizer))
            try:
                return original(self, optimizer, *args, **kwargs)
            finally:
                _tell("scaler_leaves", lambda: (self, optimizer))
                _tell("stop_if_halted", tuple)

        return step

    def divides(original: Any) -> Any:
        def unscale_(self: Any, optimizer: Any) -> None:
            original(self, optimizer)
            _tell("unscaled", lambda: (optimizer,))

        return unscale_

    _replace(torch.amp.GradScaler, "step", wrap)
    _replace(torch.amp.GradScaler, "unscale_", divides)


def _install_zero() -> None:
    def wrap(original: Any) -> Any:
        def zero_grad(self: Any, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return original(self, *args, **kwargs)
            _tell("zero_enters", lambda: (self,))
            result = original(self, *args, **kwargs)
            _tell("zero_leaves", lambda: (self,))
            return result

        return zero_grad

    _replace(Optimizer, "zero_grad", wrap)
    _replace(nn.Module, "zero_grad", wrap)


_INSTALLS: tuple[tuple[str, Callable[[], None]], ...] = (
    ("clip", _install_clip),
    ("step", _install_step),
    ("scaler", _install_scaler),
    ("zero_grad", _install_zero),
)
