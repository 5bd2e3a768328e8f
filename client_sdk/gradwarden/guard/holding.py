"""How a step is skipped: the optimizer finds no gradients, or a device flag that stops it.

Every optimizer passes over parameters without a gradient, so hiding the gradients while its
step runs leaves parameters, state and step counters as if it had not been called, and the
callers around it (scalers, schedulers, framework loops) see a step like any other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradwarden.guard.options import Guard

try:
    from torch._compile import _disable_dynamo
except ImportError:  # private name; without it a compiled step may trace into the hooks
    _disable_dynamo = None  # type: ignore[assignment]


def eager(method: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that the compiler keeps out of."""

    def hook(*args: Any) -> Any:
        return method(*args)

    return hook if _disable_dynamo is None else _disable_dynamo(hook)


class Held:
    """Gradients of one optimizer, hidden until :meth:`release`."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._gradients = [
            (p, p.grad)
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        # Some optimizers count steps in their groups, which no missing gradient prevents.
        self._groups = [
            (group, {k: _copy(v) for k, v in group.items() if k != "params"})
            for group in optimizer.param_groups
        ]
        for parameter, _ in self._gradients:
            parameter.grad = None

    def release(self) -> None:
        """Put back what was hidden, for whoever looks at gradients after the step."""
        for group, before in self._groups:
            for key in group.keys() - before.keys() - {"params"}:
                del group[key]
            for key, value in before.items():
                if isinstance(value, Tensor) and isinstance(group.get(key), Tensor):
                    group[key].copy_(value)
                else:
                    group[key] = value
        for parameter, gradient in self._gradients:
            if parameter.grad is None:
                parameter.grad = gradient


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def scaled(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler takes care of this step: a fused step gets its flag."""
    return getattr(optimizer, "found_inf", None) is not None


def takes_flag(optimizer: Optimizer) -> bool:
    """Whether the optimizer skips by a device flag, without anybody waiting for it.

    SGD with momentum is left out: a flagged first step leaves its buffers uninitialised.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    if not all(group.get("fused") for group in optimizer.param_groups):
        return False
    momentum = any(group.get("momentum") for group in optimizer.param_groups)
    return not (isinstance(optimizer, torch.optim.SGD) and momentum)


def lend_flag(optimizer: Optimizer, flag: Tensor) -> None:
    """Let the fused step skip itself where ``flag`` (one float32) is 1."""
    optimizer.found_inf = flag.reshape(())  # type: ignore[attr-defined]


def take_flag_back(optimizer: Optimizer) -> None:
    if hasattr(optimizer, "found_inf"):
        del optimizer.found_inf


def share(left: Optimizer, right: Optimizer) -> bool:
    """Whether two optimizers hold a parameter both."""
    held = [{id(p) for group in o.param_groups for p in group["params"]} for o in (left, right)]
    return bool(held[0] & held[1])


def capturing_graph() -> bool:
    """Whether a CUDA graph is being captured, so that nothing may be read or decided."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def devices(optimizer: Optimizer) -> set[str]:
    """Kinds of device that hold its parameters."""
    return {p.device.type for group in optimizer.param_groups for p in group["params"]}


def sharded(optimizer: Optimizer) -> bool:
    """Whether this rank holds but a part of some parameter."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            placements = getattr(p, "placements", ())
            if any(not placed.is_replicate() for placed in placements):
                return True
            if hasattr(p, "_sharded_size") or type(p).__name__ == "FlatParameter":
                return True
    return False


def unsuitable(guard: Guard, optimizer: Optimizer, world: int) -> str:
    """Why the guard's policy cannot be carried out on this optimizer, with the remedy; or ''."""
    name = type(optimizer).__name__
    if guard.on_nonfinite is None:
        return ""
    if isinstance(optimizer, torch.optim.LBFGS):
        return f"{name} evaluates its loss many times within a step: leave on_nonfinite out"
    if guard.on_nonfinite != "skip_step" or guard.sync:
        return ""
    if world > 1 and sharded(optimizer):
        return (
            f"skip_step on sharded parameters ({name}): ranks see different shards, so they must "
            "agree before each step: declare that wait with Guard(sync=True)"
        )
    if devices(optimizer) - {"cpu"} and not takes_flag(optimizer):
        return (
            f"skip_step on a device ({name}): make the optimizer with fused=True (for SGD without "
            "momentum), or declare a wait for the device with Guard(sync=True)"
        )
    return ""


def tell_closure(
    args: tuple[Any, ...], kwargs: dict[str, Any], done: Callable[[], object]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments of a step whose closure calls ``done`` when it has made the gradients.

    ``args`` begins with the optimizer. None where the step has no closure.
    """
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if not callable(closure):
        return None

    @functools.wraps(closure)
    def told(*a: Any, **k: Any) -> Any:
        loss = closure(*a, **k)
        done()
        return loss

    if "closure" in kwargs:
        return args, {**kwargs, "closure": told}
    return (args[0], told, *args[2:]), kwargs
