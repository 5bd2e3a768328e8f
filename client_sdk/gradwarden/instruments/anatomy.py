"""Where a step's time goes: data, forward, backward, optimizer, checkpoint, evaluation, compile.

A step lasts from the end of the leading optimizer's step to the end of its next. Phases
exclude each other where they nest, so that their sum is at most ``step_seconds``; the rest is
none of them. On a CUDA device the boundaries are events on its own timeline and nothing waits:
``data_seconds`` is then the time for which the device had nothing to do but wait for data.
A forward inside a function that is compiled as a whole cannot be told apart. Compilation is
none of the phases that it delays.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import optimizer as optimizer_module

from gradwarden.collect import Pending
from gradwarden.errors import Faults
from gradwarden.frames import FrameBook
from gradwarden.instruments import taps
from gradwarden.instruments.clock import Clock, Mark
from gradwarden.instruments.left_behind import LeftBehind
from gradwarden.instruments.taps import NAME
from gradwarden.instruments.timeline import Step, Timeline

_WRAPPED = ("_orig_mod", "module", "_fsdp_wrapped_module")
_DEVICE_EVERY = 50
"""Steps between two looks at where the model lives now."""


class Anatomy:
    """Cuts the training thread's time into phases. ``enter`` and ``leave`` are for callers
    that know of a phase themselves; both never raise and cost about a microsecond."""

    name = NAME

    def __init__(self, model: nn.Module, book: FrameBook, faults: Faults) -> None:
        self._book, self.faults = book, faults
        self._model = weakref.ref(model)
        self._timeline = Timeline()
        self._ours: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
        self._undo: list[Callable[[], None]] = []
        self._steps = 0
        self._deaf = False
        self._compiled: Any = None
        self._device = "cpu"
        self._stepped = False
        self._rounds = 0
        self.autocast = ""
        """The type in which the newest training forward under autocast computed."""
        self.alternations = 0
        """Steps in which another optimizer stepped between two backward passes."""
        self.on_step: Callable[[Step], None] | None = None
        """Is given every finished step, on the training thread."""

    @property
    def current(self) -> str | None:
        """The phase that the training thread is in, if it is one that has a name."""
        return self._timeline.current

    @property
    def thread(self) -> int:
        """The training thread's identifier."""
        return self._timeline.thread

    # -- instrument -----------------------------------------------------------------------

    def start(self) -> None:
        """Listen to the root module, the optimizers, autograd, data loaders and saves."""
        model = self._model()
        if model is None:
            raise RuntimeError("the model is gone")
        before, after = _Hook(self, True), _Hook(self, False)
        self._undo += [
            model.register_forward_pre_hook(before, prepend=True).remove,
            model.register_forward_hook(after, always_call=True).remove,
            optimizer_module.register_optimizer_step_pre_hook(_Edge(self, True)).remove,
            optimizer_module.register_optimizer_step_post_hook(_Edge(self, False)).remove,
            lambda: taps.remove(self),
        ]
        taps.add(self)
        self._look()

    def step_ended(self) -> Mapping[str, float | Pending]:
        """``step_seconds`` and ``<phase>_seconds`` of each phase that occurred, in seconds, and
        ``data_start`` (1.0) of a step in which a loader began anew."""
        step = self._timeline.close()
        self._steps += 1
        self.alternations += self._rounds > 1
        self._rounds = 0
        taps.meet_compiler()
        if self._steps < 3 or self._steps % _DEVICE_EVERY == 0:
            self._look()
        if step is None:
            return {}
        if self.on_step is not None:
            self.on_step(step)
        began = {"data_start": 1.0} if step.loads_anew else {}
        if step.on_host:
            seconds = step.seconds()
            return began | {f"{phase}_seconds": took for phase, took in seconds.items()}
        later = {f"{phase}_seconds": _Later(step, phase) for phase in ("step", *step.phases)}
        return {**began, **later}

    def stop(self) -> None:
        """Undo every hook and patch."""
        while self._undo:
            self._undo.pop()()

    def status(self) -> str:
        """``on``, with what this torch does not let us hear."""
        missing = [name for name in ("backward", "data", "save") if name not in taps.found]
        return f"on, without {', '.join(missing)}" if missing else "on"

    # -- boundaries -----------------------------------------------------------------------

    def enter(self, phase: str) -> None:
        """A phase begins on this thread; ignored on any thread but the training's."""
        if phase == "backward":
            self._rounds, self._stepped = self._rounds + self._stepped, False
        elif phase == "optimizer":
            self._stepped = True
        self._bound(self._timeline.enter, phase)

    def leave(self, phase: str) -> None:
        """The newest phase of this name ends, and what began in it and did not end."""
        self._bound(self._timeline.leave, phase)

    def call_enters(self, module: nn.Module) -> bool:
        """A compiled module is called: our model, or what it is wrapped in?"""
        return not self._deaf and bool(self.faults.quiet(NAME, self._called, module))

    def call_leaves(self) -> None:
        """The call of our compiled model is over."""
        self.leave("forward")

    def forget(self) -> None:
        """In a forked child nothing is measured."""
        self._deaf = True

    def _bound(self, what: Callable[..., None], *args: Any) -> None:
        if self._deaf:
            return
        began = time.perf_counter()
        try:
            what(*args)
        except Exception as error:
            self.faults.record(NAME, error)
            self._deaf = True
        self._book.overhead += time.perf_counter() - began

    def _called(self, module: nn.Module) -> bool:
        ours = self._ours.get(module)
        if ours is None:
            ours = self._ours[module] = _holds(module, self._model())
        if ours:
            self.forward_enters()
        return ours

    def forward_enters(self) -> None:
        """The root module's forward, or that of its compiled self, begins."""
        model = self._model()
        training = model is not None and model.training
        learns = torch.is_grad_enabled()
        if learns:
            self.autocast = _autocast(self._device) or self.autocast
        self._bound(self._timeline.enter_forward, learns, training)

    def root(self) -> nn.Module | None:
        """The watched model, while it lives."""
        return self._model()

    # -- what changes under way -----------------------------------------------------------

    def _look(self) -> None:
        """Meet a model that moved to a device or was compiled in place since."""
        model = self._model()
        if model is None:
            return
        parameter = next(model.parameters(), None)
        if parameter is not None:
            self._timeline.move(parameter.device)
            self._device = parameter.device.type
        self._wrap_call(model)

    def _wrap_call(self, model: nn.Module) -> None:
        """Time ``model.compile()``, which replaces the call of this one module."""
        compiled = getattr(model, "_compiled_call_impl", None)
        if compiled is None or compiled is self._compiled:
            return

        enters, leaves = _Hook(self, True), _Hook(self, False)

        @functools.wraps(compiled)
        def call(*args: Any, **kwargs: Any) -> Any:
            enters(model)
            try:
                return compiled(*args, **kwargs)
            finally:
                leaves(model)

        self._compiled = call
        model._compiled_call_impl = call
        self._undo.append(lambda: _put_back(self._model(), call, compiled))


