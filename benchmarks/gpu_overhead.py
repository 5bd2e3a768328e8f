"""What do gradwarden's statistics cost on a GPU, beside the bytes that must be read anyway?

Measures one kernel pass over a model's gradients, alone and on every value: bytes a second
against a copy of the same bytes on the same device (a copy reads and writes, so its ceiling
counts both), time against one ``torch._foreach_norm``, by device and by host time, in float32
and bfloat16, with and without the histogram, and on data of every exponent with NaN and Inf.
Then a small transformer trains a hundred watched steps while torch raises at any
synchronisation (``set_sync_debug_mode("error")``), and its watched step is timed beside the
unwatched one. Ratios are medians of interleaved pairs, with the middle half of them. The last
line of stdout is one JSON object. Without a GPU it says so, measures nothing and exits with 0.

    python benchmarks/gpu_overhead.py --elements 1300000000 --pairs 21
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

DEVICE = "cuda"
GOALS = {"share_of_copy": 0.8, "ratio_to_foreach_norm": 1.15}
WIDTH = 4096
"""Columns of the made-up model's matrices; a bias and a norm of as many stand beside each."""
Run = Callable[[], Any]


def main() -> int:
    """Run once; the exit code is 0 if every goal was met, or there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--elements", type=int, default=400_000_000, help="gradient values")
    parser.add_argument("--pairs", type=int, default=21, help="interleaved pairs of each ratio")
    parser.add_argument("--steps", type=int, default=100, help="watched steps without a wait")
    options = parser.parse_args()
    reason = _missing()
    if reason:
        print(f"!!! NOTHING MEASURED: {reason}", file=sys.stderr)
        print(json.dumps({"name": "gpu_overhead", "skipped": reason}))
        return 0
    import torch

    from gradwarden.stats import triton

    device = torch.device(DEVICE)
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
    }
    for dtype in (torch.float32, torch.bfloat16):
        started = time.perf_counter()
        ready = triton.prepare(device, dtype)
        figures[f"compile_seconds_{_short(dtype)}"] = round(time.perf_counter() - started, 2)
        if not ready:
            print(f"!!! the kernels did not compile: {triton.describe()}", file=sys.stderr)
            print(
                json.dumps({"name": "gpu_overhead", "figures": figures, "met": {"kernel": False}})
            )
            return 1
    figures["engine"] = triton.describe()
    print(f"{figures['device']}, torch {figures['torch']}, {figures['engine']}")
    met: dict[str, bool] = {}
    for dtype in (torch.float32, torch.bfloat16):
        _kernel(dtype, options.elements, options.pairs, figures, met)
    _training(options.steps, options.pairs, figures, met)
    figures["engine_after"] = triton.describe()
    met["engine"] = figures["engine_after"] == figures["engine"]
    print(json.dumps({"name": "gpu_overhead", "figures": figures, "goals": GOALS, "met": met}))
    return 0 if all(met.values()) else 1


def _missing() -> str | None:
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return "this machine has no CUDA device that torch can use"
    from importlib.util import find_spec

    return None if find_spec("triton") else 'Triton is missing: pip install "triton>=3.3"'


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


# -- the kernel ---------------------------------------------------------------------------


def _kernel(dtype: Any, elements: int, pairs: int, figures: dict[str, Any], met: Any) -> None:
    """The engine over one made-up model's gradients."""
    import torch

    from gradwarden.stats import triton

    rows = max(1, elements // (WIDTH * WIDTH))
    shapes = [(WIDTH, WIDTH), (WIDTH,), (WIDTH,)] * rows
    tensors = [torch.randn(shape, device=DEVICE, dtype=dtype) * 1e-3 for shape in shapes]
    size = sum(t.numel() * t.element_size() for t in tensors)
    name = _short(dtype)
    ceiling = _copy_rate(size, pairs)
    figures[f"{name}_megabytes"] = round(size / 1e6)
    figures[f"{name}_copy_gigabytes_per_second"] = round(ceiling / 1e9)
    print(f"{name}: {len(tensors)} tensors, {size / 1e9:.2f} GB; copy {ceiling / 1e9:.0f} GB/s")

    def norm() -> Any:
        return torch._foreach_norm(tensors, 2, dtype=torch.float32)

    for label, histogram, prepare in (
        ("statistics", False, None),
        ("with_histogram", True, None),
        ("worst_data", True, _spoil),
    ):
        if prepare is not None:
            prepare(tensors)

        def ours(histogram: bool = histogram) -> Any:
            return triton.measure(tensors, histogram)

        mine, theirs = _paired(ours, norm, pairs)
        rate = size / statistics.median(mine)
        key = f"{name}_{label}"
        figures[f"{key}_gigabytes_per_second"] = round(rate / 1e9)
        figures[f"{key}_share_of_copy"] = round(rate / ceiling, 3)
        figures[f"{key}_ratio"] = _ratio(mine, theirs)
        figures[f"{key}_host_us"] = round(_host_us(ours), 1)
        print(
            f"  {label}: {rate / 1e9:.0f} GB/s, {rate / ceiling:.0%} of the copy, "
            f"{figures[f'{key}_ratio']} x _foreach_norm, host {figures[f'{key}_host_us']} us"
        )
        if label == "statistics":
            met[f"{name}_share_of_copy"] = rate / ceiling >= GOALS["share_of_copy"]
            held = figures[f"{key}_ratio"]["median"] <= GOALS["ratio_to_foreach_norm"]
            met[f"{name}_ratio_to_foreach_norm"] = held
    figures[f"{name}_foreach_norm_host_us"] = round(_host_us(norm), 1)
    mine, theirs = _paired(lambda: triton.nonfinite(tensors), norm, pairs)
    figures[f"{name}_nonfinite_ratio"] = _ratio(mine, theirs)
    print(f"  nonfinite alone: {figures[f'{name}_nonfinite_ratio']} x _foreach_norm")


def _spoil(tensors: list[Any]) -> None:
    """Every exponent, zeros, and NaN and Inf in each large tensor: the slowest data there is."""
    import torch

    for tensor in tensors:
        flat = tensor.view(-1)
        flat.copy_(torch.exp2(torch.rand(flat.numel(), device=flat.device) * 68 - 44))
        flat[::7] = 0.0
        flat[::10_007] = float("nan")
        flat[1::10_007] = float("inf")


def _copy_rate(size: int, times: int) -> float:
    """Bytes a second that a copy of so many bytes reads and writes."""
    import torch

    source = torch.zeros(size // 4, dtype=torch.int32, device=DEVICE)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = [_seconds(lambda: target.copy_(source)) for _ in range(times)]
    return 2 * size / statistics.median(seconds)


def _paired(mine: Run, theirs: Run, pairs: int) -> tuple[list[float], list[float]]:
    """Device seconds of both, taken in turns, after a turn that does not count."""
    turns = [(_seconds(mine), _seconds(theirs)) for _ in range(pairs + 1)][1:]
    return [m for m, _ in turns], [t for _, t in turns]


def _seconds(work: Run) -> float:
    """Device seconds of one run. The device is kept busy first, so that no launch is waited for."""
    import torch

    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(5_000_000)
    first.record()
    work()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def _ratio(mine: list[float], theirs: list[float]) -> dict[str, float]:
    """The median of the pairs' ratios, and its middle half."""
    low, middle, high = statistics.quantiles(
        [a / b for a, b in zip(mine, theirs, strict=True)], n=4
    )
    return {"median": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}


def _host_us(work: Run, times: int = 30) -> float:
    """Microseconds of the calling thread, while the device is given time to keep up."""
    import torch

    found = []
    for _ in range(times):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        found.append(1e6 * (time.perf_counter() - started))
    return statistics.median(found)


# -- training -----------------------------------------------------------------------------


def _training(steps: int, pairs: int, figures: dict[str, Any], met: dict[str, bool]) -> None:
    """A small transformer, watched: it never waits, and what a step costs."""
    import torch
    from torch import nn

    import gradwarden

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    given = torch.randn(8, 128, 512, device=DEVICE)

    def step() -> None:
        optimizer.zero_grad()
        model(given).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    for _ in range(5):
        step()
    alone = _waits(step, 5)  # the loop itself must not wait, else nothing is told
    plain = [_wall(step) for _ in range(pairs)]
    spool = tempfile.TemporaryDirectory(prefix="gradwarden-bench-")
    monitor = gradwarden.watch(model, optimizer, spool=spool.name)
    for _ in range(5):
        step()
    waited = alone or _waits(step, steps)
    watched = [_wall(step) for _ in range(pairs)]
    health = monitor.health()
    monitor.finish()
    spool.cleanup()
    figures["steps_without_a_wait"] = steps if waited is None else waited
    figures["step_ms"] = round(1e3 * statistics.median(plain), 3)
    figures["watched_step_ms"] = round(1e3 * statistics.median(watched), 3)
    figures["overhead_us_p50"] = round(health["overhead_us_p50"], 1)
    figures["captured"], figures["disabled"] = health["captured"], health["disabled"]
    met["never_waits"] = waited is None and not health["disabled"] and health["captured"] > 0
    print(
        f"training: {figures['step_ms']} ms a step, {figures['watched_step_ms']} ms watched; "
        f"{steps} steps under set_sync_debug_mode('error'): {waited or 'no wait'}"
    )


def _waits(work: Run, times: int) -> str | None:
    """What torch says at the first synchronisation in so many runs; None without one."""
    import torch

    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(times):
            work()
    except RuntimeError as error:
        return str(error).split("\n")[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def _wall(work: Run) -> float:
    import torch

    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
