"""What chosen modules put out in training: largest value, share of zeros, share at the limits.

Under ``torch.compile`` the measuring is one opaque operator in the graph: no graph break, and
``fullgraph=True`` works. Its input must then exist in memory, so that it may end a fusion.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import itertools
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradwarden.collect import Collector, Pending
from gradwarden.errors import ConfigurationError, Faults
from gradwarden.frames import FrameBook
from gradwarden.instruments.left_behind import LeftBehind
from gradwarden.layout import clean

NAME = "activations"
MOST = 48
"""Modules at most: each adds three scalars to every captured step."""
COLUMNS = ("absmax", "zero_ratio", "saturation_ratio")
NEAR = 0.01
"""How near to a limit is saturated: 1 % of the limits' distance, or of the largest number."""
PIECE = 1 << 22
"""Elements measured at a time: an activation's temporaries must not crowd out the training."""
_LONGEST = 100
"""Characters of a module's name in a scalar's; its end says more than its beginning."""
_numbers = itertools.count()
_live: weakref.WeakValueDictionary[int, Activations] = weakref.WeakValueDictionary()
_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)
_in_backward: Callable[[], int] = getattr(torch._C, "_current_graph_task_id", lambda: -1)


def chosen(model: nn.Module, patterns: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """The modules below the root whose name matches one of the globs, in the model's order.

    A name is that of ``named_modules`` without the wrappers of DDP, FSDP and torch.compile;
    ``*`` matches dots too.

    Raises:
        ConfigurationError: a glob matches nothing, or all together more than 48 modules.
    """
    named = [(clean(f"{name}.")[:-1], module) for name, module in model.named_modules() if name]
    named = [(name, module) for name, module in named if name]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name, _ in named):
            close = difflib.get_close_matches(pattern, [name for name, _ in named], 3, 0.3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise ConfigurationError(f"activations={pattern!r}: no module has such a name{hint}")
    found = [(n, m) for n, m in named if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
    if len(found) > MOST:
        first = ", ".join(name for name, _ in found[:3])
        raise ConfigurationError(
            f"activations={list(patterns)!r}: {len(found)} modules match ({first}, ...) and "
            f"{MOST} may; name the ones that matter, such as 'blocks.0.*'"
        )
    return found


def limits(module: nn.Module) -> tuple[float, float] | None:
    """The values between which a module's output is bound by what it computes, if it is.

    A lower limit of 0 that a rectifier sets is no limit here: those are its zeros.
    """
    if isinstance(module, nn.ReLU6):
        return (-torch.inf, float(module.max_val))
    if isinstance(module, nn.Hardtanh):
        return (float(module.min_val), float(module.max_val))
    if isinstance(module, (nn.Tanh, nn.Softsign)):
        return (-1.0, 1.0)
    if isinstance(module, (nn.Sigmoid, nn.Hardsigmoid)):
        return (0.0, 1.0)
    return None


class Activations:
    """Watches the outputs of chosen modules in the training forwards of captured steps.

    Scalars, per module: ``activation_absmax`` is the largest |x|, NaN if any is, over the
    micro-batches of a step; ``activation_zero_ratio`` the share of values that are 0;
    ``activation_saturation_ratio`` the share within 1 % of the module's limits (see
    :func:`limits`), or, where it has none, within 1 % of the dtype's largest number. Shares
    are means over the micro-batches. Of an output with several tensors the first counts.
    """

    name = NAME

    def __init__(
        self,
        model: nn.Module,
        patterns: Sequence[str],
        faults: Faults,
        captures: Callable[[], bool] = lambda: True,
        book: FrameBook | None = None,
    ) -> None:
        """``captures`` tells, at the end of a step, whether the next one is captured.

        ``book`` is told what measuring costs.

        Raises:
            ConfigurationError: see :func:`chosen`.
        """
        self._root, self.faults, self._captures = model, faults, captures
        self._book = book
        self._modules = chosen(model, patterns)
        self._limits = [limits(module) for _, module in self._modules]
        self._collector = Collector(64)
        self._key = next(_numbers)
        self._armed = False
        self._boards: dict[torch.device, Tensor] = {}
        self._seen: dict[int, torch.device] = {}
        self._rerun: set[int] = set()
        self._handles: list[Any] = []

    def start(self) -> None:
        """Hook the chosen modules; the first step is measured if it is captured."""
        _register()
        _live[self._key] = self
        parameter = next(self._root.parameters(), None)
        device = parameter.device if parameter is not None else torch.device("cpu")
        board = torch.zeros(1, device=device)
        for row, (_, module) in enumerate(self._modules):
            hook = _Hook(self._root, module, board, self._key, row)
            self._handles.append(module.register_forward_hook(hook))
        self._armed = self._captures()

    def step_ended(self) -> Mapping[str, float | Pending]:
        """The scalars of the modules that ran in this step; empty where it was not measured."""
        found = self._read() if self._seen else {}
        self._seen, self._rerun = {}, set()
        self._armed = self._captures()
        return found

    def stop(self) -> None:
        """Undo every hook."""
        while self._handles:
            self._handles.pop().remove()
        _live.pop(self._key, None)

    def status(self) -> str:
        """``on``, with how many modules are watched."""
        return f"on, {len(self._modules)} modules"

    def hear(self, row: int, output: Tensor) -> None:
        """A chosen module put this out; called in eager code and by the compiled operator."""
        if self._armed:
            began = time.perf_counter()
            self.faults.quiet(NAME, self._measure, row, output)
            if self._book is not None:
                self._book.overhead += time.perf_counter() - began

    def _measure(self, row: int, output: Tensor) -> None:
        again = _in_backward() != -1  # activation checkpointing runs the module once more
        if again and row in self._seen and row not in self._rerun:
            return
        values = output.detach()
        values = getattr(values, "_local_tensor", values)
        if values.layout != torch.strided or not values.numel() or values.is_meta:
            return
        if values.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        with torch.no_grad():
            self._add(row, values)
        self._seen[row] = values.device
        if again:
            self._rerun.add(row)  # its first run had no gradients and was not heard

    def _add(self, row: int, values: Tensor) -> None:
        board = self._boards.get(values.device)
        if board is None:
            board = torch.zeros(len(self._modules), 4, dtype=torch.float64, device=values.device)
            self._boards[values.device] = board
        peak, zero, limit = measure(values, self._limits[row])
        board[row, 0] = torch.maximum(board[row, 0], peak)
        board[row, 1] += zero
        board[row, 2] += limit
        board[row, 3] += 1

    def _read(self) -> dict[str, float | Pending]:
        found: dict[str, float | Pending] = {}
        for device, board in self._boards.items():
            rows = sorted(row for row, where in self._seen.items() if where == device)
            pending = self._collector.fetch(board.clone()) if rows else None
            board.zero_()
            if pending is None:
                continue
            sheet = _Sheet(pending)
            for row, (column, what) in itertools.product(rows, enumerate(COLUMNS)):
                cell = _Cell(sheet, row, column)
                name = f"activation_{what}/{self._modules[row][0][-_LONGEST:]}"
                found[name] = float(cell.peek()) if pending.at_hand else cell
        return found


def measure(values: Tensor, bounds: tuple[float, float] | None) -> tuple[Tensor, Tensor, Tensor]:
    """Largest |x| (NaN if any is NaN), share of zeros and share at the limits, on the device.

    ``values``: any floating dtype and shape, at least one element. Three 0-d tensors.
    """
    low, high = _edges(values.dtype, bounds)
    peaks, counts = [], []
    for piece in _pieces(values):
        piece = piece.float() if piece.element_size() == 1 else piece
        least, most = piece.aminmax()
        peaks.append(torch.maximum(-least, most).double())
        zeros = piece.numel() - piece.count_nonzero()
        counts += [zeros, (piece >= high).count_nonzero() + (piece <= low).count_nonzero()]
    shares = torch.stack(counts).view(-1, 2).sum(0).double() / values.numel()
    return torch.stack(peaks).amax(), shares[0], shares[1]


def _pieces(values: Tensor) -> Sequence[Tensor]:
    """Views of the values, so small that what is computed of one of them takes little memory."""
    count = -(-values.numel() // PIECE)
    if count == 1:
        return (values,)
    flat = values.view(-1) if values.is_contiguous() else values
    return flat.chunk(count, max(range(flat.dim()), key=flat.size))


@functools.cache
def _edges(dtype: torch.dtype, bounds: tuple[float, float] | None) -> tuple[float, float]:
    """From which values on an output is at its limits, as numbers of its own dtype."""
    largest = torch.finfo(dtype).max
    low, high = bounds if bounds is not None else (-largest, largest)
    margin = NEAR * (high if bounds is None or low == -torch.inf else high - low)
    edges = torch.tensor([low + margin, high - margin], dtype=torch.float64, device="cpu").to(dtype)
    return float(edges[0]), float(edges[1])


class _Hook(LeftBehind):
    """Hands on what one module puts out, if it is a training forward."""

    def __init__(
        self, root: nn.Module, module: nn.Module, board: Tensor, key: int, row: int
    ) -> None:
        self.root, self.module, self.board = root, module, board
        self.key, self.row = key, row

    def __call__(self, module: nn.Module, _: Any, output: Any) -> None:
        try:
            self.hear(module, output)
        except Exception as error:
            _fail(self.key, error)

    def hear(self, module: nn.Module, output: Any) -> None:
        """In eager code at once; in a graph by the operator that stands for it."""
        if _exporting() or not (torch.is_grad_enabled() and self.root.training):
            return
        tensor = _first(output)
        if tensor is None:
            return
        if torch.compiler.is_compiling():
            torch.ops.gradwarden.observe(tensor.detach(), self.board, self.key, self.row)
        elif module is self.module and torch._C._get_tracing_state() is None:
            # A data-parallel replica is another module with our hook, and is left out.
            live = _live.get(self.key)
            if live is not None:
                live.hear(self.row, tensor)


def _fail(key: int, error: Exception) -> None:
    live = _live.get(key)
    if live is not None:
        live.faults.record(NAME, error)


def _first(output: Any) -> Tensor | None:
    """The first floating tensor of an output: itself, or inside tuples, lists and dicts."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    inside = output.values() if isinstance(output, dict) else output
    if isinstance(inside, (tuple, list)) or isinstance(output, dict):
        for part in inside:
            found = _first(part)
            if found is not None:
                return found
    return None


@functools.cache
def _register() -> None:
    """Define the operator that stands for the hook in a compiled graph.

    It claims to write to ``board``, so that no compiler drops it as a computation without use.
    """
    torch.library.define(
        "gradwarden::observe", "(Tensor x, Tensor(a!) board, int key, int row) -> ()"
    )

    @torch.library.impl("gradwarden::observe", "CompositeExplicitAutograd")
    def observe(x: Tensor, board: Tensor, key: int, row: int) -> None:
        live = _live.get(key)
        if live is not None:
            try:
                live.hear(row, x)
            except Exception as error:
                live.faults.record(NAME, error)

    @torch.library.register_fake("gradwarden::observe")  # type: ignore[untyped-decorator]
    def fake(x: Tensor, board: Tensor, key: int, row: int) -> None:
        return


def _cell(sheet: list[list[float]], row: int, column: int) -> float:
    """One number of a read board; shares are sums over as many micro-batches as its last says."""
    value, times = sheet[row][column], sheet[row][3]
    return value / times if column and times else value


_NOTHING = torch.empty(0, device="cpu")


class _Sheet:
    """A board on its way to the host, read once for all the scalars that come of it."""

    def __init__(self, pending: Pending) -> None:
        self.pending: Pending | None = pending
        self.rows: list[list[float]] = []

    @property
    def ready(self) -> bool:
        return self.pending is None or self.pending.ready

    def read(self) -> list[list[float]]:
        if self.pending is not None:
            self.rows, self.pending = self.pending.take().tolist(), None
        return self.rows


class _Cell(Pending):
    """One scalar of a board that is on its way."""

    __slots__ = ("_at", "_sheet")

    def __init__(self, sheet: _Sheet, row: int, column: int) -> None:
        super().__init__(_NOTHING)
        self._sheet, self._at = sheet, (row, column)

    @property
    def ready(self) -> bool:
        return self._sheet.ready

    @property
    def at_hand(self) -> bool:
        return False

    def peek(self) -> Tensor:
        """The number, [1] float64; only when ``ready``."""
        number = _cell(self._sheet.read(), *self._at)
        return torch.tensor([number], dtype=torch.float64, device="cpu")

    def take(self) -> Tensor:
        return self.peek()
