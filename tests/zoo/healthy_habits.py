"""Healthy: habits that no list of cases foresaw. Each is how somebody trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo.births import deep
from tests.zoo.cases import Case
from tests.zoo.ground import Ground
from tests.zoo.healthy_models import Transformer, next_letter


def two_lines(ground: Ground) -> None:
    """Nothing is logged: what the SDK sees by itself is all there is."""
    model = deep(64, 3, nn.ReLU)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    ground.watch(model, optimizer)
    for _, (x, y) in ground.batches(*data.digits(), 64, 600):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def lbfgs(ground: Ground) -> None:
    """A whole table at once, and a closure."""
    x, y = data.cancer()
    model = nn.Sequential(nn.Linear(30, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=4)
    monitor = ground.watch(model, optimizer)
    for _ in range(150):

        def closure() -> Tensor:
            optimizer.zero_grad()
            guess = model(x)[:, 0]
            loss = functional.binary_cross_entropy_with_logits(guess, y.float())
            loss = loss + 1e-3 * sum(p.square().sum() for p in model.parameters())
            loss.backward()
            return loss

        monitor.log(loss=optimizer.step(closure))


def single_samples(ground: Ground) -> None:
    """Batches of one: the gradient is whatever that sample says."""
    x, y = data.cancer()
    model = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    ground.watch(model, optimizer)
    for _, (some, target) in ground.batches(x, y, 1, 1500):
        ground.step(model, optimizer, functional.cross_entropy(model(some), target))


def summed_loss(ground: Ground) -> None:
    """A sum over the batch instead of a mean, with a learning rate to match."""
    model = deep(64, 2, nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), 5e-4, momentum=0.9)
    ground.watch(model, optimizer)
    for _, (x, y) in ground.batches(*data.digits(), 64, 700):
        ground.step(model, optimizer, functional.cross_entropy(model(x), y, reduction="sum"))


def frozen_norms(ground: Ground) -> None:
    """Statistics of the norms are frozen for the second half, dropout goes on."""
    x, y = data.digits()
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1))
    model.extend([nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    ground.watch(model, optimizer)
    for step, (some, target) in ground.batches(x, y, 64, 700):
        if step == 350:
            for part in model:
                if isinstance(part, nn.BatchNorm1d):
                    part.eval()
        ground.step(model, optimizer, functional.cross_entropy(model(some), target))


def validated(ground: Ground) -> None:
    """A validation loss that falls, stands still, and trembles a little."""
    x, y = data.digits()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(ground.seed))
    train, rest = order[:1400], order[1400:]
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1)
    monitor = ground.watch(model, optimizer)
    for step, (some, target) in ground.batches(x[train], y[train], 64, 1100):
        ground.step(model, optimizer, functional.cross_entropy(model(some), target))
        if step % 50 == 49:
            model.eval()
            with torch.no_grad():
                monitor.log(val_loss=functional.cross_entropy(model(x[rest]), y[rest]))
            model.train()


def distilled(ground: Ground) -> None:
    """A teacher in eval mode without gradients beside the student."""
    x, y = data.digits()
    teacher = deep(96, 2, nn.ReLU)
    helper = torch.optim.Adam(teacher.parameters(), 2e-3)
    for _, (some, target) in ground.batches(x, y, 64, 150):
        helper.zero_grad()
        functional.cross_entropy(teacher(some), target).backward()
        helper.step()
    teacher.eval().requires_grad_(False)
    student = deep(32, 2, nn.ReLU)
    model = nn.ModuleDict({"teacher": teacher, "student": student})
    optimizer = torch.optim.Adam(student.parameters(), 2e-3)
    ground.watch(model, optimizer)
    for _, (some, _) in ground.batches(x, y, 64, 600):
        with torch.no_grad():
            wanted = teacher(some).softmax(-1)
        guess = student(some).log_softmax(-1)
        loss = functional.kl_div(guess, wanted, reduction="batchmean")
        ground.step(student, optimizer, loss)


def deep_transformer(ground: Ground) -> None:
    """Twelve blocks: gradients differ by depth, as they do."""
    numbers, letters = data.text()
    model = Transformer(letters, width=32, depth=12)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    ground.watch(model, optimizer)
    for _ in range(250):
        batch = data.lines(numbers, 16, 4, ground.generator)
        ground.step(model, optimizer, next_letter(model, batch))


def late_start(ground: Ground) -> None:
    """The learning rate is zero for a while, then rises, then falls in steps."""
    model = deep(64, 3, nn.GELU)
    optimizer = torch.optim.RMSprop(model.parameters(), 5e-4)

    def factor(step: int) -> float:
        return 0.0 if step < 50 else min(1.0, (step - 50) / 100) * 0.1 ** (step // 400)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    ground.watch(model, optimizer)
    for _, (x, y) in ground.batches(*data.digits(), 64, 900):
        ground.step(model, optimizer, functional.cross_entropy(model(x), y))
        schedule.step()


CASES = (
    Case("healthy_two_lines", two_lines),
    Case("healthy_lbfgs", lbfgs),
    Case("healthy_single_samples", single_samples),
    Case("healthy_summed_loss", summed_loss),
    Case("healthy_frozen_norms", frozen_norms),
    Case("healthy_validated", validated),
    Case("healthy_distilled", distilled),
    Case("healthy_deep_transformer", deep_transformer),
    Case("healthy_late_start", late_start),
)
