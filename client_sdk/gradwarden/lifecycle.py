"""How a process ends: exit, exception, SIGTERM, Ctrl-C, fork. Each is chained and undone."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import traceback
from types import FrameType, TracebackType
from typing import Any, Protocol


class Mortal(Protocol):
    """What a monitor does when its process ends."""

    def finish(self, status: str = "finished", seconds: float | None = None) -> None: ...

    def expect(self, status: str, details: dict[str, Any]) -> None: ...

    def forget(self) -> None: ...


_lock = threading.RLock()
_alive: list[Mortal] = []
_previous_hook: Any = None
_previous_term: Any = None
_hooked = False
_sees_term = False
_MOST_CAUSES = 8
SIGTERM_SECONDS = 2.0
"""Kubernetes and Slurm follow SIGTERM with SIGKILL; the rest is spooled by then."""


def enlist(mortal: Mortal) -> None:
    """Finish ``mortal`` however the process ends; the first one installs the hooks."""
    global _previous_hook, _previous_term, _hooked, _sees_term
    with _lock:
        _alive.append(mortal)
        if not _hooked:
            _hooked = True
            _previous_hook, sys.excepthook = sys.excepthook, _on_exception
            atexit.register(_on_exit)
        if not _sees_term and threading.current_thread() is threading.main_thread():
            _previous_term = signal.getsignal(signal.SIGTERM)
            if _previous_term is not signal.SIG_IGN and _previous_term is not None:
                signal.signal(signal.SIGTERM, _on_term)
                _sees_term = True


def release(mortal: Mortal) -> None:
    """Let go of a monitor that was finished; the last one restores what was there."""
    global _hooked, _sees_term
    with _lock:
        if mortal in _alive:
            _alive.remove(mortal)
        if _alive or not _hooked:
            return
        if sys.excepthook is _on_exception:
            sys.excepthook = _previous_hook
            _hooked = False
            atexit.unregister(_on_exit)
        ours = _sees_term and signal.getsignal(signal.SIGTERM) is _on_term
        if ours and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _previous_term)
            _sees_term = False


def _on_exit() -> None:
    for mortal in list(_alive):
        mortal.finish()


def _on_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Note why the process fails, before its own report; ``atexit`` then finishes."""
    interrupted = issubclass(kind, KeyboardInterrupt)
    details = failure(kind, error, trace)
    for mortal in list(_alive):
        mortal.expect("cancelled" if interrupted else "failed", {} if interrupted else details)
    (_previous_hook or sys.__excepthook__)(kind, error, trace)


def failure(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> dict[str, Any]:
    """The fields of a finish event that tell what was raised, and where."""
    try:
        text = f"{kind.__name__}: {error}"
    except Exception:  # an exception whose own text cannot be made
        text = kind.__name__
    lines = traceback.format_exception(kind, None, trace)
    told: dict[str, Any] = {"error": text[:2000], "traceback": "".join(lines)[-8000:]}
    if causes := _causes(error):
        told["causes"] = causes
    return {**told, **_memory(), **_gpu_memory()}


def _causes(error: BaseException) -> list[str]:
    """What led to an exception, nearest first: the chain that Python prints above it."""
    found: list[str] = []
    seen = {id(error)}
    while len(found) < _MOST_CAUSES:
        hidden = error.__suppress_context__
        cause = error.__cause__ or (None if hidden else error.__context__)
        if cause is None or id(cause) in seen:
            break
        seen.add(id(cause))
        try:
            found.append(f"{type(cause).__name__}: {cause}"[:500])
        except Exception:  # its own text cannot be made
            found.append(type(cause).__name__)
        error = cause
    return found


def _memory() -> dict[str, Any]:
    try:
        import resource
    except ImportError:  # pragma: no cover - not on Windows
        return {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"memory_bytes": peak if sys.platform == "darwin" else peak * 1024}


def _gpu_memory() -> dict[str, Any]:
    """What torch's allocator counts, asked on the host alone; nothing where no GPU is in use."""
    torch: Any = sys.modules.get("torch")
    try:
        if torch is None or not torch.cuda.is_initialized():
            return {}
        return {"gpu_memory_peak_bytes": int(torch.cuda.max_memory_allocated())}
    except Exception:  # a device that failed may not even say this
        return {}


def _on_term(number: int, frame: FrameType | None) -> None:
    """Chain: a handler of the host's own runs on, perhaps to save; without one we end here."""
    previous = _previous_term
    if callable(previous):
        for mortal in list(_alive):
            mortal.expect("preempted", {})
        previous(number, frame)
        return
    # Beside the interrupted thread: should that one hold a lock, we end in time all the same.
    ending = threading.Thread(target=_preempted, name="gradwarden-term", daemon=True)
    ending.start()
    ending.join(SIGTERM_SECONDS + 1.0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def _preempted() -> None:
    for mortal in list(_alive):
        mortal.finish("preempted", seconds=SIGTERM_SECONDS)


def _in_child() -> None:
    """A forked child (a DataLoader worker) is not the run: it lets go without a word."""
    global _lock, _hooked, _sees_term
    _lock = threading.RLock()
    children = list(_alive)
    _alive.clear()
    for mortal in children:
        mortal.forget()
    if sys.excepthook is _on_exception:
        sys.excepthook = _previous_hook
    if _sees_term and signal.getsignal(signal.SIGTERM) is _on_term:
        signal.signal(signal.SIGTERM, _previous_term)
    _hooked = _sees_term = False


def _register_fork() -> None:
    """Once per process; a weak link would not do, since the module outlives all monitors."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_in_child)


_register_fork()
