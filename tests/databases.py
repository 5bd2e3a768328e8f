"""On which databases a test runs where its file holds both."""

from __future__ import annotations

import pytest


def sqlite_first(fixture: str, postgresql: str = "postgresql") -> pytest.MarkDecorator:
    """On SQLite in the core tier and on PostgreSQL as well in the full one.

    For tests of which others beside them go the same way on PostgreSQL in the core tier.
    """
    kinds = ["sqlite", pytest.param(postgresql, marks=pytest.mark.full)]
    return pytest.mark.parametrize(fixture, kinds, indirect=True)
