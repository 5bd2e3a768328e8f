"""Through a real service: the slow rank is named and not its victims, the sick one and no other."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest

from tests.conftest import free_port
from tests.server.pager import PATIENCE
from tests.walk.conftest import House


def torchrun(house: House, ranks: int, run: str, *arguments: str) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
    launch += [f"--master-port={free_port()}", "-m", "tests.walk.laggard", *arguments]
    done = subprocess.run(
        launch,
        env=house.environment(run, OMP_NUM_THREADS="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE * 3,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("ranks", "slow"), [(2, 1), pytest.param(4, 2, marks=pytest.mark.full)])
def test_the_sleeping_rank_is_named_and_its_victims_are_not(
    ranks: int, slow: int, house: House
) -> None:
    torchrun(house, ranks, "sleepy", "--slow-rank", str(slow))
    house.until_judged("sleepy")
    answer = house.get("/v1/runs/sleepy/communication")
    assert [c["rank"] for c in answer["causes"]] == [slow]
    assert answer["causes"][0]["lost_share"] > 0.2
    assert answer["measure"] == "all-reduce, from the last hand-over"
    assert [r["rank"] for r in answer["ranks"]] == list(range(ranks))
    own = answer["ranks"].pop(slow)
    assert all(r["wait_seconds"] > 2 * own["wait_seconds"] for r in answer["ranks"])
    assert answer["transfer_seconds"] < min(r["seconds"] for r in answer["ranks"])
    assert answer["reason"] is None


def test_the_page_names_the_rank_whose_own_gradient_was_bad(house: House) -> None:
    with house.lasting(partial(torchrun, house, 4), "ill", "--sick-rank", "3"):
        (alert,) = house.page("NonFiniteGradient")["alerts"]
    assert alert["annotations"]["step"] == "20"
    house.until_judged("ill")
    events = house.get("/v1/runs/ill/events")["items"]
    (first, *_) = [e for e in events if e["kind"] == "local_nonfinite"]
    assert (first["rank"], first["step"]) == (3, 20)
    assert first["data"]["parameters"] == ["2.weight"]
    alerts = house.get("/v1/alerts", run="ill")["items"]
    (known,) = [a for a in alerts if a["alertname"] == "NonFiniteGradient"]
    assert known["annotations"]["rank"] == "3"
