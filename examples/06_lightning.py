"""Run: pip install lightning, then python examples/06_lightning.py.
See: the steps as Lightning's loggers number them, the loss of each, and validation as a pause.
"""

import os

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradwarden.integrations.lightning import GradwardenCallback

STEPS = int(os.environ.get("STEPS", "200"))


class Regression(pl.LightningModule):
    """Learns a function of 32 numbers that a hidden matrix decides."""

    def __init__(self, width: int = 64, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()  # they are shown with the run
        blocks = [nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(4)]
        self.net = nn.Sequential(nn.Linear(32, width), *blocks, nn.Linear(width, 4))

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return nn.functional.mse_loss(self.net(inputs), targets)

    def validation_step(self, batch, batch_idx):
        inputs, targets = batch
        self.log("val_loss", nn.functional.mse_loss(self.net(inputs), targets))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


torch.manual_seed(0)
inputs = torch.randn(4096, 32)
targets = torch.tanh(inputs @ torch.randn(32, 4) / 4)
train = DataLoader(TensorDataset(inputs[512:], targets[512:]), batch_size=32, shuffle=True)
validate = DataLoader(TensorDataset(inputs[:512], targets[:512]), batch_size=512)

trainer = pl.Trainer(
    max_steps=STEPS,
    gradient_clip_val=1.0,
    callbacks=[GradwardenCallback(name="lightning")],  # this is all
    val_check_interval=50,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Regression(), train, validate)
