"""The measures in torch operations alone, on any device: what runs where no kernel does.

A magnitude is read as the integer of its bits, which keep its order: zeros, tiny values, Inf
and NaN are then ranges of integers, and no rounding mode or flushing of subnormals touches
them. On a host a look at a piece's extremes saves most passes; a device is never looked at,
since that would wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gradwarden.stats.tensors import FLOATS, FORMS, WORDS, Form, flat
from gradwarden.wire import HISTOGRAM
from gradwarden.wire.quantity import histogram_edges

_PIECE = 1 << 20
"""Elements of one piece of a host tensor: little memory, and few enough calls."""
_RUN = 2048
"""Values whose squares are summed in their own precision before float64 takes over."""
_BINS = len(HISTOGRAM)
_LOWEST = -38
"""Exponent at which bin 1 begins; each bin is 4 octaves wide."""


def measure(tensors: Sequence[Tensor], histogram: bool) -> Tensor:
    """[n, 23] int64 as :func:`gradwarden.stats.measure` says; [n, 22] float32 without float64."""
    if tensors and tensors[0].device.type != "cpu":
        return blind(tensors, histogram)
    with torch.no_grad():
        found = [_on_host(flat(t), FORMS[t.dtype], histogram) for t in tensors]
        matrix = torch.full((len(found), FLOATS), math.nan, dtype=torch.float64, device="cpu")
        if not found:
            return torch.empty((0, WORDS), dtype=torch.int64, device="cpu")
        numbers = [row for row, _, _ in found]
        matrix[:, : FLOATS - _BINS] = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        if histogram:
            matrix[:, FLOATS - _BINS :] = _histograms(
                [e for *_, e in found], [r[4] for r in numbers]
            )
        checksums = torch.stack([checksum for _, checksum, _ in found])
        return torch.cat([matrix.view(torch.int64), checksums.unsqueeze(1)], dim=1)


def blind(tensors: Sequence[Tensor], histogram: bool) -> Tensor:
    """The same for at least one tensor, without a look at any value."""
    with torch.no_grad():
        rows = [_on_device(flat(t), FORMS[t.dtype], histogram) for t in tensors]
        if tensors[0].device.type == "mps":
            return torch.stack([torch.stack([f.float() for f in row[:-1]]) for row in rows])
        return torch.stack([torch.stack([*map(_bits, row[:-1]), row[-1]]) for row in rows])


def nonfinite(tensors: Sequence[Tensor]) -> Tensor:
    """[1] float32: 1.0 if any value is NaN or Inf, as :func:`gradwarden.stats.nonfinite` says."""
    held = [t for t in tensors if t.numel()]
    if not held:
        return torch.zeros(1, device=tensors[0].device if tensors else None)
    with torch.no_grad():
        if held[0].device.type != "cpu":
            peaks = torch._foreach_norm(held, math.inf, dtype=torch.float32)
            peak = torch.stack(list(peaks)).sum()  # a NaN or Inf among them stays one
            if any(t.dtype == torch.float64 for t in held):  # may not fit float32
                peak = torch.stack([torch.isfinite(t).all() for t in held]).all().float().log()
            return torch.isfinite(peak).logical_not().float().reshape(1)
        found = float(any(map(_has_nonfinite, held)))
        return torch.tensor([found], dtype=torch.float32, device="cpu")


def _has_nonfinite(tensor: Tensor) -> bool:
    """A finite norm proves finite values; an infinite one, of large values, proves nothing."""
    if math.isfinite(float(torch.linalg.vector_norm(tensor))):
        return False
    return not bool(torch.isfinite(tensor).all())


def _on_device(values: Tensor, form: Form, histogram: bool) -> list[Tensor]:
    """The words of one row as 0-d tensors, without a look at any of them."""
    bits = values.view(form.word) & form.mask
    nan = (bits > form.inf).sum()
    zero = (bits == 0).sum()
    norm: Tensor
    if values.device.type == "mps":
        norm = torch.linalg.vector_norm(values, dtype=torch.float32)
    else:
        norm = torch.linalg.vector_norm(values, dtype=torch.float64)
        if values.dtype == torch.float64:
            norm = torch.where(norm.isinf() | (norm < 1e-140), _scaled(values), norm)
    top = bits.max() if bits.numel() else bits.sum().to(bits.dtype)
    peak = torch.where(nan > 0, math.nan, top.view(values.dtype).to(norm.dtype))
    row = [norm, peak, nan, (bits == form.inf).sum(), zero, (bits < form.tiny).sum()]
    if histogram:
        finite = (bits < form.inf).sum()
        above = [((bits >= _edge(k, form)) & (bits < form.inf)).sum() for k in range(1, _BINS)]
        edges = [finite - zero, *above, torch.zeros_like(zero)]
        row += [edges[k] - edges[k + 1] for k in range(_BINS)]
    else:
        row += [torch.full_like(norm, math.nan)] * _BINS
    return [*row, values.view(form.word).sum(dtype=torch.int64)]


def _bits(number: Tensor) -> Tensor:
    """A number as the bits of its float64."""
    return number.to(torch.float64).view(torch.int64)


def _scaled(values: Tensor) -> Tensor:
    """The L2 norm of float64 values whose squares would leave float64's range."""
    peak = values.abs().max() if values.numel() else values.sum()
    scale = torch.where((peak > 0) & peak.isfinite(), peak, torch.ones_like(peak))
    norm: Tensor = torch.linalg.vector_norm(values / scale) * peak
    return norm


