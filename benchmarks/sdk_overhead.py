"""What does watching gradients cost the training loop, beside one ``torch._foreach_norm``?

Two models with the gradients of a real backward: a transformer of GPT-2 small's shapes (124 M
elements) and a small convolutional network (160 parameters, half a million elements). Measured
is the wall time of the main thread: our engine alone on everything that it knows, the watched
optimizer step of each preset less the unwatched one (its optimizer changes nothing, so that
the difference is ours alone), the same without the C kernel, and what other tools do with the
same gradients. Each is paired with one norm of all gradients right after it; a ratio is the
median over the pairs, with the interval that holds the median with 95 % certainty or more.
Without the kernel a preset is averaged over too few steps to see a whole round. Peers that are
not installed are named. The last line of stdout is one JSON object.

    python benchmarks/sdk_overhead.py            # minutes; --quick: a smoke test, seconds
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import peers
import torch
from torch import Tensor, nn

import gradwarden
from gradwarden import stats
from gradwarden.stats import native, plain

GOALS = {"fp32": 1.0, "bf16": 1.3, "worst": 2.0, "small": 1.0}
"""Most that everything (statistics, histogram, checksum) may cost, in norms of the same data."""
BUCKET_BYTES = 25 << 20
SLICES = 16
STEPS = {"light": 4, "standard": 320, "full": 16}
"""Steps averaged for one pair: a round of what a preset takes in turn (large models: 80)."""


@dataclass
class Case:
    """A model whose gradients are there, and how much of it is measured."""

    name: str
    model: nn.Module
    pairs: int
    most_steps: int

    @property
    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]


@dataclass
class Figure:
    """One line: what it costs a step, and in norms of the same gradients."""

    microseconds: float
    ratio: float
    low: float
    high: float

    def json(self) -> dict[str, float]:
        return {
            "us": round(self.microseconds, 1),
            "ratio": round(self.ratio, 3),
            "low": round(self.low, 3),
            "high": round(self.high, 3),
        }


class Still(torch.optim.Optimizer):
    """Steps that change nothing and cost nothing, hooks apart."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:
        """Nothing."""


class Block(nn.Module):
    """A transformer's block with GPT-2's parameters."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, width] in and out."""
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.ln_1(x)).split(width, dim=2)
        )
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.ln_2(x))))


