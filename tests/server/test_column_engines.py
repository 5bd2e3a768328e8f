"""The C kernel and its numpy twin give the same bytes, whatever the bits are."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradwarden_server.store import columns
from gradwarden_server.store.columns import HOLE, Batches, native, plain
from gradwarden_server.store.columns.forms import keys, words_of
from tests.needs import missing

ROOT = Path(__file__).resolve().parents[2]

SPECIAL = [
    *(0, 0x80000000),  # zeros of both signs
    *(1, 0x807FFFFF),  # subnormals
    *(0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000),  # the greatest, and infinity
    *(HOLE, 0xFFC00000, 0x7FC00001, 0x7F800001, 0xFFFFFFFF),  # NaN, some with a payload
    *(0x3F800000, 0x3F800001, 0xC2280000),
]
BITS = st.one_of(st.sampled_from(SPECIAL), st.integers(0, 2**32 - 1))
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)
WORDS = hnp.arrays(np.uint32, SHAPES, elements=BITS, fill=st.sampled_from(SPECIAL))


@pytest.fixture(autouse=True)
def _built() -> None:
    if not native.available():
        missing("the C kernel", "python service/build_kernel.py, with a C compiler at hand")


def same(one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        assert mine.tobytes() == theirs.tobytes()


def test_the_kernel_is_what_makes_segments_where_it_was_built() -> None:
    assert columns.lay is native.lay


@given(st.data(), st.integers(1, 9), st.integers(1, 4))
def test_columns_are_taken_from_batches_alike(data: st.DataObject, rows: int, count: int) -> None:
    sent, at, payloads = [], [], []
    for _ in range(count):
        m = data.draw(st.integers(1, 5))
        words = data.draw(hnp.arrays(np.uint32, (2, m, rows), elements=BITS, fill=st.just(HOLE)))
        planes = np.ascontiguousarray(
            words.view(np.uint8).reshape(2, m, rows, 4).transpose(0, 3, 1, 2)
        )
        payloads.append(planes.tobytes())
        which = data.draw(st.sampled_from([-1, 0, 1]))
        at.append(-1 if which < 0 else which * 4 * m * rows)
        sent.append(np.full((m, rows), HOLE, np.uint32) if which < 0 else words[which])
    batches = Batches(payloads, [len(words) for words in sent], rows)
    where = np.array(at, np.int64)
    told = np.concatenate(sent)
    flags = native.measured(batches, where)
    np.testing.assert_array_equal(flags, (told != HOLE).any(axis=1))
    same((flags,), (plain.measured(batches, where),))
    kept = data.draw(hnp.arrays(np.bool_, len(told)))
    laid = native.lay(batches, where, kept)
    np.testing.assert_array_equal(laid, told[kept].T)
    same((laid,), (plain.lay(batches, where, kept),))


@given(WORDS, st.integers(1, 17))
def test_rows_are_surveyed_alike(words: np.ndarray, block: int) -> None:
    assert native.survey(words, block) == plain.survey(words, block)


@given(WORDS, st.integers(1, 17), st.integers(1, 9))
def test_rows_are_folded_alike(words: np.ndarray, block: int, together: int) -> None:
    same((native.fold(words, block, together),), (plain.fold(words, block, together),))


@given(st.data(), WORDS, st.booleans())
def test_buckets_are_rolled_up_alike(data: st.DataObject, words: np.ndarray, told: bool) -> None:
    rows, steps = words.shape
    seen = data.draw(hnp.arrays(np.bool_, (rows, steps))) if told else None
    cuts = data.draw(st.sets(st.integers(1, max(1, steps - 1)))) - {steps}
    starts = np.array([0, *sorted(cuts), steps], np.int64)
    same(native.roll(words, seen, starts), plain.roll(words, seen, starts))


@given(hnp.arrays(np.uint32, 50, elements=BITS))
def test_keys_lie_as_the_numbers_do(words: np.ndarray) -> None:
    finite = words[np.isfinite(words.view(np.float32))]
    order = np.argsort(keys(finite))
    ordered = finite[order].view(np.float32)
    assert (ordered[1:] >= ordered[:-1]).all()
    assert words_of(keys(words)).tobytes() == words.tobytes()


def test_without_a_compiler_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("service/build_kernel.py", "client_sdk/build_kernel.py"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(ROOT / name, tmp_path / name)
    folder = tmp_path / native.LIBRARY.parent.relative_to(ROOT)
    folder.mkdir(parents=True)
    shutil.copy(native.LIBRARY.with_name("kernel.c"), folder)
    build = runpy.run_path(str(tmp_path / "service" / "build_kernel.py"))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert build["build"]() == "no C compiler found"
    monkeypatch.delenv("CC")
    assert build["build"]() == ""
    assert build["is_built"]()
    assert (folder / native.LIBRARY.name).is_file()
