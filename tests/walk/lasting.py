"""When a training that lasts as long as a test wants is over."""

from __future__ import annotations

from pathlib import Path

import torch


def is_over(stop: Path) -> bool:
    """Whether the file exists; ranks of a group agree, or one would wait for those that left."""
    over = torch.tensor(float(stop.exists()))
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(over, torch.distributed.ReduceOp.MAX)
    return bool(over)
