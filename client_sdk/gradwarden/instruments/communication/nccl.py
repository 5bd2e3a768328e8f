"""NCCL's own word on each collective, by private names of torch; opt-in.

It covers every collective of the process group and touches no gradient, but its timing events
are known to raise the chance of a watchdog hang, and to have broken overlap with computing.
A watchdog tells the end of a collective late, so that the numbers lag and get a name of their
own: they cannot be held against another rank's of the same step.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any

import torch.distributed as dist

_SCALARS = {
    "ALLREDUCE": "allreduce_late_seconds",
    "REDUCE_SCATTER": "reduce_scatter_late_seconds",
    "ALLGATHER": "all_gather_late_seconds",
}


class Completions:
    """Hears of each finished collective on a thread of the backend."""

    def __init__(self) -> None:
        """Listen to the default process group.

        Raises:
            RuntimeError, AttributeError: this torch or backend does not tell.
        """
        self._lock = threading.Lock()
        self._told: defaultdict[str, float] = defaultdict(float)
        self._over = False
        group: Any = dist.distributed_c10d._get_default_group()
        group._enable_collectives_timing()
        group._register_on_completion_hook(self._done)

    def step_ended(self) -> dict[str, float]:
        """Seconds on the device of the collectives that were told since the last call."""
        with self._lock:
            told, self._told = dict(self._told), defaultdict(float)
        return told

    def stop(self) -> None:
        """Hear no more; torch cannot take the hook back."""
        self._over = True

    def _done(self, info: Any) -> None:
        if self._over:
            return
        kind = str(info.op_type).rpartition(".")[2].upper().strip("_").removesuffix("_BASE")
        name = _SCALARS.get(kind)
        if name is not None:
            with self._lock:
                self._told[name] += info.active_duration.total_seconds()
