"""Frames that come faster than they can be compacted are sent back, not piled up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from gradwarden import wire
from gradwarden_server.api.front import Front
from gradwarden_server.api.lane import Lane
from gradwarden_server.house import House
from gradwarden_server.settings import Settings
from gradwarden_server.store.records import StartRequest
from tests.server.traffic import FRAMES, LAYOUT, batch, frame, problem


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(Settings(db=f"sqlite:///{tmp_path}/gw.sqlite"))
    made.open()
    yield made
    made.stop()


def test_a_trainer_is_told_to_come_back_while_the_log_is_too_long(house: House) -> None:
    runs = house.parts.runs
    runs.put_layout("default", LAYOUT).result()
    runs.start("default", StartRequest("r", "a1", 0, "n1", "host", 1), 1).result()
    waits: list[float | None] = [2.2]
    parts = replace(house.parts, backlog=lambda: waits[-1])
    front = Front(Lane(parts), 1 << 20, lambda path, status: None)
    message = wire.encode(batch("r", [frame(1)]))

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=front)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/v1/ingest", content=message, headers=FRAMES)

    refused = asyncio.run(send())
    document = problem(refused, 429, "backlogged")
    assert refused.headers["retry-after"] == "3"
    assert "compacted" in document["detail"]
    assert house.parts.log.after("default", "r", 0, 10) == []
    waits.append(None)
    taken = asyncio.run(send())
    assert taken.json() == {"stored": 1, "duplicate": 0, "commands": []}
