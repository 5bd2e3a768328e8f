"""The demo's trainer: a small convolutional network learns handwritten digits.

Run as a process of its own, like anybody's training script. With ``--sick`` one image of the
training set is blank, as a failed download or an empty scan would be. The network's middle
gate takes the root of a mean square without an epsilon: at exactly zero its derivative is
infinite, infinity times zero is NaN, and from the step that meets the blank image on the
network is lost, while the loss of that step still looks fine.
"""

from __future__ import annotations

import argparse
import math
import random
from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import gradwarden

BATCH = 32


class Block(nn.Module):
    """Convolution, a gate that scales each image by its own energy, and activation."""

    def __init__(self, inputs: int, outputs: int, gated: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.gated = gated

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, 8, 8] to [n, outputs, 8, 8]."""
        x = self.conv(x)
        if self.gated:
            energy = x.pow(2).mean(dim=(1, 2, 3), keepdim=True)
            x = x * energy.sqrt()  # the bug: no epsilon under the root
        return torch.relu(x)


class DigitNet(nn.Module):
    """Five convolution blocks and a linear head; the third block is gated."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        sizes = [1, width, width, width, width, width]
        self.blocks = nn.Sequential(
            *(Block(a, b, gated=i == 2) for i, (a, b) in enumerate(pairwise(sizes)))
        )
        self.head = nn.Linear(width * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 1, 8, 8] images to [n, 10] logits."""
        logits: Tensor = self.head(self.blocks(x).flatten(1))
        return logits


def main(argv: list[str] | None = None) -> None:
    """Train; print the final accuracy, or fail as the script itself would notice it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--sick", action="store_true")
    arguments = parser.parse_args(argv)
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    torch.manual_seed(seed)
    torch.set_num_threads(1)

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images))
    train, held_out = order[:1500], order[1500:]
    batches = [train[torch.randint(len(train), (BATCH,))] for _ in range(arguments.steps)]
    blank_step = -1
    if arguments.sick:
        blank_step = int(torch.randint(arguments.steps // 2, arguments.steps * 3 // 4, ()))
        blank = images.new_zeros(1, 1, 8, 8)
        images, labels = torch.cat([images, blank]), torch.cat([labels, labels[:1]])
        batches[blank_step][0] = len(images) - 1

    model = DigitNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    monitor = gradwarden.watch(model, optimizer, throttle=False)  # a picture without holes
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        monitor.log(loss=loss, lr=optimizer.param_groups[0]["lr"])
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    with torch.no_grad():
        logits = model(images[held_out])
    accuracy = (logits.argmax(1) == labels[held_out]).float().mean().item()
    if not math.isfinite(logits.sum().item()):
        print(f"the blank image was in the batch of step {blank_step}", flush=True)
        raise FloatingPointError("validation logits are NaN")
    print(f"accuracy {accuracy:.3f}", flush=True)


if __name__ == "__main__":
    main()
