"""Who sends the matrices of a cell when its speaker does not. Pure.

The lowest rank of a (group, shard) speaks for its replicas. Where captured steps come without
any matrix of the cell for ten seconds, the next rank is asked to speak; when the first one is
back, its stand-ins are asked to stop. Time is when frames were received.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gradwarden_server.detect.base import Request
from gradwarden_server.detect.replicas import Cell, cells
from gradwarden_server.detect.steps import RankStep, Step

PATIENCE_NS = 10_000_000_000


@dataclass(slots=True)
class _Seat:
    """One cell: its speaker, since when no matrix came, and who was asked to stand in."""

    speaker: int
    mute_since_ns: int | None = None
    stand_ins: list[int] = field(default_factory=list)


class Speakers:
    """The speakers of one run; see the module."""

    def __init__(self) -> None:
        self._attempt = 0
        self._seats: dict[Cell, _Seat] = {}

    def observe(self, step: Step) -> list[Request]:
        """What to ask of whom after this step."""
        if step.attempt != self._attempt:
            self._attempt = step.attempt
            for seat in self._seats.values():
                seat.mute_since_ns = None
        requests: list[Request] = []
        for cell, ranks in cells(step).items():
            seat = self._seats.setdefault(cell, _Seat(min(ranks)))
            seat.speaker = min(seat.speaker, *ranks)
            requests += _listen(seat, ranks, step.first_received_ns)
        return requests

    def state(self) -> dict[str, Any]:
        seats = [[*c, s.speaker, s.mute_since_ns, s.stand_ins] for c, s in self._seats.items()]
        return {"attempt": self._attempt, "seats": seats}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._attempt = state["attempt"]
        self._seats = {(s[0], s[1]): _Seat(s[2], s[3], list(s[4])) for s in state["seats"]}


def _listen(seat: _Seat, ranks: Mapping[int, RankStep], now_ns: int) -> list[Request]:
    if any(said.spoke for said in ranks.values()):
        seat.mute_since_ns = None
        if seat.speaker not in ranks or not ranks[seat.speaker].spoke:
            return []
        leave, seat.stand_ins = seat.stand_ins, []
        return [Request(rank, "speak", {"on": False}) for rank in leave]
    captured = [rank for rank, said in ranks.items() if said.roots]
    if not captured:
        return []
    if seat.mute_since_ns is None:
        seat.mute_since_ns = now_ns
    heir = next((r for r in captured if r != seat.speaker and r not in seat.stand_ins), None)
    if heir is None or now_ns - seat.mute_since_ns < PATIENCE_NS:
        return []
    seat.stand_ins.append(heir)
    seat.mute_since_ns = now_ns
    return [Request(heir, "speak", {"on": True})]
