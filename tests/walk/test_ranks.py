"""Four gloo ranks under torchrun: one run, and after a kill the same run, attempt 2."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

from tests.conftest import free_port
from tests.server.pager import PATIENCE
from tests.walk.conftest import House

RANKS = 4
DIES_AT = 31
RESUMES_AT = 12  # a checkpoint well before the kill, as one is
STEPS = 60


def torchrun(
    house: House, run: str, *arguments: str, restarts: int = 0
) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={RANKS}"]
    launch += [f"--max-restarts={restarts}", "--rdzv-backend=c10d"]
    launch += [f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    launch += ["-m", "tests.walk.trainer", *arguments]
    return subprocess.run(
        launch,
        # A restarted group gets a store of its own; in a shared one gloo meets dead addresses.
        env=house.environment(run, OMP_NUM_THREADS="1", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE * 3,
        check=False,
    )


def test_four_ranks_are_one_run_and_a_resumed_run_is_its_second_attempt(house: House) -> None:
    killed = torchrun(
        house, "quartet", "--steps", str(STEPS), "--die-at", str(DIES_AT), "--pace", "0.03"
    )
    assert killed.returncode != 0
    resumed = torchrun(house, "quartet", "--steps", str(STEPS), "--first-step", str(RESUMES_AT))
    assert resumed.returncode == 0, resumed.stdout

    house.until_judged("quartet")
    assert [r["run"] for r in house.get("/v1/runs")["items"]] == ["quartet"]
    run = house.get("/v1/runs/quartet")
    assert run["world_size"] == RANKS
    assert [(a["ordinal"], a["first_step"]) for a in run["attempts"]] == [
        (1, 0),
        (2, RESUMES_AT),
    ]
    assert [r["rank"] for r in run["ranks"]] == list(range(RANKS))
    series = house.get("/v1/runs/quartet/series", keys="grad_norm,loss", points="2000")
    assert series["step"] == list(range(STEPS))
    assert all(isinstance(v, float) for v in series["keys"]["grad_norm"]["last"])
    # One rank of the replica group speaks for all, so the norm is the model's, not four times it.
    assert run["layers"][0]["name"] == "inner.stem.weight"


def test_a_nan_under_ddp_is_one_page_that_names_the_layer(house: House) -> None:
    words = ("--sick-step", "20", "--clip", "--pace", "0.03")
    with house.lasting(partial(torchrun, house), "quartet", *words):
        (alert,) = house.page("NonFiniteGradient")["alerts"]
    assert alert["annotations"]["layer"] == "inner.blocks.2.0"
    assert alert["annotations"]["step"] == "20"
    pages = house.get("/v1/alerts", run="quartet", severity="page")["items"]
    assert len([a for a in pages if a["alertname"] == "NonFiniteGradient"]) == 1


def test_an_elastic_restart_after_one_rank_died_is_the_same_run_and_wakes_nobody(
    house: House,
) -> None:
    words = ["--steps", str(STEPS), "--pace", "0.03", "--die-at", str(DIES_AT)]
    words += ["--dying-rank", "1", "--resume-at", str(RESUMES_AT)]
    done = torchrun(house, "elastic", *words, restarts=1)
    assert done.returncode == 0, done.stdout
    house.until_judged("elastic")
    run = house.get("/v1/runs/elastic")
    assert [(a["ordinal"], a["first_step"]) for a in run["attempts"]] == [(1, 0), (2, RESUMES_AT)]
    series = house.get("/v1/runs/elastic/series", keys="grad_norm", points="2000")
    assert series["step"] == list(range(STEPS))
    assert house.pager.requests == []
