"""Healthy: networks of many kinds, each trained as people train it. Nobody may be woken."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo.births import Reader, deep
from tests.zoo.cases import CLIPPED, Case
from tests.zoo.ground import Ground


def mlp_adam(ground: Ground) -> None:
    model = deep(64, 3, nn.ReLU)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    ground.watch(model, optimizer)
    for _, (x, y) in ground.batches(*data.digits(), 64, 1000):
        ground.step(model, optimizer, functional.cross_entropy(model(x), y))


def regression(ground: Ground) -> None:
    """A small table, plain SGD; the loss ends at its noise."""
    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    ground.watch(model, optimizer)
    for _, (x, y) in ground.batches(*data.diabetes(), 32, 1000):
        ground.step(model, optimizer, functional.mse_loss(model(x), y))


def cnn_sgd_cosine(ground: Ground) -> None:
    x, y = data.digits()
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    model.extend([nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)])
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
    ground.watch(model, optimizer)
    for _, (some, target) in ground.batches(x.view(-1, 1, 8, 8), y, 32, 800):
        ground.step(model, optimizer, functional.cross_entropy(model(some), target))
        schedule.step()


class Attention(nn.Module):
    """One block of a transformer, norms first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(*heads.unbind(0), is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """A small GPT over characters."""

    def __init__(self, letters: int, width: int = 48, depth: int = 3, longest: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters, width)
        self.position = nn.Embedding(longest, width)
        self.blocks = nn.ModuleList(Attention(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, letters, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embedding(x) + self.position(torch.arange(x.shape[1]))
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))


def next_letter(model: nn.Module, batch: Tensor) -> Tensor:
    """The loss of guessing each letter from those before it."""
    return functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def warm_up_cosine(steps: int, warm: int) -> object:
    """The factor of the learning rate at a step."""

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(1, steps - warm))

    return factor


def transformer(ground: Ground) -> None:
    numbers, letters = data.text()
    model = Transformer(letters)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up_cosine(600, 100))  # type: ignore[arg-type]
    ground.watch(model, optimizer)
    for _ in range(600):
        batch = data.lines(numbers, 32, 8, ground.generator)
        ground.step(model, optimizer, next_letter(model, batch), tokens=8 * 32)
        schedule.step()


def bf16_autocast(ground: Ground) -> None:
    model = deep(64, 3, nn.GELU)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    ground.watch(model, optimizer)
    for _, (x, y) in ground.batches(*data.digits(), 64, 500):
        with torch.autocast("cpu", torch.bfloat16):
            loss = functional.cross_entropy(model(x), y)
        ground.step(model, optimizer, loss)


def fp16_calibration(ground: Ground) -> None:
    """A scaler that begins far too high: its first skips are how it finds its scale."""
    model = deep(64, 3, nn.ReLU)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=200)
    monitor = ground.watch(model, optimizer)
    for _, (x, y) in ground.batches(*data.digits(), 64, 600):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        if ground.variant == "clip":
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        monitor.log(loss=loss)


