"""Silent corruption, really made: one bit of one weight of one gloo rank, and who is woken."""

from __future__ import annotations

import itertools
import json
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.server.pager import PATIENCE
from tests.walk.conftest import House
from tests.walk.test_ranks import RANKS, torchrun

FLIP_AT, FLIP_RANK = 80, 2
FLIPPED = "inner.blocks.2.0.weight"


def alerts_of(house: House, run: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = house.get("/v1/alerts", run=run)["items"]
    return items


def coverage(house: House, run: str) -> dict[str, str]:
    return {c["alert"]: c["state"] for c in house.get(f"/v1/runs/{run}")["coverage"]}


def paged(house: House) -> dict[str, str]:
    """What the first page says; a ticket goes before it."""
    for seen in itertools.count(1):
        for alert in json.loads(house.pager.wait(seen)[seen - 1].body)["alerts"]:
            assert alert["labels"]["alertname"] == "ReplicaMismatch"
            if alert["labels"]["severity"] == "page":
                words: dict[str, str] = alert["annotations"]
                return words
    raise AssertionError("never reached")


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def tell(house: House, every: int) -> None:
    """Give rank 0 of the run another schedule than the other ranks have."""
    body = {"rank": 0, "kind": "schedule", "args": {"every": every}}
    answer = house.service.call("POST", "/v1/runs/mute/commands", json=body)
    assert answer.status_code == 201, answer.text


def observed(house: House) -> int:
    """The last step of which a matrix is known, or -1."""
    if not house.get("/v1/runs")["items"]:
        return -1
    series = house.get("/v1/runs/mute/series", keys="grad_norm", points="4000")
    norms = series["keys"]["grad_norm"]["last"]
    seen = [s for s, norm in zip(series["step"], norms, strict=True) if norm is not None]
    return max(seen, default=-1)


def carried_out(house: House, rank: int) -> list[tuple[str, dict[str, Any]]]:
    """The commands that a rank acknowledged."""
    with sqlite3.connect(house.service.db.removeprefix("sqlite:///")) as connection:
        rows = connection.execute(
            "SELECT kind, args FROM command WHERE acked_ns IS NOT NULL AND rank = ? ORDER BY id",
            (rank,),
        ).fetchall()
    return [(kind, json.loads(args)) for kind, args in rows]


def test_a_flipped_bit_pages_with_its_rank_and_layer(house: House) -> None:
    words = ["--steps", "200", "--pace", "0.03"]
    words += ["--flip-at", str(FLIP_AT), "--flip-rank", str(FLIP_RANK)]
    done = torchrun(house, "flipped", *words)
    assert done.returncode == 0, done.stdout
    said = paged(house)
    assert said["rank"] == str(FLIP_RANK)
    assert (said["layer"], said["parameter"]) == ("inner.blocks.2.0", FLIPPED)
    assert f"weights of rank {FLIP_RANK} differ from those of 3 replicas" in said["summary"]
    # Each weight is looked at once in sixteen captured steps, and here each step is captured.
    assert FLIP_AT <= int(said["step"]) < FLIP_AT + 16
    assert FLIP_AT - 16 <= int(said["last_equal_step"]) < FLIP_AT
    assert "Cordon the node of rank 2" in said["first_action"]

    house.until_judged("flipped")
    for rank in range(RANKS):
        assert [kind for kind, _ in carried_out(house, rank)] == ["checksums"]


def test_another_rank_speaks_while_the_first_is_mute(house: House) -> None:
    """Rank 0 alone is told to capture next to nothing; the heatmap must not end for it."""
    with house.lasting(partial(torchrun, house), "mute", "--pace", "0.05"):
        until(lambda: observed(house) >= 20)
        tell(house, every=1_000_000)
        until(lambda: ("speak", {"on": True}) in carried_out(house, rank=1))
        before = observed(house)
        until(lambda: observed(house) > before + 20)
        tell(house, every=1)
        until(lambda: ("speak", {"on": False}) in carried_out(house, rank=1))
    house.until_judged("mute")
    assert not [one for one in alerts_of(house, "mute") if one["fired_at"]]


def test_healthy_replicas_are_watched_and_wake_nobody(house: House) -> None:
    done = torchrun(house, "healthy", "--steps", "150", "--clip")
    assert done.returncode == 0, done.stdout
    house.until_judged("healthy")
    # On cores that four ranks share, all-reduce may dominate for a while: nobody is told of that.
    assert not [one for one in alerts_of(house, "healthy") if one["fired_at"]]
    watched = coverage(house, "healthy")
    names = ("ReplicaMismatch", "NeverSynchronized", "NormSelfCheckFailed")
    assert {name: watched[name] for name in names} == dict.fromkeys(names, "armed")


def test_a_forgotten_wrapper_is_a_ticket_and_no_corruption(house: House) -> None:
    done = torchrun(house, "bare", "--steps", "150", "--bare")
    assert done.returncode == 0, done.stdout
    house.until_judged("bare")
    (alert,) = alerts_of(house, "bare")
    assert (alert["alertname"], alert["severity"]) == ("NeverSynchronized", "ticket")
    assert "the model is not wrapped" in alert["annotations"]["cause"]
