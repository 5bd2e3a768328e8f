"""Healthy trainings made of chance, step by step as detectors see them; ``soak_detect.py`` soaks
the detectors in them.

What is drawn for a run: its network (some 300 layers: transformer, mixture of experts,
convolutions), how noisy each layer is (log-normal of sigma 0.1 to 1.5 with tails of Student's t,
shared between layers and from step to step), its optimizer, schedule, clipping, precision,
ranks, batches and clock. What happens to it: spikes of 10 to 100 times that heal, levels that
move (at most fourfold unless a mark says so), skipped steps, evaluations, checkpoints, slow
minutes, a restart. None of it is a sickness, so whatever wakes somebody is false.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwarden import wire
from gradwarden_server.detect.base import Liveness, RankLiveness
from gradwarden_server.detect.steps import GroupStep, RankStep, Step

Floats = NDArray[np.float64]
SECOND_NS = 1_000_000_000
CHUNK = 256
BEGAN_NS = 1_700_000_000 * SECOND_NS
_GB = 2**30
_SLOW = (*wire.QUANTITIES, *wire.SLOW)
_FULL = wire.COLUMNS


def transformer() -> Iterator[wire.Parameter]:
    """24 blocks of 12 parameters, embeddings and a head."""
    width = 1024
    yield wire.Parameter("wte.weight", (50000, width), "bfloat16", "wte", "embedding")
    yield wire.Parameter("wpe.weight", (2048, width), "bfloat16", "wpe", "embedding")
    shapes = {"attn.qkv": (3 * width, width), "attn.out": (width, width)}
    shapes |= {"mlp.up": (4 * width, width), "mlp.down": (width, 4 * width)}
    for number in range(24):
        block = f"blocks.{number}"
        for name in ("norm_1", "norm_2"):
            yield wire.Parameter(f"{block}.{name}.weight", (width,), "bfloat16", block, "norm")
            yield wire.Parameter(f"{block}.{name}.bias", (width,), "bfloat16", block, "norm")
        for name, shape in shapes.items():
            yield wire.Parameter(f"{block}.{name}.weight", shape, "bfloat16", block, "matrix")
            yield wire.Parameter(f"{block}.{name}.bias", shape[:1], "bfloat16", block, "bias")
    yield wire.Parameter("norm.weight", (width,), "bfloat16", "norm", "norm")
    yield wire.Parameter("lm_head.weight", (50000, width), "bfloat16", "lm_head", "head")


def mixture() -> Iterator[wire.Parameter]:
    """12 blocks, each with a router and 16 experts; an expert often has nothing to do."""
    width = 512
    yield wire.Parameter("embed.weight", (32000, width), "bfloat16", "embed", "embedding")
    for number in range(12):
        block = f"layers.{number}"
        for name in ("q", "k", "v", "o"):
            place = f"{block}.attn.{name}.weight"
            yield wire.Parameter(place, (width, width), "bfloat16", block, "matrix")
        for name in ("norm_1", "norm_2"):
            yield wire.Parameter(f"{block}.{name}.weight", (width,), "bfloat16", block, "norm")
        yield wire.Parameter(f"{block}.router.weight", (16, width), "bfloat16", block, "matrix")
        for expert in range(16):
            place = f"{block}.experts.{expert}.weight"
            yield wire.Parameter(place, (4 * width, width), "bfloat16", block, "expert")
    yield wire.Parameter("lm_head.weight", (32000, width), "bfloat16", "lm_head", "head")


def convolutions() -> Iterator[wire.Parameter]:
    """100 convolutions with normalisation, and a head."""
    for number in range(100):
        block, width = f"stages.{number // 4}", 64 << (number // 34)
        place, shape = f"{block}.{number % 4}", (width, width, 3, 3)
        yield wire.Parameter(f"{place}.conv.weight", shape, "float32", block, "matrix")
        yield wire.Parameter(f"{place}.norm.weight", (width,), "float32", block, "norm")
        yield wire.Parameter(f"{place}.norm.bias", (width,), "float32", block, "norm")
    yield wire.Parameter("head.weight", (1000, 256), "float32", "head", "head")
    yield wire.Parameter("head.bias", (1000,), "float32", "head", "bias")


NETWORKS = {"transformer": transformer, "mixture": mixture, "convolutions": convolutions}


@cache
def layout_of(network: str) -> wire.Layout:
    """The layout of a network, gradients ready in reverse."""
    rows = tuple(NETWORKS[network]())
    return wire.Layout(rows, tuple(reversed(range(len(rows)))))


LAYOUTS = {made.hash: made for made in map(layout_of, NETWORKS)}


@dataclass(frozen=True)
class Traits:
    """What is drawn for one run and holds for all of it."""

    network: str
    steps: int
    sigma: float
    tails: float
    """Degrees of freedom of Student's t: the fewer, the heavier."""
    together: float
    """Share of the variance that all layers have in common."""
    memory: float
    """How much of the common part the next step keeps."""
    schedule: str
    lr: float
    adam: bool
    capture: wire.Capture
    every: int
    loss: str
    noise: float
    """Of the loss, as a share of what there is to gain."""
    ranks: int
    half: bool
    """Whether a loss scale governs."""
    seconds: float
    logs: tuple[str, ...] = field(default=("loss", "lr", "tokens"))


