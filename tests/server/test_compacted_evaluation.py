"""Whether the log is compacted before it is judged, after it, or never, the alerts are the same."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradwarden_server.store.compacting.compaction import Compaction
from tests.server.test_compaction import compact_all
from tests.server.test_evaluator import STEPS, Bench


@given(
    cuts=st.sets(st.integers(1, STEPS - 1), max_size=6),
    crashes=st.sets(st.integers(0, 6), max_size=3),
    compacted=st.sets(st.integers(0, 6), min_size=1, max_size=4),
    sick=st.sets(st.integers(5, STEPS - 1), min_size=1, max_size=3),
)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_compaction_ahead_of_the_evaluator_changes_no_alert(
    tmp_path_factory: pytest.TempPathFactory,
    cuts: set[int],
    crashes: set[int],
    compacted: set[int],
    sick: set[int],
) -> None:
    stories = []
    for compacts in (False, True):
        bench = Bench(tmp_path_factory.mktemp("bench"))
        compaction = Compaction(bench.store.database, bench.store.log, frames=16)
        try:
            edges = [0, *sorted(cuts), STEPS]
            for piece, (first, end) in enumerate(itertools.pairwise(edges)):
                bench.send(first, end - 1, sick=tuple(sick))
                if compacts and piece in compacted:
                    assert compact_all(compaction) > 0
                bench.round()
                if piece in crashes:
                    bench.crash()
            bench.round()
            stories.append((bench.story(), bench.messages()))
        finally:
            bench.store.database.close()
    assert stories[0] == stories[1]