class Residual(nn.Module):
    """Two convolutions with BatchNorm beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(hidden)))


def residual_net(ground: Ground) -> None:
    x, y = data.digits()
    stem = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Sequential(*stem, *(Residual(16) for _ in range(4)))
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)])
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [250, 350], 0.1)
    ground.watch(model, optimizer)
    for _, (some, target) in ground.batches(x.view(-1, 1, 8, 8), y, 32, 420):
        ground.step(model, optimizer, functional.cross_entropy(model(some), target))
        schedule.step()


def lstm(ground: Ground) -> None:
    numbers, letters = data.text()
    model = Reader(letters, nn.LSTM(16, 48, batch_first=True), 48)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    ground.watch(model, optimizer)
    for _ in range(500):
        ground.step(
            model,
            optimizer,
            next_letter(model, data.lines(numbers, 24, 16, ground.generator)),
        )


def _trained(ground: Ground, width: int = 64) -> nn.Sequential:
    """A network that was trained before, unwatched."""
    model = deep(width, 3, nn.ReLU)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _, (x, y) in ground.batches(*data.digits(), 64, 150):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y % 5).backward()  # another question
        optimizer.step()
    return model


def frozen_backbone(ground: Ground) -> None:
    model = _trained(ground)
    for parameter in model[:-1].parameters():
        parameter.requires_grad = False
    model[-1] = nn.Linear(64, 10)
    optimizer = torch.optim.Adam(model[-1].parameters(), 2e-3)
    ground.watch(model, optimizer)
    for _, (x, y) in ground.batches(*data.digits(), 64, 500):
        ground.step(model, optimizer, functional.cross_entropy(model(x), y))


class LoRA(nn.Module):
    """A frozen layer with a trained product of two narrow matrices beside it, B = 0 at first."""

    def __init__(self, base: nn.Linear, inner: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(inner, base.in_features) / base.in_features**0.5)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, inner))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * (x @ self.lora_A.T) @ self.lora_B.T


def lora(ground: Ground) -> None:
    model = _trained(ground)
    for i, part in enumerate(model):
        if isinstance(part, nn.Linear):
            model[i] = LoRA(part)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 2e-3)
    ground.watch(model, optimizer)
    for _, (x, y) in ground.batches(*data.digits(), 64, 700):
        ground.step(model, optimizer, functional.cross_entropy(model(x), y))


class Words(nn.Module):
    """Guesses a word from the four before it."""

    def __init__(self, embedding: nn.Embedding, words: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.fc = nn.Linear(4 * embedding.embedding_dim, 48)
        self.head = nn.Linear(48, words)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.fc(self.embedding(x).flatten(1))))


def sparse_embedding(ground: Ground) -> None:
    """An embedding with sparse gradients and an optimizer of its own."""
    numbers, count = data.tokens()
    model = Words(nn.Embedding(count, 16, sparse=True), count)
    dense = torch.optim.Adam([*model.fc.parameters(), *model.head.parameters()], 2e-3)
    sparse = torch.optim.SparseAdam(model.embedding.parameters(), 2e-3)
    monitor = ground.watch(model, [dense, sparse])
    for _ in range(500):
        batch = data.lines(numbers, 4, 32, ground.generator)
        for optimizer in (dense, sparse):
            optimizer.zero_grad()
        loss = functional.cross_entropy(model(batch[:, :4]), batch[:, 4])
        loss.backward()
        dense.step()
        sparse.step()
        monitor.log(loss=loss)


def wide_embedding(ground: Ground) -> None:
    """50,000 rows, of which a batch uses some dozens: nearly all of the gradient is zero."""
    numbers, count = data.tokens()
    model = Words(nn.Embedding(50_000, 16), count)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    ground.watch(model, optimizer)
    for _ in range(300):
        batch = data.lines(numbers, 4, 32, ground.generator)
        ground.step(model, optimizer, functional.cross_entropy(model(batch[:, :4]), batch[:, 4]))


class Experts(nn.Module):
    """A router sends each sample to one of eight experts; some are idle in most batches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 32)
        self.router = nn.Linear(32, 8)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)) for _ in range(8)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.stem(x))
        wish = self.router(hidden)
        shares = (wish + torch.randn_like(wish) / 2).softmax(-1)  # so that each is tried
        best, chosen = shares.max(-1)
        mixed = torch.zeros_like(hidden)
        for i, expert in enumerate(self.experts):
            at = (chosen == i).nonzero()[:, 0]
            mixed = mixed.index_add(0, at, expert(hidden[at]) * best[at, None])
        used = functional.one_hot(chosen, 8).float().mean(0)
        return self.head(hidden + mixed), 8 * (used * shares.mean(0)).sum()


def mixture_of_experts(ground: Ground) -> None:
    model = Experts()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    ground.watch(model, optimizer)
    for _, (x, y) in ground.batches(*data.digits(), 12, 700):
        guess, balance = model(x)
        ground.step(model, optimizer, functional.cross_entropy(guess, y) + 0.1 * balance)


CASES = (
    Case("healthy_mlp_adam", mlp_adam, variants=CLIPPED, quick=True),
    Case("healthy_regression", regression),
    Case("healthy_cnn_sgd_cosine", cnn_sgd_cosine, variants=CLIPPED),
    Case("healthy_transformer", transformer, variants=("plain", "clip"), quick=True),
    Case("healthy_bf16_autocast", bf16_autocast),
    Case("healthy_fp16_calibration", fp16_calibration, variants=CLIPPED),
    Case("healthy_residual_net", residual_net),
    Case("healthy_lstm", lstm, variants=CLIPPED),
    Case("healthy_frozen_backbone", frozen_backbone),
    Case("healthy_lora", lora, quick=True),
    Case("healthy_sparse_embedding", sparse_embedding),
    Case("healthy_wide_embedding", wide_embedding),
    Case("healthy_mixture_of_experts", mixture_of_experts),
)
