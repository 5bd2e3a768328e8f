"""``Snapshot``: save and restore callables over everything that a step changes."""

from __future__ import annotations


class Snapshot:
    """Model, optimizer, scheduler, scaler and random state in one file per step and rank."""
