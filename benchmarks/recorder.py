"""Record what real training runs send: two networks, every step captured, by the SDK itself.

Each network trains in a process of its own on one core, watched with the standard preset into
a spool folder; the spools are the recording, as wire batches. It is kept in the user's cache
folder and made anew when something that it depends on has changed. ``ingest.py`` replays it.

    python benchmarks/recorder.py                # makes it where it is missing, and describes it
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads would take both cores

import torch
from sdk_overhead import Transformer
from torch import Tensor, nn

import gradwarden

STEPS = 3072
"""Three segments of the store's usual length."""
NETWORKS = ("transformer", "convolutions")


@dataclass(frozen=True)
class Recipe:
    """What a recording depends on; another one is another recording."""

    steps: int = STEPS
    seed: int = 1
    width: int = 48
    batch: int = 8
    length: int = 32
    channels: int = 16
    images: int = 32
    blocks: int = 16
    convolutions: int = 20
    preset: Literal["light", "standard", "full"] = "standard"
    source: str = ""
    """Digest of this file, with the versions of torch and of the wire."""

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]


def recipe(steps: int = STEPS) -> Recipe:
    """The recipe of this file as it is."""
    own = Path(__file__).read_bytes() + torch.__version__.encode()
    own += str(gradwarden.wire.VERSION).encode()
    return Recipe(steps=steps, source=hashlib.sha256(own).hexdigest()[:16])


def cache_folder() -> Path:
    """Where recordings and peers are kept between runs (XDG)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gradwarden" / "benchmarks"


def recorded(wanted: Recipe) -> Path:
    """The folder of the recording, one folder per network in it; trains where it is missing.

    Raises:
        SystemExit: a network failed to train; its own words are on stderr.
    """
    folder = cache_folder() / f"recording-{wanted.digest}"
    if folder.is_dir():
        return folder
    print(f"recording {wanted.steps} steps of {' and '.join(NETWORKS)} ...", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Complete or absent: an interrupted recording leaves only a folder of another name.
    making = Path(tempfile.mkdtemp(prefix="making-", dir=folder.parent))
    try:
        command = [sys.executable, __file__, "--steps", str(wanted.steps), "--into", str(making)]
        trainers = [subprocess.Popen([*command, "--train", name]) for name in NETWORKS]
        codes = [trainer.wait() for trainer in trainers]
        if any(codes):
            raise SystemExit(f"training ended with {codes} ({', '.join(NETWORKS)})")
        (making / "recipe.json").write_text(json.dumps(asdict(wanted), indent=1))
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


class Convolutional(nn.Module):
    """Convolutions with normalisation and a linear head: 4 parameters a block and 2."""

    def __init__(self, blocks: int, channels: int) -> None:
        super().__init__()
        sizes = [1, *[channels] * blocks]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(sizes)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(blocks))
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 1, 8, 8] images to [n, 10] logits; every block but the first has a short cut."""
        for number, (convolution, norm) in enumerate(
            zip(self.convolutions, self.norms, strict=True)
        ):
            y = torch.relu(norm(convolution(x)))
            x = x + y if number else y
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def transformer(wanted: Recipe) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A language model of bytes, and the loss of its next batch of Python's own documentation."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics)).encode()
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    model = Transformer(wanted.blocks, wanted.width, 4, 256)

    def loss() -> Tensor:
        starts = torch.randint(len(tokens) - wanted.length, (wanted.batch, 1))
        found: Tensor = model(tokens[starts + torch.arange(wanted.length)])
        return found

    return model, loss


def convolutions(wanted: Recipe) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A classifier of handwritten digits, and the loss of its next batch."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    model = Convolutional(wanted.convolutions, wanted.channels)

    def loss() -> Tensor:
        rows = torch.randint(len(images), (wanted.images,))
        return nn.functional.cross_entropy(model(images[rows]), labels[rows])

    return model, loss


def train(network: str, wanted: Recipe, into: Path) -> None:
    """Train one network to the end, watched, as anybody's script would."""
    torch.manual_seed(wanted.seed)
    torch.set_num_threads(1)
    model, next_loss = {"transformer": transformer, "convolutions": convolutions}[network](wanted)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, wanted.steps)
    monitor = gradwarden.watch(
        model, optimizer, run=network, preset=wanted.preset, throttle=False, spool=into / network
    )
    for _ in range(wanted.steps):
        optimizer.zero_grad(set_to_none=True)
        loss = next_loss()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        monitor.log(loss=loss.detach(), lr=schedule.get_last_lr()[0], grad_norm=norm)
    monitor.finish()


def spools(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """Each network of a recording, with its spool's segments in order."""
    for name in NETWORKS:
        yield name, sorted((folder / name).rglob("*.spool"))


def main() -> int:
    """Record where it is missing; inside a recording, train one network."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--train", choices=NETWORKS, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    wanted = recipe(options.steps)
    if options.train:
        train(options.train, wanted, options.into)
        return 0
    folder = recorded(wanted)
    for name, paths in spools(folder):
        print(f"{name}: {sum(p.stat().st_size for p in paths):,} bytes in {folder / name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
