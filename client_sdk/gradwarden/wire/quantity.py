"""What the columns of a matrix are called, what they mean, and how shards of a row join."""

from __future__ import annotations

from typing import Literal

QUANTITIES = ("l2", "absmax", "nan", "inf", "zero", "tiny")
"""Statistics of every captured gradient, in the order of a row: L2 norm, largest |g| (both NaN
or Inf where the gradient is), and the counts of NaN, of Inf, of exact zeros, and of |g| < 1e-8
(zeros included). A row whose counts are NaN was not observed: that parameter had no gradient."""

HISTOGRAM = tuple(f"hist_{k}" for k in range(16))
"""Counts of finite non-zero values by exponent: bin 0 holds |g| < 2^-38, bin k those in
[2^(4k-42), 2^(4k-38)), bin 15 those of 2^18 and above. Together with the counts of zeros, NaN
and Inf they sum to the number of elements."""

SLOW = ("weight_l2", "update_ratio")
"""Taken for a sixteenth of the parameters at a time: the weights' L2 norm at capture, and
||new - old|| / ||old|| of the weights over the optimizer's step."""

COLUMNS = (*QUANTITIES, *HISTOGRAM, *SLOW)
"""Every column that a matrix may have."""

CHECKSUMS = ("checksum", "weight_checksum")
"""64-bit columns sent when they were asked for: sums of the raw words of each gradient and of
each weight, modulo 2^64. They do not depend on order, and those of shards add up."""

Join = Literal["norm", "max", "sum", "ratio"]
JOINS: dict[str, Join] = {
    "l2": "norm",
    "absmax": "max",
    **dict.fromkeys(("nan", "inf", "zero", "tiny", *HISTOGRAM), "sum"),
    "weight_l2": "norm",
    "update_ratio": "ratio",
}
"""How the shards of one parameter become one value: the root of the sum of squares; the
largest, where NaN wins; the sum; the root of the mean square weighted by weight_l2 squared."""

SLICES = 16
"""The weights are read a slice at a time: rows whose index modulo 16 is the slice number."""
ROOT_WORDS = 1 + 2 * SLICES
"""64-bit words by which replicas are compared: the slice number, subtotals of the gradients'
checksums (row index modulo 16), and of the slice's weights ((row index // 16) modulo 16)."""


def histogram_edges() -> tuple[float, ...]:
    """The 15 inner edges of the histogram's bins, rising: 2^-38, 2^-34, ..., 2^18."""
    return tuple(2.0 ** (4 * k - 38) for k in range(15))
