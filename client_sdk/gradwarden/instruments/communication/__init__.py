"""How long ranks talk and wait, and whose gradients were bad before they were summed."""

from __future__ import annotations

from gradwarden.instruments.communication.instrument import Communication

__all__ = ["Communication"]
