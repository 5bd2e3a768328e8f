"""The CUDA engine: against a slow twin in Triton's interpreter, and compiled for real devices.

The interpreter runs the kernels' own text on the host, in a process of its own, since Triton
decides at its import which of the two it is. What only a GPU can show is skipped without one.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradwarden.stats import plain
from tests.needs import missing
from tests.sdk.conftest import Watch, batch, mlp
from tests.sdk.fake import FakeService

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WORD = {4: torch.int32, 2: torch.int16, 8: torch.int64}
on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device: run it on a machine with a GPU"
)


def _interpreted() -> None:
    os.environ["TRITON_INTERPRET"] = "1"


def _worker(setup: Callable[[], None] | None) -> Iterator[Executor]:
    if find_spec("triton") is None:
        if sys.platform != "linux" or platform.machine() != "x86_64":
            pytest.skip("needs Triton, which is not made for this machine")
        missing("Triton", 'pip install "triton>=3.3"')
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=setup) as pool:
        yield pool


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Executor]:
    """A process in which Triton interprets kernels, on host tensors."""
    yield from _worker(_interpreted)


@pytest.fixture
def ordinary() -> Iterator[Executor]:
    """A process in which Triton compiles kernels, or would if there was a device."""
    yield from _worker(None)


# -- what is measured ---------------------------------------------------------------------


def many(dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    """Tensors of every kind that a model may hold, the same in every process."""
    torch.manual_seed(5)
    normal = (torch.randn(70_000) * 1e-3).to(dtype)
    wide = torch.exp2(torch.rand(30_000) * 68 - 44).to(dtype)
    bad = normal.clone()
    bad[[5, 60_000]], bad[[7, 69_999]] = math.nan, -math.inf
    few = normal[:100].clone()
    few[::3], few[1], few[2] = 0.0, -0.0, 1e-9
    made = {
        "one": normal[:1].clone(),
        "scalar": normal[0].clone(),
        "empty": normal[:0].clone(),
        "matrix": normal[:2310].clone().view(70, 33),
        "a whole chunk": normal[:28_672].clone(),
        "a chunk and one": normal[:28_673].clone(),
        "several": normal.clone(),
        "every exponent": wide,
        "zeros and tiny": few,
        "all zero": torch.zeros(5000, dtype=dtype),
        "NaN and Inf": bad,
        "all infinite": torch.full((300,), math.inf, dtype=dtype),
        "squares overflow": torch.full((3000,), 3e25 if dtype != torch.float16 else 6e4).to(dtype),
        "squares underflow": torch.full((3000,), 3e-25).to(dtype),
    }
    moved = {name: tensor.to(device) for name, tensor in made.items()}
    base = normal.to(device)
    return moved | {
        "not aligned": base[3:50_004],
        "one, not aligned": base[1:2],
        "transposed": base[:6000].view(60, 100).t(),
        "with gaps": base[:20_000].view(100, 200)[::2, ::3],
        "channels last": base[:2400].view(4, 6, 10, 10).to(memory_format=torch.channels_last),
    }


def twin(tensor: Tensor, histogram: bool) -> tuple[float, list[float], int]:
    """The norm, the other 21 numbers and the checksum, one value at a time."""
    values = tensor.cpu().contiguous().view(-1)
    numbers = values.double().tolist()
    finite = [abs(v) for v in numbers if math.isfinite(v)]
    nans = sum(v != v for v in numbers)
    infs = len(numbers) - len(finite) - nans
    norm = math.nan if nans else math.inf if infs else math.sqrt(math.fsum(v * v for v in finite))
    peak = norm if nans or infs else max(finite, default=0.0)
    tiny = sum(v < 9.99999993922529e-09 for v in finite)  # 1e-8 as float32 has it
    bins = [math.nan] * 16
    if histogram:
        bins = [0.0] * 16
        for v in finite:
            if v:
                bins[min(max((math.frexp(v)[1] - 1 + 42) // 4, 0), 15)] += 1
    checksum = sum(values.view(WORD[values.element_size()]).tolist()) % 2**64
    return norm, [peak, nans, infs, finite.count(0.0), tiny, *bins], checksum


def assert_same(words: Tensor, tensors: dict[str, Tensor], histogram: bool) -> None:
    """Exactly the twin's numbers, and its norm within float32's rounding."""
    assert words.shape == (len(tensors), 23)
    for row, (name, tensor) in zip(words.cpu(), tensors.items(), strict=True):
        norm, others, checksum = twin(tensor, histogram)
        found = row[:22].view(torch.float64).tolist()
        assert found[1:] == pytest.approx(others, rel=0, abs=0, nan_ok=True), name
        assert found[0] == pytest.approx(norm, rel=1e-6, nan_ok=True), name
        assert int(row[22]) % 2**64 == checksum, name


# -- in the interpreter -------------------------------------------------------------------


def measured(dtype: torch.dtype, histogram: bool) -> tuple[Tensor, str]:
    from gradwarden.stats import triton

    found = triton.measure(list(many(dtype).values()), histogram)
    return found, triton.describe()


@pytest.mark.parametrize(
    ("dtype", "histogram"),
    [
        *((dtype, True) for dtype in DTYPES),
        (DTYPES[0], False),
        *(pytest.param(dtype, False, marks=pytest.mark.full) for dtype in DTYPES[1:]),
    ],
)
def test_the_kernels_agree_with_the_twin(
    interpreter: Executor, dtype: torch.dtype, histogram: bool
) -> None:
    words, engine = interpreter.submit(measured, dtype, histogram).result()
    assert engine.startswith("triton ")  # and nothing fell back
    assert_same(words, many(dtype), histogram)


def mixed() -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for dtype in (*DTYPES, torch.float64):
        made |= {f"{name} {dtype}": t for name, t in list(many(dtype).items())[3:10:3]}
    return dict(sorted(made.items()))  # the types alternate


def measured_mixed() -> tuple[Tensor, str]:
    from gradwarden.stats import triton

    return triton.measure(list(mixed().values()), True), triton.describe()


def test_types_are_mixed_and_rows_stay_in_order(interpreter: Executor) -> None:
    words, engine = interpreter.submit(measured_mixed).result()
    assert engine.startswith("triton ")
    assert_same(words, mixed(), True)


def measured_moving() -> list[Tensor]:
    from gradwarden.stats import triton

    return [triton.measure([torch.full((9,), float(k)), torch.ones(4)], False) for k in range(4)]


def test_tensors_that_move_are_followed(interpreter: Executor) -> None:
    rows = interpreter.submit(measured_moving).result()
    assert [r[:, 1].view(torch.float64).tolist() for r in rows] == [[k, 1.0] for k in range(4)]


def flags(dtype: torch.dtype) -> list[float]:
    from gradwarden.stats import triton

    found = []
    for at in (None, 0, 28_671, 28_672, 69_999):
        tensors = [torch.ones(5, dtype=dtype), torch.ones(70_000, dtype=dtype)]
        if at is not None:
            tensors[1][at] = math.nan if at % 2 else -math.inf
        found.append(triton.nonfinite(tensors).item())
    assert triton.describe().startswith("triton ")
    return found


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_one_bad_value_anywhere_is_flagged(interpreter: Executor, dtype: torch.dtype) -> None:
    assert interpreter.submit(flags, dtype).result() == [0.0, 1.0, 1.0, 1.0, 1.0]


# -- without a device ---------------------------------------------------------------------


def without_a_device() -> tuple[Tensor, Tensor, str, bool]:
    from gradwarden.stats import triton

    tensors = list(many(torch.float32).values())
    words, flag = triton.measure(tensors, True), triton.nonfinite(tensors)
    return words, flag, triton.describe(), triton.available(torch.device("cuda", 0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_kernels_that_cannot_run_leave_it_to_torch_and_say_why(ordinary: Executor) -> None:
    words, flag, engine, available = ordinary.submit(without_a_device).result()
    assert torch.equal(words, plain.measure(list(many(torch.float32).values()), True))
    assert flag.item() == 1.0
    assert re.match(r"torch \(\w+: .+\)$", engine)
    assert not available


def compiled(capability: int, kind: int) -> dict[str, str]:
    """The PTX of each kernel, made by Triton's own compiler for a device that is not here."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gradwarden.stats import triton_kernels as kernels

    tables = {"tensors": "*i64", "pointers": "*i64", "chunk_of": "*i32", "partials": "*i64"}
    found = {}
    for kernel, constants in (
        (kernels.chunk_stats, {"KIND": kind, "HIST": True}),
        (kernels.chunk_flag, {"KIND": kind}),
        (kernels.join_chunks, {"HIST": True, "BLOCK": 1024}),
    ):
        types = {**tables, "flag": "*fp32", "out": "*i64"}
        names = kernel.arg_names
        source = ASTSource(
            kernel,
            signature={n: types.get(n, "constexpr") for n in names},
            constexprs={(names.index(n),): v for n, v in constants.items()},
            attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n in types},
        )
        warps = 8 if "BLOCK" in constants else 4
        options = {"num_warps": warps, "enable_fp_fusion": True}
        target = GPUTarget("cuda", capability, 32)
        found[kernel.__name__] = triton.compile(source, target=target, options=options).asm["ptx"]
    return found


