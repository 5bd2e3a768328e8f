"""What crossed between ranks in a step, and how that becomes numbers without waiting."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gradwarden.collect import Pending
from gradwarden.instruments.clock import Clock, Mark, seconds

NOTHING = torch.empty(0)
"""What a Pending holds whose values are not in one tensor."""
Rounds = Sequence[Sequence["Passage"]]


class Passage:
    """One tensor on its way through a collective. ``ended`` is set by a backend's thread."""

    __slots__ = ("begun", "clock", "ended", "index", "size")

    def __init__(self, index: int, size: int, clock: Clock) -> None:
        self.index, self.size, self.clock = index, size, clock
        self.begun: Mark = clock.mark()
        self.ended: Mark | None = None

    def end(self) -> None:
        """It is back."""
        self.ended = self.clock.mark()

    def left(self) -> Mark:
        """When it ended; only once it has."""
        assert self.ended is not None
        return self.ended


class Span(Pending):
    """Seconds, summed over rounds, that are known once every passage has ended."""

    __slots__ = ("_ends", "_pieces", "_rounds")

    def __init__(
        self, rounds: Rounds, ends: Callable[[Sequence[Passage]], tuple[Mark, Mark]]
    ) -> None:
        super().__init__(NOTHING)
        self._rounds, self._ends = rounds, ends
        self._pieces: list[float | Pending] = []

    @property
    def ready(self) -> bool:
        if not self._pieces:
            if any(p.ended is None for round_ in self._rounds for p in round_):
                return False
            self._pieces = [seconds(*self._ends(round_)) for round_ in self._rounds]
        return all(p.ready for p in self._pieces if isinstance(p, Pending))

    @property
    def at_hand(self) -> bool:
        return False

    @property
    def seconds(self) -> float:
        """Only when ``ready``."""
        return sum(float(p.peek()) if isinstance(p, Pending) else p for p in self._pieces)

    def peek(self) -> Tensor:
        """The seconds, [1] float64; only when ``ready``."""
        return torch.tensor([self.seconds], dtype=torch.float64)

    def take(self) -> Tensor:
        """The same as :meth:`peek`: there is no slot to give back."""
        return self.peek()


def rounds(passages: Sequence[Passage]) -> list[list[Passage]]:
    """Passages of one reducer by backward: the bucket numbers start again with each."""
    found: list[list[Passage]] = []
    for passage in passages:
        if not found or passage.index <= found[-1][-1].index:
            found.append([])
        found[-1].append(passage)
    return found


def reductions(of_reducers: Sequence[Sequence[Passage]]) -> dict[str, float | Pending]:
    """A step's all-reduces in numbers, each sequence of passages being one reducer's.

    Times are sums over the backward passes of the step. Durations of buckets overlap, so they
    are never added: the total reaches from the first hand-over to the last return. The exposed
    part begins with the last hand-over, when this rank had no more work of its own.
    """
    every = [r for passages in of_reducers for r in rounds(passages)]
    if not every:
        return {}
    return {
        "allreduce_seconds": known(Span(every, _first)),
        "allreduce_total_seconds": known(Span(every, _whole)),
        "allreduce_exposed_seconds": known(Span(every, _exposed)),
        "allreduce_bytes": float(sum(p.size for r in every for p in r)),
        "allreduce_buckets": float(sum(map(len, every))),
    }


def exchanges(by_name: Mapping[str, Sequence[Passage]]) -> dict[str, float | Pending]:
    """Seconds and bytes of each kind of collective; its calls follow one another, so they add."""
    return dict(
        itertools.chain.from_iterable(_exchange(name, each) for name, each in by_name.items())
    )


def known(span: Span) -> float | Pending:
    """The number itself where it is there already."""
    return span.seconds if span.ready else span


def _exchange(name: str, passages: Sequence[Passage]) -> Iterator[tuple[str, float | Pending]]:
    if passages:
        yield f"{name}_seconds", known(Span([[p] for p in passages], _first))
        yield f"{name}_bytes", float(sum(p.size for p in passages))


def _first(round_: Sequence[Passage]) -> tuple[Mark, Mark]:
    return round_[0].begun, round_[0].left()


def _whole(round_: Sequence[Passage]) -> tuple[Mark, Mark]:
    return round_[0].begun, _last_return(round_)


def _exposed(round_: Sequence[Passage]) -> tuple[Mark, Mark]:
    return round_[-1].begun, _last_return(round_)


def _last_return(round_: Sequence[Passage]) -> Mark:
    return max((p.left() for p in round_), key=lambda mark: mark.at)
