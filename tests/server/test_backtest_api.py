"""A rule tried with other numbers over HTTP: what it would have raised, bounds, and cancelling."""

from __future__ import annotations

import io
import math
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gradwarden_server.alerting.judge import Word
from tests.server.traffic import batch, begin, frame, problem, send
from tests.service import Service

PATH = "/v1/rules/backtest"
STEPS = 40


class Unlucky:
    """A history that the rules cannot judge."""

    frames = 3

    def judge(self, rules: object, progress: object) -> list[list[Any]]:
        return [[1 // 0]]


class Greedy(Unlucky):
    """One for which they want more memory than there should be."""

    def judge(self, rules: object, progress: object) -> list[list[Any]]:
        bytearray(9 << 30)  # zeroes that nobody writes to: only a bound on addresses refuses them
        return [[]]


class Well(Unlucky):
    def judge(self, rules: object, progress: object) -> list[list[Any]]:
        return [[]]


def train(service: Service, run: str, sick: int = -1, steps: int = STEPS) -> None:
    """A run that ended just now; from step ``sick`` on every loss is NaN and its step skipped."""
    begin(service, run)
    began = time.time_ns() - steps * 10**8
    for first in range(1, steps + 1, 64):
        frames = [
            frame(
                seq,
                time_ns=began + seq * 10**8,
                scalars={"loss": math.nan if 0 <= sick < seq else 2.0 / seq, "lr": 1e-3},
                events=({"kind": "finish", "status": "finished"},) if seq == steps else (),
            )
            for seq in range(first, min(first + 64, steps + 1))
        ]
        assert send(service, batch(run, frames)).status_code == 200


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a healthy run and a sick one."""
    running = Service(tmp_path_factory.mktemp("house"))
    train(running, "healthy")
    train(running, "sick", sick=20)
    yield running
    running.close()


def over(service: Service) -> dict[str, Any]:
    """The newest backtest, once it is over."""
    end = time.monotonic() + 60
    while (found := service.get(PATH))["state"] == "running":
        assert time.monotonic() < end, found
        time.sleep(0.1)
    return dict(found)


def ask(service: Service, **body: Any) -> Any:
    return service.call("POST", PATH, json={"alert": "NonFiniteLoss", **body})


def test_a_backtest_tells_what_comes_goes_and_stays(house: Service) -> None:
    assert house.get(PATH) is None
    before = len(house.get("/v1/alerts?limit=500")["items"])
    assert ask(house).status_code == 202
    same = over(house)
    assert (same["state"], same["runs"], same["runs_done"]) == ("done", 2, 2)
    assert same["old"] == same["new"] == {"pages": 1, "tickets": 0, "notes": 0, "runs": 1}
    [found] = same["findings"]
    assert (found["run"], found["change"], found["severity"], found["step"]) == (
        "sick",
        "same",
        "page",
        20,
    )
    assert same["frames"] == 2 * STEPS
    assert len(house.get("/v1/alerts?limit=500")["items"]) == before


def test_other_numbers_change_what_is_found(house: Service) -> None:
    numbers = {"skipped_in_a_row": 10, "clean_steps": 5.0}
    assert ask(house, params=numbers, days=1, runs=1).status_code == 202
    told = over(house)
    assert (told["runs"], told["days"], told["params"]) == (1, 1, numbers)
    assert told["state"] == "done"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"alert": "Nothing"}, "alert: 'Nothing'"),
        ({"params": {"cleen": 1}}, "params.cleen: unknown to NonFiniteLoss"),
        ({"params": {"clean_steps": 1.5}}, "params.clean_steps: 1.5; expected int"),
        ({"params": {"clean_steps": -1}}, "expected int, 1 or more"),
        ({"params": {"clean_steps": 0}}, "params.clean_steps: 0; expected int, 1 or more"),
        ({"params": {"clean_steps": 10**9}}, "params.clean_steps: 1000000000; expected int, 1"),
        ({"params": {"clean_steps": 100_001}}, "at most 100,000"),
        ({"params": {"clean_steps": "many"}}, "expected int"),
        ({"days": 0}, "days"),
        ({"runs": 1000}, "runs"),
        ({"days": 1e-9}, "no run was heard in that time"),
    ],
)
def test_bad_input_is_refused_and_begins_nothing(
    house: Service, body: dict[str, Any], words: str
) -> None:
    newest = house.call("GET", PATH).json()
    answer = ask(house, **body)
    problem(answer, 400, "malformed")
    assert words in answer.json()["detail"]
    assert house.call("GET", PATH).json() == newest


def test_one_runs_at_a_time_and_cancelling_ends_it_at_once(house: Service) -> None:
    train(house, "long", steps=600)
    assert ask(house).status_code == 202
    problem(ask(house), 409, "backtest-busy")
    assert house.call("DELETE", PATH).status_code == 204
    told = over(house)
    assert (told["state"], told["ended_at"] is not None) == ("cancelled", True)
    problem(house.call("DELETE", PATH), 404, "not-found")


def test_what_cannot_be_judged_is_said_in_words_and_the_next_run_is_judged() -> None:
    program = "from gradwarden_server.alerting.judge import main; main()"
    asked = b"".join(pickle.dumps((history(), [])) for history in (Unlucky, Greedy, Well))
    child = subprocess.run([sys.executable, "-c", program], input=asked, stdout=subprocess.PIPE)
    told = io.BytesIO(child.stdout)
    unlucky, greedy, well = (pickle.load(told) for _ in range(3))
    assert "cannot be judged, ZeroDivisionError: " in unlucky.fault
    assert "takes more than 8 GiB" in greedy.fault
    assert well == Word(3, found=[[]])