@pytest.mark.parametrize(
    ("capability", "kind"),
    [
        *((80, kind) for kind in range(3)),
        (90, 0),
        *(pytest.param(90, kind, marks=pytest.mark.full) for kind in (1, 2)),
    ],
)
def test_kernels_compile_and_read_sixteen_bytes_at_a_time(
    ordinary: Executor, capability: int, kind: int
) -> None:
    found = ordinary.submit(compiled, capability, kind).result()
    assert set(found) == {"chunk_stats", "chunk_flag", "join_chunks"}
    for name in ("chunk_stats", "chunk_flag"):
        wide = re.findall(r"ld\.global\S*\.v4\.[bu]32", found[name])
        assert len(wide) >= (8 if kind == 0 else 4), name  # a tile, 32 values a thread
        assert "atom" not in found[name]


def launched() -> tuple[int, int, int]:
    """How many kernels the background compiles, how many there are after launches, and those."""
    import triton.runtime
    from triton.backends.compiler import GPUTarget

    from gradwarden.stats import triton as engine
    from gradwarden.stats import triton_kernels as kernels

    class Driver:
        """Says which device there would be."""

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    triton.runtime.driver.set_active(Driver())
    for kind in range(3):
        for kernel, types, constants in engine._variants(kernels, kind):
            kernel.warmup(*types, grid=(1,), **constants)
    every = (kernels.chunk_stats, kernels.join_chunks, kernels.chunk_flag)
    launches = []

    def all_but_launch(kernel: Any) -> None:
        run = kernel.run

        def compiled_only(*arguments: Any, warmup: bool, **options: Any) -> Any:
            launches.append(kernel)
            return run(*arguments, warmup=True, **options)

        kernel.run = compiled_only

    for kernel in every:
        all_but_launch(kernel)
    before = sum(len(k.device_caches[0][0]) for k in every)
    for dtype in DTYPES:
        for size in (1, 16, 50, 28_672, 65_536):  # sizes that Triton likes to tell apart
            tensors = [torch.ones(size, dtype=dtype), torch.ones(size * 2, dtype=dtype)[1:]]
            for histogram in (True, False):
                engine.measure(tensors, histogram)
            engine.nonfinite(tensors)
    return before, sum(len(k.device_caches[0][0]) for k in every), len(launches)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_what_the_background_compiles_is_all_that_launches_need(ordinary: Executor) -> None:
    assert ordinary.submit(launched).result() == (11, 11, 3 * 5 * 5)


