"""One running service for the tests of a file; they keep out of each other's way by run name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.service import Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on loopback, without tokens."""
    running = Service(tmp_path_factory.mktemp("service"))
    yield running
    running.close()
