"""gradwarden: watch the gradients of a training run and wake the right person.

``gradwarden.watch(model, optimizer)`` is all that is needed. Names are loaded when first
used, so that this package imports without torch and the server can use ``gradwarden.wire``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gradwarden.attach import Monitor, watch
    from gradwarden.errors import ConfigurationError, GradwardenError
    from gradwarden.guard import Guard, Halted

__all__ = [
    "ConfigurationError",
    "GradwardenError",
    "Guard",
    "Halted",
    "Monitor",
    "__version__",
    "watch",
]

# A lazy name must differ from its module's: the import system would put the module in its place.
_HOMES = {
    "ConfigurationError": "errors",
    "GradwardenError": "errors",
    "Guard": "guard",
    "Halted": "guard",
    "Monitor": "attach",
    "watch": "attach",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"gradwarden.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gradwarden' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