class Transformer(nn.Module):
    """GPT-2 with tied embeddings: 148 parameters at 12 layers."""

    def __init__(self, layers: int, width: int, heads: int, words: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(words, width), nn.Embedding(1024, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.ln_f = nn.LayerNorm(width)
        for weight in (self.wte.weight, self.wpe.weight):
            nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """The loss of predicting each token from those before it."""
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        logits = self.ln_f(self.blocks(x)) @ self.wte.weight.t()
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def transformer(quick: bool) -> nn.Module:
    """GPT-2 small after one backward; a much smaller one for a smoke test."""
    size = (2, 64, 2, 500) if quick else (12, 768, 12, 50257)
    model = Transformer(*size)
    model(torch.randint(0, size[3], (1, 64))).backward()
    return model


def convolutions(quick: bool) -> nn.Module:
    """40 convolutions with normalisation after one backward: 160 small parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 36, 3, padding=1)]
    for number in range(4 if quick else 40):
        if number:
            layers.append(nn.Conv2d(36, 36, 3, padding=1))
        layers += [nn.BatchNorm2d(36), nn.ReLU()]
    model = nn.Sequential(*layers)
    model(torch.randn(8, 3, 8, 8)).square().mean().backward()
    return model


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Order statistics between which the median lies with at least 95 % certainty."""
    ranked, n = sorted(values), len(values)
    low, outside = 0, 2 / 2**n
    while low + 1 < n // 2 and outside + 2 * math.comb(n, low + 1) / 2**n <= 0.05:
        low += 1
        outside += 2 * math.comb(n, low) / 2**n
    return ranked[low], ranked[n - 1 - low]


def compare(
    call: Callable[[], Any],
    gradients: Sequence[Tensor],
    pairs: int,
    steps: int = 1,
    less: float = 0.0,
) -> Figure:
    """Time a call against one norm of the gradients; ``less`` seconds of it are not its own."""
    call()
    torch._foreach_norm(gradients)
    times, ratios = [], []
    for _ in range(pairs):
        ours = norm = 0.0
        for _ in range(steps):
            torch.autograd.graph.increment_version(gradients)  # as a new backward would
            began = time.perf_counter()
            call()
            between = time.perf_counter()
            torch._foreach_norm(gradients)
            ours += between - began - less
            norm += time.perf_counter() - between
        times.append(ours / steps)
        ratios.append(ours / norm)
    return Figure(statistics.median(times) * 1e6, statistics.median(ratios), *interval(ratios))


@contextmanager
def without_kernel() -> Iterator[None]:
    """The engine as it is where no compiler built the kernel."""
    library = native.LIBRARY
    native.LIBRARY = library.with_name("absent")
    native.load.cache_clear()
    try:
        yield
    finally:
        native.LIBRARY = library
        native.load.cache_clear()


def unwatched(optimizer: torch.optim.Optimizer) -> float:
    """Seconds of a step before anybody watches it."""
    spent = []
    for _ in range(200):
        began = time.perf_counter()
        optimizer.step()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def preset(case: Case, name: str, steps: int, folder: Path) -> Figure:
    """A watched step less an unwatched one."""
    optimizer = Still(case.model.parameters())
    alone = unwatched(optimizer)
    monitor = gradwarden.watch(
        case.model, optimizer, preset=name, throttle=False, spool=folder / "spool"
    )
    try:
        return compare(optimizer.step, case.gradients, case.pairs, steps, less=alone)
    finally:
        monitor.finish()


def everything(case: Case, show: Callable[[str, str, Figure], None], folder: Path) -> None:
    """All lines of one model; what is quick first."""
    gradients = case.gradients
    weights = [p.detach() for p in case.model.parameters()]
    buckets = list(bucketed(gradients))
    turn = itertools.count()

    def a_slice() -> None:
        stats.measure(weights[next(turn) % SLICES :: SLICES], False)

    calls: dict[str, tuple[Callable[[], Any], int]] = {
        "everything, once": (partial(stats.measure, gradients, True), 1),
        "without the histogram": (partial(stats.measure, gradients, False), 1),
        "everything, torch alone": (partial(plain.measure, gradients, True), 1),
        "local flags of buckets": (lambda: [stats.nonfinite([b]) for b in buckets], 1),
        "a slice's weight checksums": (a_slice, SLICES),
    }
    for what, (call, steps) in calls.items():
        show(case.name, what, compare(call, gradients, case.pairs, steps))
    for name, steps in STEPS.items():
        show(case.name, f"preset {name}", preset(case, name, min(steps, case.most_steps), folder))
    with without_kernel():
        few = max(1, case.most_steps // 40)
        for name in STEPS:
            show(case.name, f"preset {name}, torch alone", preset(case, name, few, folder))


def bucketed(gradients: Sequence[Tensor]) -> Iterator[Tensor]:
    """Flat buffers of the size in which gradients are reduced."""
    flat = torch.cat([g.flatten() for g in gradients])
    yield from flat.split(BUCKET_BYTES // flat.element_size())


def other_tools(case: Case, show: Callable[[str, str, Figure], None], folder: Path) -> list[str]:
    """One line for each tool; the names of those that are not installed."""
    absent = []
    for name, (package, make) in peers.PEERS.items():
        if peers.missing(package):
            absent.append(name)
            print(f"{case.name:8} {name:32} NOT MEASURED: pip install {package}", flush=True)
            continue
        with ExitStack() as stack:
            call = make(case.model, folder, stack)
            show(case.name, name, compare(call, case.gradients, case.pairs))
    return absent


def worst(like: Sequence[Tensor]) -> list[Tensor]:
    """Values of every exponent from 2^-44 to 2^24, a twentieth of them zero, NaN among them."""
    made = []
    for tensor in like:
        values = torch.exp2(torch.rand_like(tensor) * 68 - 44)
        values[torch.rand_like(tensor) < 0.05] = 0
        values[torch.rand_like(tensor) < 0.001] = math.nan
        made.append(values)
    return made


def main() -> int:
    """Run once; the exit code is 0 if every goal was met, or the run was a quick one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=11, help="interleaved pairs of each ratio")
    parser.add_argument("--quick", action="store_true", help="little data, two pairs: a smoke")
    options = parser.parse_args()
    pairs = 2 if options.quick else max(11, options.pairs)
    torch.manual_seed(1)
    figures: dict[str, Any] = {
        "engine": stats.describe(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],
    }
    print(" ".join(f"{k}={v}" for k, v in figures.items()), flush=True)
    lines: dict[str, dict[str, Any]] = {}

    def show(case: str, what: str, figure: Figure) -> None:
        lines.setdefault(case, {})[what] = figure.json()
        print(
            f"{case:8} {what:32} {figure.microseconds:11.0f} us  {figure.ratio:8.2f}x "
            f"[{figure.low:.2f}, {figure.high:.2f}]",
            flush=True,
        )

    with tempfile.TemporaryDirectory(prefix="gradwarden-bench-") as name:
        folder = Path(name)
        absent: set[str] = set()
        for case in (
            Case("small", convolutions(options.quick), pairs, 2 if options.quick else 320),
            Case("fp32", transformer(options.quick), pairs, 2 if options.quick else 80),
        ):
            sizes = [g.numel() for g in case.gradients]
            print(f"{case.name}: {len(sizes)} gradients, {sum(sizes):,} elements", flush=True)
            everything(case, show, folder)
            absent |= set(other_tools(case, show, folder))
        gradients = case.gradients
        for dtype, short in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
            halves = [g.to(dtype) for g in gradients]
            figure = compare(partial(stats.measure, halves, True), halves, pairs)
            show(short, "everything, once", figure)
        wild = worst(gradients)
        figure = compare(partial(stats.measure, wild, True), wild, pairs)
        show("worst", "everything, once", figure)
    figures |= {"absent": sorted(absent), "lines": lines}
    figures["load_after"] = [round(load, 1) for load in os.getloadavg()]
    met = {name: lines[name]["everything, once"]["ratio"] <= most for name, most in GOALS.items()}
    print(json.dumps({"name": "sdk_overhead", "figures": figures, "goals": GOALS, "met": met}))
    return 0 if options.quick or all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