# -- on a GPU -----------------------------------------------------------------------------


@on_gpu
@pytest.mark.parametrize("histogram", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_the_kernels_agree_with_the_twin(dtype: torch.dtype, histogram: bool) -> None:
    from gradwarden.stats import triton

    tensors = many(dtype, "cuda")
    assert triton.prepare(torch.device("cuda"), dtype), triton.describe()
    words = triton.measure(list(tensors.values()), histogram)
    assert_same(words, tensors, histogram)
    assert torch.equal(words, triton.measure(list(tensors.values()), histogram))  # to the bit
    assert triton.nonfinite(list(tensors.values())).item() == 1.0
    assert triton.describe().startswith("triton ")


@on_gpu
def test_on_a_gpu_a_hundred_watched_steps_never_wait(service: FakeService, watch: Watch) -> None:
    from gradwarden.stats import triton

    assert triton.prepare(torch.device("cuda"), torch.float32), triton.describe()
    torch.manual_seed(1)
    model = mlp().cuda()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    inputs = [batch(step).cuda() for step in range(101)]
    monitor = watch(model, optimizer)
    for step, given in enumerate(inputs):
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            optimizer.zero_grad()
            model(given).pow(2).mean().backward()
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    monitor.finish()
    assert monitor.health()["disabled"] == {}
    assert [f.step for f in service.all_frames() if f.values] == list(range(101))


@on_gpu
def test_on_a_gpu_a_graph_is_captured_beside_a_watched_model(
    service: FakeService, watch: Watch
) -> None:
    model = mlp().cuda()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    given = batch(0).cuda()
    monitor = watch(model, optimizer)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        model(given).pow(2).mean().backward()
        optimizer.step()

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # in its strictest mode: any thread's query would break it
        step()
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    graph.replay()
    torch.cuda.synchronize()
    assert not torch.equal(before, nn.utils.parameters_to_vector(model.parameters()))
    monitor.finish()
    assert monitor.health()["disabled"] == {}
    assert len([f for f in service.all_frames() if f.values]) == 3
