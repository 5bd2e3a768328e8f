"""A hook that stays behind when its module is copied, pickled or saved whole."""

from __future__ import annotations

import contextlib
from typing import Any


class LeftBehind:
    """Base of module hooks: a copy of the module holds a function that does nothing instead.

    An exponential average made by ``deepcopy`` is thus not measured in our model's name, and
    a module pickled whole loads where gradwarden is not installed.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # It takes any arguments and returns None: a hook that changes nothing.
        return getattr, (contextlib.nullcontext(), "__exit__")
