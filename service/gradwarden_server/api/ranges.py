"""Which part of a run is asked for: by steps, or by the time at which they were taken."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Depends, Query

from gradwarden_server.api.deps import Parts
from gradwarden_server.api.problems import Problem

First = Annotated[int | None, Query(alias="from", ge=0, le=2**62)]
Last = Annotated[int | None, Query(alias="to", ge=0, le=2**62)]

_EPOCH = datetime.fromtimestamp(0, UTC)
_ALWAYS = -(2**63), 2**63 - 1
_WORDS = "RFC 3339 with an offset, or nanoseconds since the epoch"


@dataclass(frozen=True, slots=True)
class Times:
    """[t0_ns, t1_ns] of series time; None where that end was left open."""

    t0_ns: int | None
    t1_ns: int | None

    @property
    def asked(self) -> bool:
        """Whether any end was named."""
        return self.t0_ns is not None or self.t1_ns is not None

    @property
    def bounds(self) -> tuple[int, int]:
        """Both ends, an open one as far away as can be."""
        return (
            _ALWAYS[0] if self.t0_ns is None else self.t0_ns,
            _ALWAYS[1] if self.t1_ns is None else self.t1_ns,
        )


async def _times(
    from_time: Annotated[str | None, Query(max_length=40, description=_WORDS)] = None,
    to_time: Annotated[str | None, Query(max_length=40, description=_WORDS)] = None,
) -> Times:
    times = Times(_nanoseconds("from_time", from_time), _nanoseconds("to_time", to_time))
    if times.bounds[0] > times.bounds[1]:
        detail = f"from_time: {from_time!r} is after to_time {to_time!r}; swap them"
        raise Problem("malformed", detail, field="from_time")
    return times


InTime = Annotated[Times, Depends(_times)]


def steps_asked(
    parts: Parts, project: str, run: str, steps: dict[str, int | None], times: Times
) -> tuple[int | None, int | None] | None:
    """The first and last step asked for, None for an open end; None for both: no frame lies
    in the time asked for.

    Args:
        steps: The two ends by the names that the caller knows them by.

    Raises:
        Problem: steps and times were both given.
    """
    first, last = steps.values()
    if not times.asked:
        return first, last
    only_one(steps, times)
    return parts.timespans.steps_between(project, run, *times.bounds)


def only_one(steps: dict[str, int | None], times: Times) -> None:
    """Raises Problem: a range of steps and one of time were both given."""
    named = {"from_time": times.t0_ns, "to_time": times.t1_ns}
    given = [name for name, end in {**steps, **named}.items() if end is not None]
    if times.asked and any(name in steps for name in given):
        detail = f"{', '.join(given)}: all given; ask for steps or for a time, not for both"
        raise Problem("malformed", detail, field=given[0], fields=given)


def _nanoseconds(field: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        if text.isdecimal():
            return min(int(text), _ALWAYS[1])
        moment = datetime.fromisoformat(text)
        return (moment - _EPOCH) // timedelta(microseconds=1) * 1000
    except (ValueError, TypeError, OverflowError):  # TypeError: it has no offset
        detail = f"{field}: {text!r}; {_WORDS}: 2026-01-31T12:00:00Z (a + in a URL is %2B)"
        raise Problem("malformed", detail, field=field) from None
