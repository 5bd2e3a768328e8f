"""Every engine against a slow obvious twin, over dtypes, shapes, layouts and bad values."""

from __future__ import annotations

import functools
import math
import os
import runpy
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradwarden import stats, wire
from gradwarden.stats import native, plain
from gradwarden.stats.tensors import flat
from tests.needs import missing

ROOT = Path(__file__).parents[2]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
NAN, INF = math.nan, math.inf
Engine = Callable[[list[Tensor], bool], Tensor]
Finder = Callable[[list[Tensor]], Tensor]


def kernel() -> native.Kernel:
    """The C kernel, which a test run may not silently do without."""
    loaded = native.load()
    if loaded is None:
        missing("the C kernel", "python client_sdk/build_kernel.py, with a C compiler at hand")
    assert loaded is not None
    return loaded


def native_way(name: str) -> int:
    """The number of an instruction set, where this processor has it."""
    ways = kernel().ways
    if name not in ways:
        pytest.skip(f"this processor has no {name}")
    return ways.index(name)


@pytest.fixture(params=["torch", "blind torch", "base", "avx2", "avx512"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each way to measure: torch alone, as it goes on a device, and each instruction set."""
    name = request.param
    if name == "torch":
        return plain.measure
    if name == "blind torch":
        return plain.blind
    way = native_way(name)
    return lambda tensors, histogram: native.measure(tensors, histogram, way)


@pytest.fixture(params=["torch", "base", "avx2", "avx512"])
def finder(request: pytest.FixtureRequest) -> Finder:
    """Each way to find NaN and Inf."""
    if request.param == "torch":
        return plain.nonfinite
    way = native_way(request.param)
    return lambda tensors: native.nonfinite(tensors, way)


@functools.cache
def specimens(dtype: torch.dtype) -> dict[str, Tensor]:
    """Shapes, layouts and values that a gradient may have."""
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(17, 9, generator=generator).to(dtype)
    dirty = matrix.clone()
    dirty[0, :3] = torch.tensor([NAN, INF, -INF], dtype=dtype)
    infinite = matrix.clone()
    infinite[2, 2] = -INF
    info = torch.finfo(dtype)
    octaves = torch.arange(-50, 30, dtype=torch.float64)
    return {
        "matrix": matrix,
        "scalar": matrix[0, 0],
        "empty": matrix[:0],
        "one": matrix[:1, :1],
        "transposed": matrix.t(),
        "strided": matrix[::2, ::3],
        "column": matrix[:, 1],
        "expanded": matrix[:1].expand(5, 9),
        "expanded scalar": matrix[0, 0].expand(50),
        "channels last": torch.randn(2, 3, 4, 5, generator=generator)
        .to(dtype)
        .to(memory_format=torch.channels_last),
        "off alignment": matrix.reshape(-1)[3:],
        "zeros": torch.zeros(70, dtype=dtype),
        "signed zeros": torch.tensor([0.0, -0.0, 1.0], dtype=dtype),
        "dirty": dirty,
        "infinite": infinite,
        "all nan": torch.full((3,), NAN, dtype=dtype),
        "subnormal": torch.full((40,), info.smallest_normal / 4, dtype=dtype),
        "largest": torch.full((40,), info.max, dtype=dtype) * torch.tensor([1, -1] * 20),
        "edges": torch.cat([2.0**octaves, -(2.0**octaves) * 0.9999]).to(dtype),
        "about tiny": torch.tensor([1e-8, 9.9e-9, 1.01e-8, -1e-8, 0.0], dtype=dtype),
        "many": torch.randn(3 * 65536 + 77, generator=generator).to(dtype),
        "wild": torch.exp2(torch.rand(70_001, generator=generator) * 68 - 44).to(dtype),
    }


def twin(tensor: Tensor) -> tuple[list[float], int]:
    """One value at a time, in Python's own floats and integers."""
    values = [float(v) for v in tensor.reshape(-1).tolist()]
    words = tensor.contiguous().view(-1).view(WORDS[tensor.element_size()]).tolist()
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    tiny = float(torch.tensor(1e-8, dtype=dtype))
    bad = any(map(math.isnan, values))
    histogram = [0] * 16
    edges = wire.quantity.histogram_edges()
    for v in values:
        if v != 0 and math.isfinite(v):
            histogram[sum(abs(v) >= edge for edge in edges)] += 1
    row: list[float] = [
        NAN if bad else math.hypot(*values),
        NAN if bad else max(map(abs, values), default=0.0),
        sum(map(math.isnan, values)),
        sum(map(math.isinf, values)),
        sum(v == 0 for v in values),
        sum(abs(v) < tiny for v in values),
        *histogram,
    ]
    return row, (sum(words) + (1 << 63)) % (1 << 64) - (1 << 63)


@functools.cache
def twins(dtype: torch.dtype) -> dict[str, tuple[list[float], int]]:
    return {name: twin(tensor) for name, tensor in specimens(dtype).items()}


def parted(matrix: Tensor) -> tuple[list[list[float]], list[int]]:
    """Rows of numbers, and checksums."""
    assert matrix.dtype == torch.int64
    assert matrix.shape[1:] == (stats.WORDS,)
    numbers: list[list[float]] = matrix[:, :-1].contiguous().view(torch.float64).tolist()
    return numbers, matrix[:, -1].tolist()


def same(found: float, expected: float) -> bool:
    return found == expected or (math.isnan(found) and math.isnan(expected))


def agree(
    row: list[float], checksum: int, truth: tuple[list[float], int], elements: int, what: str
) -> None:
    """Counts, maximum and checksum to the bit, the norm as closely as promised."""
    expected, total = truth
    for name, f, e in zip((*wire.QUANTITIES, *wire.HISTOGRAM), row, expected, strict=True):
        if name == "l2":
            assert f == pytest.approx(e, rel=1e-6, nan_ok=True), (what, name)
        else:
            assert same(f, e), (what, name, f, e)
    assert checksum == total, (what, "checksum")
    assert sum(row[6:]) + row[2] + row[3] + row[4] == elements, what


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_equals_its_slow_twin(dtype: torch.dtype, engine: Engine) -> None:
    tensors = specimens(dtype)
    rows, checksums = parted(engine(list(tensors.values()), True))
    for (name, tensor), row, checksum in zip(tensors.items(), rows, checksums, strict=True):
        agree(row, checksum, twins(dtype)[name], tensor.numel(), name)


SPECIAL = [0.0, -0.0, NAN, INF, -INF, 1e-8, 2.0**-38, 2.0**18, 5e-324, 1e-45, 6e-8, 3e38, 1e300]


@given(
    values=st.lists(
        st.one_of(st.sampled_from(SPECIAL), st.floats(), st.floats(width=32), st.floats(width=16)),
        max_size=150,
    ),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=150, deadline=None)
def test_any_values_are_measured_right_by_all(values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values, dtype=torch.float64).to(dtype)
    engines: list[Engine] = [plain.measure, plain.blind]
    engines += [
        lambda t, h, way=way: native.measure(t, h, way) for way in range(len(kernel().ways))
    ]
    for measure in engines:
        (row,), (checksum,) = parted(measure([tensor], True))
        agree(row, checksum, twin(tensor), tensor.numel(), str(measure))


def test_without_a_histogram_its_columns_are_nan(engine: Engine) -> None:
    tensors = list(specimens(torch.float32).values())
    plainly, sums = parted(engine(tensors, False))
    fully, same_sums = parted(engine(tensors, True))
    assert sums == same_sums
    for less, more in zip(plainly, fully, strict=True):
        assert all(map(same, less[:6], more[:6]))
        assert all(map(math.isnan, less[6:]))


def test_dtypes_may_be_mixed_in_a_call(engine: Engine) -> None:
    tensors = [torch.full((n + 1,), n + 1.0, dtype=d) for n, d in enumerate(DTYPES)]
    rows, checksums = parted(engine(tensors, True))
    for tensor, row, checksum in zip(tensors, rows, checksums, strict=True):
        agree(row, checksum, twin(tensor), tensor.numel(), str(tensor.dtype))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_a_large_norm_is_as_good_as_a_small_one(dtype: torch.dtype, engine: Engine) -> None:
    tensor = (torch.randn(3_000_000, generator=torch.Generator().manual_seed(1)) * 1e-3).to(dtype)
    (row,), _ = parted(engine([tensor], False))
    assert row[0] == pytest.approx(float(tensor.double().norm()), rel=1e-6)


def test_threads_change_no_bit() -> None:
    kernel()
    tensors = [torch.randn(n) for n in (1_000_001, 10, 300_000)]
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(native.measure(tensors, True))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found)


def test_the_kernel_uses_the_openmp_runtime_of_torch() -> None:
    if "OpenMP" not in torch.__config__.parallel_info() or sys.platform != "linux":
        pytest.skip("this torch has no OpenMP of its own")
    assert kernel().spread


def test_python_threads_may_measure_at_once() -> None:
    kernel()
    tensors = [torch.randn(2_000_000), torch.randn(5)]
    expected = native.measure(tensors, True)
    wrong: list[Tensor] = []

    def work() -> None:
        for _ in range(20):
            found = native.measure(tensors, True)
            if not torch.equal(found, expected):
                wrong.append(found)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_forked_child_measures_too() -> None:
    """Its copy of the OpenMP runtime would hang; the child must come back all the same."""
    kernel()
    script = """
import os, torch
from gradwarden.stats import native
t = torch.ones(3_000_000)
expected = native.measure([t], True)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(native.measure([t], True), expected) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "client_sdk")}
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120, env=environment)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [0, 1, 31, 2048, 70_001, 500_000])
def test_one_bad_value_anywhere_is_found(dtype: torch.dtype, size: int, finder: Finder) -> None:
    largest = torch.full((size,), torch.finfo(dtype).max, dtype=dtype)
    others = [torch.ones(5), largest]
    assert finder(others).tolist() == [0.0]
    for at in {0, size // 2, size - 1} if size else ():
        for bad in (NAN, INF, -INF):
            dirty = largest.clone()
            dirty[at] = bad
            found = finder([torch.ones(5), dirty])
            assert found.dtype == torch.float32
            assert found.tolist() == [1.0], (at, bad)


def test_nothing_makes_an_empty_matrix() -> None:
    assert stats.measure([], True).shape == (0, stats.WORDS)
    assert stats.nonfinite([]).tolist() == [0.0]


def test_gradients_are_only_read(engine: Engine) -> None:
    tensors = list(specimens(torch.float32).values())
    before = [(t.clone(), t._version) for t in tensors]
    engine(tensors, True)
    for tensor, (values, version) in zip(tensors, before, strict=True):
        assert tensor._version == version
        assert torch.equal(tensor.contiguous().view(torch.int32), values.view(torch.int32))


def test_gradients_that_need_gradients_are_measured() -> None:
    gradient = torch.randn(10, requires_grad=True)
    for measure in (stats.measure, plain.measure):
        (row,), _ = parted(measure([gradient], True))
        assert row[1] == float(gradient.detach().abs().max())


def test_dense_memory_is_not_copied() -> None:
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    for dense in (image, torch.randn(4, 6).t(), torch.randn(3, 4, 5).permute(2, 0, 1)):
        assert flat(dense).data_ptr() == dense.data_ptr()
        assert sorted(flat(dense).tolist()) == sorted(dense.reshape(-1).tolist())
    gaps = torch.randn(4, 6)[:, ::2]
    assert flat(gaps).is_contiguous()
    assert flat(gaps).tolist() == gaps.reshape(-1).tolist()


def test_repeated_indices_of_a_sparse_gradient_add_up() -> None:
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[1, 1, 3]]), torch.tensor([3.0, 1.0, -3.0]), (9,), check_invariants=True
    )
    values = stats.local(sparse)
    assert values is not None
    (row,), _ = parted(stats.measure([values], True))
    assert row[:6] == [5.0, 4.0, 0, 0, 0, 0]


def test_what_cannot_be_measured_is_refused() -> None:
    assert stats.local(torch.ones(2, dtype=torch.complex64)) is None
    assert stats.local(torch.ones(2, dtype=torch.float8_e5m2)) is None
    plainly = torch.ones(2)
    assert stats.local(plainly) is plainly


def test_a_distributed_gradient_gives_its_shard(tmp_path: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        whole = torch.arange(12.0).view(4, 3)
        sharded = distribute_tensor(whole, init_device_mesh("cpu", (1,)), [Shard(0)])
        shard = stats.local(sharded)
        assert type(shard) is Tensor
        (row,), _ = parted(stats.measure([shard], True))
        assert row[0] == pytest.approx(float(whole.norm()))
    finally:
        dist.destroy_process_group()


def test_without_a_compiler_there_is_a_reason_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "client_sdk", tmp_path / "client_sdk")
    build = runpy.run_path(str(tmp_path / "client_sdk" / "build_kernel.py"))
    (tmp_path / "client_sdk/gradwarden/stats/kernel.so").unlink(missing_ok=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    wheel: dict[str, object] = {"force_include": {}}
    assert build["build"]() == "no C compiler found"
    build["into_wheel"]("standard", wheel)
    assert wheel == {"force_include": {}}  # a pure wheel, as if there were no kernel
    monkeypatch.setenv("CC", "false")
    assert build["build"]() == "no C compiler found"


def test_a_kernel_of_another_version_is_not_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel()
    monkeypatch.setattr(native, "_CALLS", -1)
    native.load.cache_clear()
    try:
        assert not native.available()
        assert stats.describe() == "torch"
        assert stats.measure([torch.ones(3)], False).shape == (1, stats.WORDS)
    finally:
        monkeypatch.undo()
        native.load.cache_clear()
    assert stats.describe().startswith("native ")
