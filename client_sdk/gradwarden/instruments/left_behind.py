"""A hook that stays behind when its module is copied, pickled, saved whole or scripted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


class LeftBehind:
    """Base of module hooks: a copy of the module holds a function that does nothing instead.

    An exponential average made by ``deepcopy`` is thus not measured in our model's name, and
    a module pickled whole loads where gradwarden is not installed.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # It takes any arguments and returns None: a hook that changes nothing.
        return getattr, (contextlib.nullcontext(), "__exit__")


@contextlib.contextmanager
def taken_off(model: nn.Module) -> Iterator[None]:
    """Our hooks, and what stands for them in copies, are not there meanwhile.

    ``torch.jit.script`` compiles every hook of a module and refuses ours.
    """
    held = [
        (hooks, list(hooks.items()))
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        if any(map(_ours, hooks.values()))
    ]
    for hooks, items in held:
        for key, hook in items:
            if _ours(hook):
                del hooks[key]
    try:
        yield
    finally:
        for hooks, items in held:
            hooks.clear()
            hooks.update(items)  # in their old order


def _ours(hook: Any) -> bool:
    return isinstance(hook, LeftBehind) or isinstance(
        getattr(hook, "__self__", None), contextlib.nullcontext
    )
