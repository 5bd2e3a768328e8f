"""Silent corruption, really made: one bit of one weight of one gloo rank, and who is woken."""

from __future__ import annotations

import itertools
import json
import sqlite3
from typing import Any

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
    with sqlite3.connect(house.service.db.removeprefix("sqlite:///")) as connection:
        asked = connection.execute(
            "SELECT rank, kind FROM command WHERE acked_ns IS NOT NULL ORDER BY rank"
        ).fetchall()
    assert asked == [(rank, "checksums") for rank in range(RANKS)]


def test_healthy_replicas_are_watched_and_wake_nobody(house: House) -> None:
    done = torchrun(house, "healthy", "--steps", "150", "--clip")
    assert done.returncode == 0, done.stdout
    house.until_judged("healthy")
    assert alerts_of(house, "healthy") == []
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
