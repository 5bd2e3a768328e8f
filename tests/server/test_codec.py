"""Packed numbers come back bit for bit, and damage is seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradwarden_server.store.columns import codec

_SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=40)
_BITS = st.one_of(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 0x7FC00000, 0x7F800000, 0xFF800000, 0x80000000, 0x7FC00001, 1]),
)


@given(hnp.arrays(np.uint32, _SHAPES, elements=_BITS))
def test_any_bits_come_back(words: np.ndarray) -> None:
    found = codec.unpack(codec.pack(words.view(np.float32)))
    assert found.shape == words.shape
    np.testing.assert_array_equal(found.view(np.uint32), words)


@given(hnp.arrays(np.uint64, _SHAPES, elements=st.integers(0, 2**64 - 1)))
def test_words_come_back(words: np.ndarray) -> None:
    np.testing.assert_array_equal(codec.unpack_words(codec.pack_words(words)), words)


def test_a_column_with_holes_costs_little_more_than_what_it_holds() -> None:
    rng = np.random.default_rng(1)
    values = np.full((16, 1024), np.nan, np.float32)
    values[:, ::16] = rng.lognormal(size=(16, 64))
    dense = codec.pack(np.ascontiguousarray(values[:, ::16]))
    assert len(codec.pack(values)) < len(dense) + 16 * 1024 / 8
    np.testing.assert_array_equal(codec.unpack(codec.pack(values)), values)


def test_a_column_that_never_changes_costs_its_value() -> None:
    assert len(codec.pack(np.full((16, 1024), 3.5, np.float32))) < 20


@pytest.mark.parametrize("cut", [0, 3, 9, 40, -1])
def test_what_is_cut_short_is_refused(cut: int) -> None:
    body = codec.pack(np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32))
    with pytest.raises(codec.Corrupt):
        codec.unpack(body[:cut])


@given(
    hnp.arrays(np.uint32, (4, 9), elements=_BITS),
    st.integers(4, 20),
)
def test_rounding_keeps_within_its_bound(words: np.ndarray, bits: int) -> None:
    values = words.view(np.float32)
    found = codec.rounded(values, bits)
    same = ~np.isfinite(values)
    np.testing.assert_array_equal(found.view(np.uint32)[same], words[same])
    normal = np.isfinite(values) & (np.abs(values) >= np.finfo(np.float32).tiny)
    with np.errstate(all="ignore"):
        exact, near = values[normal].astype(np.float64), found[normal].astype(np.float64)
    # The largest numbers are cut off, not rounded up to infinity.
    bound = np.where(np.abs(exact) > 3.3e38, 2.0**-bits, 2.0 ** -(bits + 1))
    assert (np.abs(near - exact) <= np.abs(exact) * bound).all()
    assert np.isfinite(near).all()
