"""Commands take a run by its name, and the report of a week that had no runs says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.server.traffic import batch, begin, frame, send
from tests.service import Service, gradwarden


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service without a run."""
    running = Service(tmp_path_factory.mktemp("house"))
    yield running
    running.close()


def test_a_report_without_runs_says_so_and_then_is_the_week_so_far(house: Service) -> None:
    empty = gradwarden("report", "--week", "--url", house.url)
    assert empty.returncode == 0
    assert "no run reported between" in empty.stderr
    assert "gradwarden.watch(model, optimizer)" in empty.stderr
    begin(house, "r1", name="one")
    assert send(house, batch("r1", [frame(1), frame(2)])).status_code == 200
    told = gradwarden("report", "--week", "--json", "--url", house.url)
    assert "this is the week so far, since Monday" in told.stderr
    assert '"runs": 1' in told.stdout
    named = gradwarden("report", "--from", "2020-01-01", "--to", "2020-01-08", "--url", house.url)
    assert named.stderr == ""
    assert f"{datetime.now(UTC):%Y-%m}" not in named.stdout


def test_runs_are_marked_and_deleted_by_name_and_never_by_one_that_two_have(
    house: Service,
) -> None:
    for run, name in (("a1", "twin"), ("a2", "twin"), ("b1", "alone")):
        begin(house, run, name=name)
        assert send(house, batch(run, [frame(1)])).status_code == 200
    marked = gradwarden("run", "mark", "alone", "--good", "--reason", "flat", "--url", house.url)
    assert (marked.returncode, "b1 counts as good" in marked.stdout) == (0, True), marked.stderr
    asked = gradwarden("runs", "delete", "alone", "--url", house.url)
    assert (asked.returncode, "run b1, called alone," in asked.stderr) == (2, True)
    for words in (("runs", "delete", "twin", "--yes"), ("run", "mark", "twin", "--bad")):
        refused = gradwarden(
            *words, *(("--reason", "x") if "mark" in words else ()), "--url", house.url
        )
        assert refused.returncode == 2
        assert "2 runs are called 'twin'" in refused.stderr
        assert "a1" in refused.stderr
    done = gradwarden("runs", "delete", "alone", "--yes", "--json", "--url", house.url)
    assert done.stdout.strip() == '{"deleted": "b1"}'
    left = {run["run"] for run in house.get("/v1/runs")["items"]}
    assert {"a1", "a2"} <= left
    assert "b1" not in left