def _autocast(device: str) -> str:
    """The type that autocast casts to now, or nothing where it is off or unknown."""
    try:
        if torch.is_autocast_enabled(device):
            return str(torch.get_autocast_dtype(device)).removeprefix("torch.")
    except (RuntimeError, TypeError):  # a kind of device without autocast
        pass
    return ""


def _put_back(model: nn.Module | None, ours: Any, original: Any) -> None:
    if model is not None and getattr(model, "_compiled_call_impl", None) is ours:
        model._compiled_call_impl = original


class _Hook(LeftBehind):
    """Hears the root module's forward."""

    def __init__(self, anatomy: Anatomy, enters: bool) -> None:
        self._anatomy, self._enters = anatomy, enters

    def __call__(self, module: nn.Module, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        try:
            if module is not self._anatomy.root():
                return
            if self._enters:
                self._anatomy.forward_enters()
            else:
                self._anatomy.leave("forward")
        except Exception as error:
            self._anatomy.faults.record(NAME, error)


class _Edge:
    """Hears every optimizer's step."""

    def __init__(self, anatomy: Anatomy, enters: bool) -> None:
        self._anatomy, self._enters = anatomy, enters

    def __call__(self, *_: Any) -> None:
        try:
            if self._enters:
                self._anatomy.enter("optimizer")
            else:
                self._anatomy.leave("optimizer")
        except Exception as error:
            self._anatomy.faults.record(NAME, error)


class _Later(Pending):
    """One phase of a step whose last boundary the device has not come past yet."""

    __slots__ = ("_phase", "_step")

    def __init__(self, step: Step, phase: str) -> None:
        super().__init__(_NOTHING)
        self._step, self._phase = step, phase

    @property
    def ready(self) -> bool:
        return self._step.ready

    @property
    def at_hand(self) -> bool:
        return False

    def peek(self) -> Tensor:
        """The seconds, [1] float64; only when ``ready``."""
        seconds = self._step.seconds().get(self._phase, 0.0)
        return torch.tensor([seconds], dtype=torch.float64, device="cpu")

    def take(self) -> Tensor:
        return self.peek()


_NOTHING = torch.empty(0, device="cpu")


def _holds(module: nn.Module | None, model: nn.Module | None) -> bool:
    """Whether the module is the model in the wrappers of compilation or distribution."""
    while module is not None and module is not model:
        inner = (module._modules.get(name) for name in _WRAPPED)
        module = next((m for m in inner if m is not None), None)
    return module is not None


taps.spare(Anatomy, Timeline, Clock, Mark, Faults)