def draw(rng: np.random.Generator) -> Traits:
    """One run."""

    def one(*choices: Any) -> Any:
        return choices[int(rng.integers(len(choices)))]

    logs = tuple(name for name in ("loss", "lr", "tokens") if rng.random() < 0.9)
    return Traits(
        network=one(*NETWORKS),
        steps=int(np.exp(rng.uniform(math.log(1000), math.log(20_000)))),
        sigma=float(np.exp(rng.uniform(math.log(0.1), math.log(1.5)))),
        tails=float(one(4, 6, 10, 1000)),
        together=float(rng.uniform(0.1, 0.8)),
        memory=float(one(0.0, 0.5, 0.9)),
        schedule=one("constant", "warm-up", "cosine", "steps", "restarts", "one cycle"),
        lr=float(10 ** rng.uniform(-4.5, -2.5)),
        adam=bool(rng.random() < 0.7),
        capture=one("pre_clip", "pre_clip", "pre_clip", "unclipped", "unclipped", "post_clip"),
        every=one(1, 1, 1, 1, 2, 8),
        loss=one("steep", "steep", "slow", "flat", "negative", "wandering"),
        noise=float(10 ** rng.uniform(-2, -0.3)),
        ranks=one(1, 1, 1, 1, 2, 4, 8),
        half=bool(rng.random() < 0.15),
        seconds=float(10 ** rng.uniform(-1.2, 0.9)),
        logs=logs,
    )


@dataclass(frozen=True, slots=True)
class Tick:
    """A moment at which nothing was received."""

    now_ns: int
    liveness: Liveness


