"""Every quantity against its slow obvious twin, over dtypes, shapes and bad values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gradwarden import quantities, wire
from gradwarden.collect import to_bytes

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
NAN, INF = math.nan, math.inf


def shapes(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(17, 9, generator=generator).to(dtype)
    dirty = matrix.clone()
    dirty[0, :3] = torch.tensor([NAN, INF, -INF], dtype=dtype)
    infinite = matrix.clone()
    infinite[2, 2] = -INF
    return {
        "matrix": matrix,
        "scalar": matrix[0, 0],
        "empty": matrix[:0],
        "transposed": matrix.t(),
        "strided": matrix[::2, ::3],
        "zeros": torch.zeros(7, dtype=dtype),
        "signed zeros": torch.tensor([0.0, -0.0, 1.0], dtype=dtype),
        "dirty": dirty,
        "infinite": infinite,
        "all nan": torch.full((3,), NAN, dtype=dtype),
        "tiny": torch.full((4,), torch.finfo(dtype).tiny, dtype=dtype),
    }


def twin(tensor: Tensor) -> list[float]:
    """One value at a time, in Python's own floats."""
    values = [float(v) for v in tensor.reshape(-1).tolist()]
    norm = math.sqrt(sum(v * v for v in values))
    peak = NAN if any(map(math.isnan, values)) else max(map(abs, values), default=0.0)
    return [
        norm,
        peak,
        sum(map(math.isnan, values)),
        sum(map(math.isinf, values)),
        sum(v == 0 for v in values),
    ]


def near(found: list[float], expected: list[float]) -> None:
    assert len(found) == len(expected)
    for name, f, e in zip(wire.QUANTITIES, found, expected, strict=True):
        assert f == pytest.approx(e, rel=1e-5, nan_ok=True), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_matrix_equals_its_slow_twin(dtype: torch.dtype) -> None:
    tensors = shapes(dtype)
    matrix = quantities.measure(list(tensors.values()))
    assert matrix.shape == (len(tensors), len(wire.QUANTITIES))
    assert matrix.dtype == torch.float32
    for row, (name, tensor) in zip(matrix.tolist(), tensors.items(), strict=True):
        if name != "tiny":  # subnormal squares vanish in float32; the next test holds its peak
            near(row, twin(tensor))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_unit_alone_equals_the_matrix(dtype: torch.dtype) -> None:
    tensors = list(shapes(dtype).values())
    units = [quantities.l2, quantities.absmax, quantities.nan, quantities.inf, quantities.zero]
    together = torch.stack([unit(tensors) for unit in units], dim=1)
    torch.testing.assert_close(together, quantities.measure(tensors), equal_nan=True)


@pytest.mark.parametrize("dirt", ["clean", "zeros", "nan and zeros", "strided"])
def test_a_large_tensor_is_scanned_in_pieces(dirt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantities, "_PIECE", 1 << 17)
    tensor = torch.randn(700_001) + 10
    if dirt != "clean":
        tensor[[5, 300_000, 700_000]] = 0.0
    if dirt == "nan and zeros":
        tensor[6] = NAN
    if dirt == "strided":
        tensor = tensor[::2]
    row = quantities.measure([tensor])[0].tolist()
    near([twin(tensor)[0], *row[1:]], twin(tensor))


def test_half_types_are_summed_in_float32() -> None:
    tensor = torch.full((4096,), 0.125, dtype=torch.bfloat16)
    assert float(quantities.l2([tensor])[0]) == pytest.approx(8.0, rel=1e-6)


def test_an_overflowing_norm_of_finite_values_counts_no_inf() -> None:
    row = quantities.measure([torch.full((4,), 3e30)])[0].tolist()
    assert row[0] == INF
    assert row[1:] == [pytest.approx(3e30), 0, 0, 0]


def test_mixed_dtypes_keep_their_rows() -> None:
    tensors = [torch.ones(4, dtype=d) * (i + 1) for i, d in enumerate(DTYPES)]
    assert quantities.measure(tensors)[:, 1].tolist() == [1, 2, 3, 4]
    assert quantities.l2(tensors).tolist() == [2, 4, 6, 8]


def test_repeated_indices_of_a_sparse_gradient_add_up() -> None:
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[1, 1, 3]]), torch.tensor([3.0, 1.0, -3.0]), (9,), check_invariants=True
    )
    values = quantities.local(sparse)
    assert values is not None
    near(quantities.measure([values])[0].tolist(), [5.0, 4.0, 0, 0, 0])


def test_complex_gradients_are_not_measured() -> None:
    assert quantities.local(torch.ones(2, dtype=torch.complex64)) is None


def test_no_tensors_make_an_empty_matrix() -> None:
    assert quantities.measure([]).shape == (0, len(wire.QUANTITIES))


def test_bytes_are_little_endian_rows() -> None:
    import struct

    matrix = torch.tensor([[1.0, -0.0], [NAN, INF]]).t()
    raw = struct.unpack("<4f", to_bytes(matrix))
    assert raw[0] == 1.0
    assert math.isnan(raw[1])
    assert math.copysign(1, raw[2]) == -1
    assert raw[3] == INF


@pytest.mark.parametrize("dirt", [math.nan, math.inf, 3e38])
def test_what_stands_in_for_a_quiet_ranks_matrix_hides_nothing(dirt: float) -> None:
    clean = [torch.randn(4, 3), torch.randn(7)]
    stand_in = quantities.finite(clean)
    assert stand_in is not None
    torch.testing.assert_close(stand_in[:, 0], quantities.measure(clean)[:, 0])
    assert bool(torch.isfinite(stand_in).all())
    assert quantities.finite([clean[0], torch.full((5,), dirt)]) is None
    assert quantities.finite([]) is None
