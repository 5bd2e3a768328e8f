"""The engine for CUDA devices: one kernel over all tensors of a type, one to join its numbers.

Nothing here waits for the device, and the kernels are compiled by a thread of their own: until
they are there, and wherever they fail, plain torch operations measure. Tables of what is
measured stay on the device; only addresses that changed are sent again.
"""

from __future__ import annotations

import atexit
import importlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from gradwarden.collect import relaxed, send
from gradwarden.stats import plain
from gradwarden.stats.tensors import WORDS, flat

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Types that the kernels read; float64 is measured by plain torch operations beside them."""
_WIDTHS = (4, 2, 2)
_MOST = 64
"""Tables kept: optimizers, their rotating slices of weights, and buckets of a reducer."""
_READ = {"num_warps": 4, "enable_fp_fusion": True}
"""Options of the kernels that read gradients: as many threads as their tables are made for."""
_JOIN = {"num_warps": 8, "enable_fp_fusion": True, "BLOCK": 1024}

_lock, _compiling = threading.RLock(), threading.Lock()
_ending = threading.Event()
_states: dict[tuple[torch.device, int], bool] = {}
"""Whether the kernels of a device and type are there; False while they are being compiled."""
_tables: OrderedDict[Any, _Table] = OrderedDict()
_failure: str | None = None


def available(device: torch.device) -> bool:
    """Whether this engine measures tensors of the device."""
    return device.type == "cuda" and _failure is None and _installed()


def describe() -> str:
    """``triton 3.9.0``, or ``torch`` and why."""
    if _failure is not None or not _installed():
        return f"torch ({_failure or 'triton is not installed'})"
    try:
        return f"triton {version('triton')}"
    except PackageNotFoundError:  # a build under another name
        return "triton"


def prepare(device: torch.device, dtype: torch.dtype) -> bool:
    """Compile the kernels for tensors of one type now, in this thread; True when they are there.

    Measuring does so by itself in the background.
    """
    device = torch.empty(0, device=device).device  # with its number
    with _lock:
        _states.setdefault((device, KINDS[dtype]), False)
    _compile(device, KINDS[dtype])
    return _states[device, KINDS[dtype]]


def measure(tensors: Sequence[Tensor], histogram: bool) -> Tensor:
    """[n, 23] int64 on the tensors' device, as :func:`gradwarden.stats.measure` says."""
    if not tensors or _capturing(tensors[0].device):
        return plain.measure(tensors, histogram)
    try:
        return _measure(tensors, histogram)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        _fail(f"{type(error).__name__}: {error}")
        return plain.measure(tensors, histogram)


def nonfinite(tensors: Sequence[Tensor]) -> Tensor:
    """[1] float32 on the tensors' device, as :func:`gradwarden.stats.nonfinite` says."""
    if not tensors or _capturing(tensors[0].device):
        return plain.nonfinite(tensors)
    try:
        return _nonfinite(tensors)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        _fail(f"{type(error).__name__}: {error}")
        return plain.nonfinite(tensors)


def _capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured: a replay would read addresses long gone."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _measure(tensors: Sequence[Tensor], histogram: bool) -> Tensor:
    held = [t if t.is_contiguous() else flat(t) for t in tensors]
    device = held[0].device
    with torch.no_grad(), _lock, _on(device):
        table = _table(held, device)
        out = torch.empty((len(held), WORDS), dtype=torch.int64, device=device)
        for group in table.groups:
            group.measure(held, out, histogram)
        if table.rest is not None:
            out[table.rest] = plain.measure([held[i] for i in table.others], histogram)
    return out


def _nonfinite(tensors: Sequence[Tensor]) -> Tensor:
    held = [t if t.is_contiguous() else flat(t) for t in tensors]
    device = held[0].device
    with torch.no_grad(), _lock, _on(device):
        table = _table(held, device)
        flag = torch.zeros(1, device=device)
        for group in table.groups:
            group.flag(held, flag)
        if table.others:
            flag = torch.maximum(flag, plain.nonfinite([held[i] for i in table.others]))
    return flag


