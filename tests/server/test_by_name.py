"""Commands take a run by its name, and the report of a week that had no runs says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo

import pytest

from gradwarden_server.cli import main, reporting
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


def test_a_run_is_marked_by_name_and_asked_about_by_name_but_never_by_one_that_two_have(
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
    assert "gradwarden runs delete b1 --yes" in asked.stderr
    done = gradwarden("runs", "delete", "b1", "--yes", "--json", "--url", house.url)
    assert done.stdout.strip() == '{"deleted": "b1"}'
    left = {run["run"] for run in house.get("/v1/runs")["items"]}
    assert {"a1", "a2"} <= left
    assert "b1" not in left


def test_a_deletion_sent_twice_never_takes_the_run_that_is_called_so(house: Service) -> None:
    for run, name in (("c1", "first"), ("c2", "c1")):
        begin(house, run, name=name)
        assert send(house, batch(run, [frame(1)])).status_code == 200
    words = ("runs", "delete", "c1", "--yes", "--url", house.url)
    assert gradwarden(*words).stdout == "run c1 is deleted\n"
    again = gradwarden(*words)
    assert again.returncode == 2
    assert "no run has the identifier c1" in again.stderr
    assert "repeat with its identifier c2" in again.stderr
    assert house.get("/v1/runs/c2")["run"] == "c2"


def test_in_the_first_second_of_a_week_the_week_so_far_is_that_second(
    house: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Monday(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Monday:
            return cls(2020, 1, 6, tzinfo=tz)

    monkeypatch.setattr(reporting, "datetime", Monday)
    assert main(["report", "--week", "--url", house.url]) == 0
    assert "nor since" in capsys.readouterr().err