def _edge(k: int, form: Form) -> int:
    """The smallest bits of bin ``k`` and above."""
    dtype = next(d for d, f in FORMS.items() if f is form)
    edge = torch.tensor(histogram_edges()[k - 1], dtype=torch.float64, device="cpu")
    bits = int(edge.to(dtype).view(form.word))
    return bits or 1  # an edge below the smallest subnormal: every value but zero is above


def _pieces(values: Tensor) -> Iterator[Tensor]:
    for start in range(0, values.numel(), _PIECE):
        yield values[start : start + _PIECE]


def _on_host(values: Tensor, form: Form, histogram: bool) -> tuple[list[float], Tensor, Tensor]:
    """The first numbers of one row, its checksum, and its finite values' exponents counted."""
    squares, top = 0.0, 0
    nan = inf = zero = tiny = 0
    exponents = torch.zeros(_exponents(values.dtype), dtype=torch.int64, device="cpu")
    checksum = torch.zeros((), dtype=torch.int64, device="cpu")
    for piece in _pieces(values):
        words = piece.view(form.word)
        checksum += words.sum(dtype=torch.int64)
        bits = words & form.mask
        low, high = (int(b) for b in torch.aminmax(bits))
        top = max(top, high)
        if high >= form.inf:
            nan += int((bits > form.inf).sum())
            inf += int((bits == form.inf).sum())
        if low == 0:
            zero += bits.numel() - int(torch.count_nonzero(bits))
        if low < form.tiny:
            tiny += int((bits < form.tiny).sum())
        squares += _squares(piece)
        if histogram:
            exponents += _by_exponent(piece, bits, form)
    if nan or inf:
        norm = peak = math.nan if nan else math.inf
    else:
        peak = float(torch.tensor(top, dtype=form.word, device="cpu").view(values.dtype))
        norm = math.sqrt(squares)
        if values.dtype == torch.float64 and not 1e-140 < norm < math.inf:
            norm = float(_scaled(values))
    return [norm, peak, nan, inf, zero, tiny], checksum, exponents


def _squares(piece: Tensor) -> float:
    """The sum of squares; runs that leave float32's range, and what is short, in float64."""
    if piece.numel() < 8 * _RUN:  # few calls matter more
        norm = float(torch.linalg.vector_norm(piece, dtype=torch.float64))
        return norm * norm
    whole = piece.numel() - piece.numel() % _RUN
    wide = torch.float64 if piece.dtype == torch.float64 else torch.float32
    runs = piece[:whole].view(-1, _RUN)
    norms = torch.linalg.vector_norm(runs, dim=1, dtype=wide).double()
    if piece.dtype in (torch.float32, torch.bfloat16):
        low, high = torch.aminmax(norms)
        if not (low > 1e-14 and high < 1e18):
            odd = ((norms > 1e-14) & (norms < 1e18)).logical_not()
            norms[odd] = torch.linalg.vector_norm(runs[odd].double(), dim=1)
    return float(norms.square().sum()) + _squares(piece[whole:])


def _exponents(dtype: torch.dtype) -> int:
    """How many exponents a type is counted by; float16, whose subnormals cross bins, as float32."""
    return 2048 if dtype == torch.float64 else 256


def _by_exponent(piece: Tensor, bits: Tensor, form: Form) -> Tensor:
    """How many values have each biased exponent."""
    if piece.dtype == torch.float64:
        return torch.bincount(bits >> form.fraction, minlength=2048)
    if piece.dtype == torch.float16:
        form = FORMS[torch.float32]
        bits = piece.float().view(form.word) & form.mask
    return torch.bincount((bits >> form.fraction).to(torch.uint8), minlength=256)


def _histograms(exponents: Sequence[Tensor], zeros: Sequence[float]) -> Tensor:
    """[n, 16] float64 counts by bin of the finite values that are not zero."""
    counts = torch.zeros((len(exponents), _BINS), dtype=torch.float64, device="cpu")
    for size in (256, 2048):
        rows = [i for i, e in enumerate(exponents) if len(e) == size]
        if rows:
            # The last exponent is that of NaN and Inf.
            exponent = torch.arange(size - 1, device="cpu") - (size // 2 - 1)
            bins = ((exponent - _LOWEST) // 4 + 1).clamp(0, _BINS - 1)
            found = torch.stack([exponents[i] for i in rows])[:, :-1].double()
            counts[rows] = torch.zeros(
                (len(rows), _BINS), dtype=torch.float64, device="cpu"
            ).index_add_(1, bins, found)
    counts[:, 0] -= torch.tensor(zeros, dtype=torch.float64, device="cpu")
    return counts
