"""Where torch is listened to for time: backward, data loaders, saving, the compilers.

Patched once per process for all listeners and undone with the last of them. The wrappers pass
everything on, arguments, results and exceptions.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, dataloader

from gradwarden.errors import Faults
from gradwarden.instruments.left_behind import taken_off

NAME = "anatomy"
"""The feature that is off when a listener failed."""


class Listener(Protocol):
    """What a timeline hears. What it raises is recorded and goes no further."""

    faults: Faults

    def enter(self, phase: str) -> None: ...

    def leave(self, phase: str) -> None: ...

    def call_enters(self, module: Any) -> bool:
        """A compiled module is called; whether ``call_leaves`` is wanted."""

    def call_leaves(self) -> None: ...

    def forget(self) -> None:
        """This is a forked child now, a loader's worker say: a device's clock would break."""


_lock = threading.RLock()
_listeners: tuple[Listener, ...] = ()
_undo: list[Callable[[], None]] = []
_codes: list[CodeType] = []
_own: list[CodeType] = []
_forks: list[int] = []
found: tuple[str, ...] = ()
"""Names of the taps that this torch offers."""


def add(listener: Listener) -> None:
    """Let a listener hear; the first one installs the patches."""
    global _listeners, found
    with _lock:
        if not _forks and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_forget)
            _forks.append(os.getpid())
        _listeners = (*_listeners, listener)
        if len(_listeners) == 1:
            found = tuple(name for name, install in _INSTALLS if _installed(install))
            meet_compiler()


def remove(listener: Listener) -> None:
    """Let a listener go; the last one undoes every patch."""
    global _listeners, found
    with _lock:
        _listeners = tuple(x for x in _listeners if x is not listener)
        if not _listeners:
            while _undo:
                _undo.pop()()
            _codes.clear()
            found = ()


def _forget() -> None:
    global _listeners
    listeners, _listeners = _listeners, ()
    for listener in listeners:
        listener.forget()


def _installed(install: Callable[[], None]) -> bool:
    try:
        install()
    except Exception:  # this torch lacks the name: that tap is not among ``found``
        return False
    return True


def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    original = getattr(owner, name)
    made = make(original)
    patched = functools.wraps(original)(made)
    setattr(owner, name, patched)

    def restore() -> None:
        # If another library wrapped our wrapper meanwhile, it stays and has no listener.
        if getattr(owner, name, None) is patched:
            setattr(owner, name, original)

    _undo.append(restore)


def _around(phase: str) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            listeners = _listeners
            for listener in listeners:
                try:
                    listener.enter(phase)
                except Exception as error:
                    listener.faults.record(NAME, error)
            try:
                return original(*args, **kwargs)
            finally:
                for listener in listeners:
                    try:
                        listener.leave(phase)
                    except Exception as error:
                        listener.faults.record(NAME, error)

        _codes.append(timed.__code__)
        return timed

    return make


def _install_backward() -> None:
    # ``backward`` and ``grad`` look this name up when called, however they were imported.
    if hasattr(torch.autograd, "_engine_run_backward"):
        _replace(torch.autograd, "_engine_run_backward", _around("backward"))
    else:
        _replace(torch.autograd, "backward", _around("backward"))


def _install_data() -> None:
    _replace(dataloader._BaseDataLoaderIter, "__next__", _around("data"))
    _replace(DataLoader, "__iter__", _around("data_start"))  # it starts the workers


def _install_save() -> None:
    _replace(torch.serialization, "save", _around("checkpoint"))
    whole = torch.serialization.save
    _replace(torch, "save", lambda _: whole)


def _install_script() -> None:
    def scripts(original: Any) -> Any:
        def create_script_module(nn_module: Any, *args: Any, **kwargs: Any) -> Any:
            with taken_off(nn_module):
                return original(nn_module, *args, **kwargs)

        return create_script_module

    _replace(torch.jit._recursive, "create_script_module", scripts)


_INSTALLS: tuple[tuple[str, Callable[[], None]], ...] = (
    ("backward", _install_backward),
    ("data", _install_data),
    ("save", _install_save),
    ("script", _install_script),
)


def spare(*classes: type) -> None:
    """Have the compiler leave the methods of our own classes alone, when it is met."""
    functions = [f for c in classes for f in vars(c).values() if isinstance(f, FunctionType)]
    _own.extend(f.__code__ for f in functions)


def meet_compiler() -> None:
    """Tell the compiler about our wrappers, once it was imported; asked again at each step.

    It is never imported here, which would take a second. What runs between two compiled
    pieces would be compiled itself, and would then time nothing.
    """
    if not _codes or (frames := sys.modules.get("torch._dynamo.eval_frame")) is None:
        return
    with _lock:
        codes = list(_codes)
        _codes.clear()
        if hasattr(frames, "skip_code") and hasattr(frames, "OptimizedModule"):
            for code in (*codes, *_own):
                frames.skip_code(code)
            _replace(frames.OptimizedModule, "__call__", _called)
        handler = getattr(sys.modules.get("torch._dynamo.callback"), "callback_handler", None)
        if handler is not None:
            starts, ends = _Tell("enter", "compile"), _Tell("leave", "compile")
            handler.register_start_callback(starts)
            handler.register_end_callback(ends)
            _undo.append(lambda: _unless_cleared(handler.remove_start_callback, starts))
            _undo.append(lambda: _unless_cleared(handler.remove_end_callback, ends))


class _Tell:
    """Tells all listeners the same; the compiler calls it, with what is no news to us."""

    def __init__(self, what: str, *args: Any) -> None:
        self._what, self._args = what, args

    def __call__(self, *_: Any) -> None:
        for listener in _listeners:
            try:
                getattr(listener, self._what)(*self._args)
            except Exception as error:
                listener.faults.record(NAME, error)


def _unless_cleared(remove: Callable[[Any], None], callback: Any) -> None:
    with contextlib.suppress(ValueError):  # somebody cleared the whole list
        remove(callback)


def _called(original: Any) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return original(self, *args, **kwargs)
        heard = []
        for listener in _listeners:
            try:
                if listener.call_enters(self):
                    heard.append(listener)
            except Exception as error:
                listener.faults.record(NAME, error)
        try:
            return original(self, *args, **kwargs)
        finally:
            for listener in heard:
                try:
                    listener.call_leaves()
                except Exception as error:
                    listener.faults.record(NAME, error)

    return call
