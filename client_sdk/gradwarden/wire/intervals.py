"""Inclusive seq intervals: what of a stream was received, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable


def missing(held: Iterable[tuple[int, int]], first: int, last: int) -> list[tuple[int, int]]:
    """The inclusive intervals of [first, last] that ``held`` does not cover, in order."""
    gaps: list[tuple[int, int]] = []
    at = first
    for start, end in sorted(held):
        if end < at or start > last:
            continue
        if start > at:
            gaps.append((at, start - 1))
        at = end + 1
    if at <= last:
        gaps.append((at, last))
    return gaps


def merge(held: Iterable[tuple[int, int]], first: int, last: int) -> list[tuple[int, int]]:
    """``held`` with [first, last] added; touching intervals become one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted([*held, (first, last)]):
        if merged and start <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