class Run:
    """One healthy training, the same for the same seed and number."""

    def __init__(self, seed: int, number: int) -> None:
        self.rng = np.random.default_rng([seed, number])
        self.traits = draw(self.rng)
        self.layout = layout_of(self.traits.network)
        self.layout_hash = self.layout.hash
        rows = self.layout.parameters
        self.sizes = np.array([math.prod(p.shape) for p in rows], np.float64)
        kinds = np.array([p.kind for p in rows])
        blocks = {name: at for at, name in enumerate(dict.fromkeys(p.block for p in rows))}
        self.block = np.array([blocks[p.block] for p in rows])
        self.blocks = len(blocks)
        rng = self.rng
        depth = np.linspace(-0.5, 0.5, self.blocks)[self.block] * rng.uniform(-1, 1)
        self.base = depth + rng.normal(0, 0.3, len(rows)) + rng.uniform(-3, 0)
        self.base -= np.where(np.isin(kinds, ("bias", "norm")), 0.7, 0.0)
        self.idle = np.where(kinds == "expert", rng.uniform(0.05, 0.9, len(rows)), 0.0)
        self.zeros = np.where(kinds == "embedding", rng.uniform(0.5, 0.97), rng.uniform(0, 0.2))
        # What begins at zero grows with the steps; the rest keeps its size.
        self.grows = kinds == "bias"
        self.weights = np.where(kinds == "norm", 1.0, 0.05) * np.sqrt(self.sizes)
        self._busy = rng.random(len(rows)) > self.idle
        self._common = 0.0
        self._level = np.zeros(len(rows))
        self._drift = np.zeros(len(rows))
        self._typical = float(np.log10(np.sqrt(np.sum(10 ** (2 * self.base)))))
        self.clip = 10 ** (self._typical + rng.uniform(-0.4, 0.6))
        self._wander = 0.0
        self._sick_loss = 0.0
        self._harder = self._easier = 0.0
        self.marks: dict[int, str] = {}
        self._plan()

    def _plan(self) -> None:
        """When what happens to it."""
        rng, steps = self.rng, self.traits.steps
        times = np.arange(1, steps)

        def at(every: float) -> list[int]:
            return [int(t) for t in times[rng.random(len(times)) < 1 / every]]

        self.spikes = {t: float(10 ** rng.uniform(1, 2)) for t in at(1500)}
        self.shifts = {t: float(rng.uniform(-0.6, 0.6)) for t in at(4000)}
        declared = {t: float(rng.uniform(-1.2, 1.2)) for t in at(6000)}
        self.shifts |= declared
        self.marks = dict.fromkeys(declared, "data")
        self.bad = set(at(5000))
        self.evaluations = int(rng.integers(200, 3000))
        self.saves = int(rng.integers(200, 3000))
        self.epoch = int(rng.integers(100, 3000))
        self.resumes = int(rng.integers(steps)) if rng.random() < 0.2 else steps
        self.waits = float(rng.uniform(0.0, 0.15))

    @property
    def ranks(self) -> int:
        return self.traits.ranks

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        t, share = self.traits, step / self.traits.steps
        warm = min(1.0, (step + 1) / max(20, t.steps // 50))
        shape = {
            "constant": 1.0,
            "warm-up": warm,
            "cosine": warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share))),
            "steps": 0.1 ** int(share * 3),
            "restarts": 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * ((share * 5) % 1))),
            "one cycle": min(share / 0.3, (1 - share) / 0.7 + 1e-3) + 1e-3,
        }
        return t.lr * shape[t.schedule]

    def __iter__(self) -> Iterator[Step | Tick]:
        """Its steps, with moments in between where it pauses for long."""
        clock, number, attempt = BEGAN_NS, 0, 1
        scale, skips = 65536.0, int(self.rng.integers(0, 6)) if self.traits.half else 0
        for begin in range(0, self.traits.steps, CHUNK):
            chunk = self._chunk(begin, min(CHUNK, self.traits.steps - begin))
            for at, norms in enumerate(chunk):
                t = begin + at
                if t == self.resumes:
                    attempt, number = 2, max(0, number - int(self.rng.integers(1, 200)))
                    clock += 120 * SECOND_NS
                if self.traits.half and (t < skips or t % 2000 == 1999):
                    scale, bad = scale / 2, "inf"
                elif self.traits.half and t % 2000 == 1000:
                    scale, bad = scale * 2, ""
                else:
                    bad = "nan" if t in self.bad else ""
                seconds, phases, events = self._times(t, number)
                clock = yield from self._pauses(attempt, clock, seconds, phases)
                scalars = self._scalars(t, norms, phases, scale)
                yield self._step(t, number, attempt, clock, norms, bad, scalars, phases, events)
                number += 1

    def _pauses(
        self, attempt: int, clock: int, seconds: float, phases: Mapping[str, float]
    ) -> Iterator[Tick]:
        """What the service asks while it waits for the step; the clock when that came."""
        phase = next((p for p in ("evaluation", "checkpoint") if p in phases), None)
        for passed in range(20, min(int(seconds), 1200), 20):
            now = clock + passed * SECOND_NS
            ranks = tuple(
                RankLiveness(r, now - 5 * SECOND_NS, 0, clock, phase) for r in range(self.ranks)
            )
            yield Tick(now, Liveness(attempt, BEGAN_NS, BEGAN_NS, ranks))
        return clock + round(seconds * SECOND_NS)

    def _chunk(self, begin: int, count: int) -> Floats:
        """Norms by step and layer; 0 where a layer had nothing to do."""
        t, rng, rows = self.traits, self.rng, len(self.base)

        def noise(*shape: int) -> Floats:
            spread = math.sqrt(t.tails / (t.tails - 2))
            return np.asarray(rng.standard_t(t.tails, shape) / spread, np.float64)

        common = np.empty(count)
        kept, fresh = t.memory, math.sqrt(1 - t.memory**2)
        for at, drawn in enumerate(noise(count)):
            self._common = common[at] = kept * self._common + fresh * drawn
        alone = math.sqrt((1 - t.together) / 2)
        own = noise(count, rows) + noise(count, self.blocks)[:, self.block]
        y = t.sigma / math.log(10) * (math.sqrt(t.together) * common[:, None] + alone * own)
        y += self.base - 0.3 * np.log10(1 + (begin + np.arange(count)) / 500)[:, None]
        self._drift += rng.normal(0, 0.002 * math.sqrt(count), rows)
        for at in range(count):
            moved = self.shifts.get(begin + at)
            if moved is not None:
                part = self.block >= (rng.integers(self.blocks) if rng.random() < 0.5 else 0)
                self._level += moved * (part if begin + at not in self.marks else 1)
                self._level = np.clip(self._level, -0.8, 0.8)
            y[at] += self._level + self._drift
        for at, factor in self.spikes.items():
            if begin <= at < begin + count:
                lasts = int(rng.integers(1, 3))
                hit = self.block < rng.integers(1, self.blocks + 1)
                y[at - begin : at - begin + lasts] += math.log10(factor) * hit
        norms = 10.0**y
        if self.idle.any():
            for at in range(count):
                drawn = rng.random(rows)
                again = rng.random(rows) < 0.7
                self._busy = np.where(again, self._busy, drawn > self.idle)
                norms[at] *= self._busy
        return norms

    def _loss(self, step: int) -> float:
        t, rng = self.traits, self.rng
        shapes = {
            "steep": 1.5 + 9 / (1 + step / 50) ** 0.5,
            "slow": 2.0 + 2 / (1 + step / 3000),
            "flat": 1.9,
            "negative": -8 * (1 - math.exp(-step / 2000)),
            "wandering": 0.7,
        }
        gain = {"flat": 0.3, "wandering": 0.3}.get(t.loss, 3.0)
        if step in self.spikes:
            self._sick_loss = float(rng.uniform(0.3, 3)) * gain
        if step in self.shifts:
            width = 0.4 if step in self.marks else 0.03
            moved = float(rng.uniform(-width, width)) * gain
            self._harder += max(0.0, moved)
            self._easier += min(0.0, moved)
        self._sick_loss *= 0.7
        self._harder *= 0.999  # harder data are learned in time, easier ones stay easy
        self._wander = 0.8 * self._wander + 0.6 * float(rng.standard_t(6)) / 1.22
        noise = 0.3 * t.noise * gain * (self._wander if t.loss == "wandering" else 1.0)
        if t.loss != "wandering":
            noise *= float(rng.standard_t(6)) / 1.22
        return shapes[t.loss] + self._sick_loss + self._harder + self._easier + noise

    def _times(self, t: int, number: int) -> tuple[float, dict[str, float], list[dict[str, Any]]]:
        """Seconds of a step with its pauses, the phases in them, and what is told of it."""
        rng, usual = self.rng, self.traits.seconds
        busy = usual * float(np.exp(rng.normal(0, 0.05))) * (1 + 0.1 * math.sin(t / 700))
        if rng.random() < 0.005:
            busy *= float(rng.uniform(1.5, 5))
        phases = {"data": usual * self.waits * float(rng.uniform(0.5, 1.5))}
        events: list[dict[str, Any]] = []
        if t % self.epoch == 0:
            phases["data"] += usual * float(rng.uniform(1, 10))
        if t % self.evaluations == self.evaluations - 1:
            phases["evaluation"] = float(rng.uniform(5, 200))
        if t % self.saves == self.saves - 1:
            phases["checkpoint"] = took = float(rng.uniform(2, 10)) + usual
            events.append(
                {
                    "kind": "checkpoint",
                    "path": f"/checkpoints/{number}.pt",
                    "saved_step": number,
                    "seconds": took,
                    "ok": True,
                    "finite": True,
                    "bytes": int(self.sizes.sum() * 12),
                    "sha256": f"{number:064x}",
                }
            )
        if t in self.marks:
            events.append({"kind": "mark", "name": self.marks[t], "value": t})
        if t in (0, self.resumes):
            events.append({"kind": "start", "hooks": ["clip", "step"]})
        phases |= {"forward": busy * 0.3, "backward": busy * 0.55, "optimizer": busy * 0.1}
        return busy * 0.05 + sum(phases.values()), phases, events

    def _scalars(
        self, t: int, norms: Floats, phases: Mapping[str, float], scale: float
    ) -> dict[str, float]:
        told: dict[str, float] = {}
        rate = self.rate(t)
        loss = self._loss(t)
        if "loss" in self.traits.logs:
            told["loss"] = loss
        if "lr" in self.traits.logs:
            told["lr"] = rate
        if "tokens" in self.traits.logs:
            told["tokens"] = 65536.0 * (1 - 0.3 * float(self.rng.random()))
        if self.traits.half:
            told["loss_scale"] = scale
        if t % self.epoch == 0:
            told["data_start"] = 1.0
        if self.traits.capture != "unclipped":
            norm = math.sqrt(float(np.square(norms.astype(np.float32).astype(np.float64)).sum()))
            told |= {"clip_norm": norm, "clip_max_norm": self.clip}
            told["clip_coefficient"] = min(1.0, self.clip / (norm + 1e-6))
        if t % 8 == 0:
            held = 40 * _GB + 2 * _GB * float(self.rng.random())
            told["gpu_memory_allocated_bytes"] = held
            told["gpu_memory_peak_bytes"] = 60.0 * _GB
            told["gpu_memory_reserved_bytes"] = 66.0 * _GB
            told["gpu_memory_retries"] = float(t // 3000)
            told["gpu_memory_ooms"] = 0.0
        return told

    def _step(
        self,
        t: int,
        number: int,
        attempt: int,
        time_ns: int,
        norms: Floats,
        bad: str,
        scalars: dict[str, float],
        phases: Mapping[str, float],
        events: list[dict[str, Any]],
    ) -> Step:
        traits = self.traits
        if bad:
            scalars.pop("clip_norm", None)
            scalars.pop("clip_coefficient", None)
        captured = number % traits.every == 0 or bool(bad)
        capture: wire.Capture = traits.capture if captured else ""
        stepped = not bad
        groups = {}
        if captured:
            if traits.capture == "post_clip" and "clip_coefficient" in scalars:
                norms = norms * scalars["clip_coefficient"]
            values, quantities = self._matrix(t, number, norms, bad, scalars.get("lr"))
            held = GroupStep(values, quantities, self.layout_hash, 0, capture, stepped)
            groups = {0: held}
        roots = b""
        if captured and self.ranks > 1:
            words = self.rng.integers(1, 2**63, wire.ROOT_WORDS, np.uint64)
            words[0] = number // traits.every % wire.SLICES
            roots = words.tobytes()
        return Step(
            attempt=attempt,
            step=number,
            time_ns=time_ns,
            first_received_ns=time_ns + SECOND_NS // 4,
            groups=groups,
            ranks={
                rank: RankStep(
                    group=0,
                    time_ns=time_ns,
                    scalars=self._of_rank(rank, scalars, phases),
                    stepped=stepped,
                    capture=capture,
                    bad_gradient=bool(bad) and rank == 0,
                    spoke=captured and rank == 0,
                    roots=roots,
                )
                for rank in range(self.ranks)
            },
            events=tuple((0, event) for event in events),
        )

    def _of_rank(
        self, rank: int, scalars: Mapping[str, float], phases: Mapping[str, float]
    ) -> dict[str, float]:
        """What one rank says: ranks end a step together, and who is early waits in backward."""
        told = dict(scalars) | {f"{name}_seconds": value for name, value in phases.items()}
        busy = phases["backward"] / 0.55
        told["step_seconds"] = busy * 0.05 + sum(phases.values())
        if self.ranks > 1:
            if "loss" in told:
                told["loss"] += abs(told["loss"]) * 0.02 * float(self.rng.normal())
            early = busy * 0.04 * float(self.rng.random())
            moved = busy * 0.05
            told["forward_seconds"] -= early
            told["backward_seconds"] += early
            told["allreduce_seconds"] = early + moved * 0.1
            told["allreduce_exposed_seconds"] = early + moved * 0.3
            told["allreduce_total_seconds"] = early + moved
            told["allreduce_bytes"] = float(self.sizes.sum() * 4)
            told["allreduce_buckets"] = 12.0
        return told

    def _matrix(
        self, t: int, number: int, norms: Floats, bad: str, rate: float | None
    ) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        """The matrix of one captured step and its columns, as the standard preset takes them."""
        turn, traits = number // self.traits.every, self.traits
        wide, slow = turn % 10 == 0, turn % 4 == 0
        quantities = _FULL if wide else _SLOW if slow or turn < 20 else wire.QUANTITIES
        values = np.full((len(norms), len(quantities)), np.nan, np.float32)
        rms = norms / np.sqrt(self.sizes)
        values[:, 0] = norms
        values[:, 1] = np.minimum(norms, 5 * rms)
        values[:, 2:4] = 0
        zeros = np.where(norms > 0, np.round(self.sizes * self.zeros), self.sizes)
        values[:, 4] = zeros
        small = np.minimum(1.0, 0.8e-8 / np.maximum(rms, 1e-30))
        values[:, 5] = zeros + (self.sizes - zeros) * small
        if wide:
            values[:, 6:22] = histogram(rms, self.sizes - zeros)
        if turn < 20 or slow:
            steps = t + 1
            size = self.weights * np.where(self.grows, 1 - math.exp(-steps / 500), 1.0)
            rows = np.arange(len(norms))
            taken = rows % wire.SLICES == turn // 4 % wire.SLICES if slow else np.zeros_like(rows)
            now = self.rate(t) if rate is None else rate
            if traits.adam:
                moved = 0.3 * now * np.sqrt(self.sizes)
            else:
                moved = 1e-3 * self.weights * (now / traits.lr) * norms / 10**self.base
            moved *= np.exp(self.rng.normal(0, 0.3, len(norms)))
            if not bad:
                values[:, -1] = np.where(taken, moved / np.maximum(size, moved), np.nan)
            values[:, -2] = np.where((turn < 20) | (taken > 0), size, np.nan)
        if bad:
            hit = self.block <= int(self.rng.integers(self.blocks))
            values[hit, 0:2] = np.nan if bad == "nan" else np.inf
            values[hit, 2 if bad == "nan" else 3] = 7
        return values, quantities


_GRID = np.linspace(-40, 6, 2000)
"""log2 of a magnitude over the RMS, and the share of normally distributed values below it."""
_BELOW = np.array([math.erf(2.0**g / math.sqrt(2)) for g in _GRID])
_EDGES = np.log2(wire.histogram_edges())


def histogram(rms: Floats, counts: Floats) -> Floats:
    """Counts by exponent of normally distributed values, [layers, 16]."""
    place = _EDGES[None, :] - np.log2(np.maximum(rms, 1e-30))[:, None]
    below = np.interp(place, _GRID, _BELOW)
    edges = np.concatenate([np.zeros((len(rms), 1)), below, np.ones((len(rms), 1))], axis=1)
    return np.asarray(np.round(np.diff(edges, axis=1) * counts[:, None]), np.float64)