class _Group:
    """The tensors of one type, as the kernels find them: tables on the device, and scratch."""

    def __init__(self, kind: int, index: list[int], held: list[Tensor], device: torch.device):
        self._kernels = _kernels()
        self._kind, self._index = kind, index
        sizes = [held[i].numel() for i in index]
        # A tensor that is not aligned is read from an aligned address a little below it.
        extra, chunk = 16 // _WIDTHS[kind] - 1, int(self._kernels.CHUNK)
        counts = [-(-(size + extra) // chunk) if size else 0 for size in sizes]
        firsts = [0, *accumulate(counts)][:-1]
        table = list(zip(sizes, index, firsts, counts, strict=True))
        chunk_of = torch.repeat_interleave(_host(counts)).to(torch.int32)
        self._chunks = sum(counts)
        self._tensors, self._chunk_of = send(_host(table), device), send(chunk_of, device)
        self._pointers: Tensor | None = None
        self._addresses: list[int] = []
        self._partials: Tensor | None = None

    def measure(self, held: list[Tensor], out: Tensor, histogram: bool) -> None:
        """Write the rows of these tensors."""
        if self._partials is None:
            size = max(1, self._chunks) * int(self._kernels.WORDS)
            self._partials = torch.empty(size, dtype=torch.int64, device=out.device)
        pointers, partials = self._point(held, out.device), self._partials
        if self._chunks:
            launch = self._kernels.chunk_stats[(self._chunks,)]
            tables = (self._tensors, pointers, self._chunk_of)
            launch(*tables, partials, KIND=self._kind, HIST=histogram, **_READ)
        launch = self._kernels.join_chunks[(len(self._index),)]
        launch(self._tensors, partials, out, HIST=histogram, **_JOIN)

    def flag(self, held: list[Tensor], flag: Tensor) -> None:
        """Write 1.0 if any value is not finite."""
        if self._chunks:
            pointers = self._point(held, flag.device)
            launch = self._kernels.chunk_flag[(self._chunks,)]
            launch(self._tensors, pointers, self._chunk_of, flag, KIND=self._kind, **_READ)

    def _point(self, held: list[Tensor], device: torch.device) -> Tensor:
        """The tensors' addresses on the device, sent again only when one of them moved."""
        addresses = [held[i].data_ptr() for i in self._index]
        if self._pointers is None or addresses != self._addresses:
            self._pointers, self._addresses = send(_host(addresses), device), addresses
        return self._pointers


class _Table:
    """What one call measures, by type; ``others`` are left to plain torch operations."""

    def __init__(self, held: list[Tensor], ready: Sequence[int], device: torch.device) -> None:
        kinds = [KINDS.get(t.dtype, -1) for t in held]
        self.others = [i for i, kind in enumerate(kinds) if kind not in ready]
        self.groups = [
            _Group(kind, [i for i, k in enumerate(kinds) if k == kind], held, device)
            for kind in ready
        ]
        self.rest = send(_host(self.others), device) if self.others else None


def _table(held: list[Tensor], device: torch.device) -> _Table:
    """The table of these sizes and types. One for each stream, since its scratch is reused."""
    dtypes = tuple([t.dtype for t in held])
    ready = tuple(k for k in sorted({KINDS.get(d, -1) for d in dtypes}) if _ready(device, k))
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    key = (device, stream, ready, dtypes, tuple([t.numel() for t in held]))
    table = _tables.get(key)
    if table is None:
        table = _tables[key] = _Table(held, ready, device)
        if len(_tables) > _MOST:
            _tables.popitem(last=False)
    _tables.move_to_end(key)
    return table


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """The device made current: that is where a kernel is launched."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _host(values: Sequence[Any], dtype: torch.dtype = torch.int64) -> Tensor:
    """Numbers as a tensor of the host, whatever the default device is."""
    return torch.tensor(values, dtype=dtype, device="cpu")


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def _kernels() -> Any:
    return importlib.import_module("gradwarden.stats.triton_kernels")


def _ready(device: torch.device, kind: int) -> bool:
    """Whether the kernels of this type are there; the first question has them compiled."""
    if kind < 0:
        return False
    if device.type != "cuda":  # Triton's interpreter
        return True
    found = _states.get((device, kind))
    if found is None:
        _states[device, kind] = found = False
        work = threading.Thread(target=_compile, args=(device, kind), daemon=True)
        work.name = "gradwarden-compile"
        work.start()
    return found


def _compile(device: torch.device, kind: int) -> None:
    """Compile and load every variant, so that no launch has to."""
    try:
        with _compiling, _on(device), relaxed():
            for variant, arguments, options in _variants(_kernels(), kind):
                if _ending.is_set():
                    return
                variant.warmup(*arguments, grid=(1,), **options).run  # noqa: B018 - it loads
        _states[device, kind] = True
    except Exception as error:
        _fail(f"{type(error).__name__}: {error}")


def _variants(kernels: Any, kind: int) -> Iterator[tuple[Any, tuple[torch.dtype, ...], Any]]:
    """Each kernel with the types of its tensors and its options, as it is launched."""
    tables = (torch.int64, torch.int64, torch.int32)
    for histogram in (False, True):
        options = {"KIND": kind, "HIST": histogram, **_READ}
        yield kernels.chunk_stats, (*tables, torch.int64), options
        yield kernels.join_chunks, (torch.int64,) * 3, {"HIST": histogram, **_JOIN}
    yield kernels.chunk_flag, (*tables, torch.float32), {"KIND": kind, **_READ}


@atexit.register
def _end() -> None:
    """Let a compilation end: a thread must not be inside the compiler when Python goes."""
    _ending.set()
    with _compiling:
        pass


def _fail(reason: str) -> None:
    """Leave CUDA tensors to plain torch operations for good, and keep the first reason."""
    global _failure
    if _failure is None:
        _failure = " ".join(reason.split())[:200]
