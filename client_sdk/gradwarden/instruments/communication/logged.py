"""What DDP itself writes down of a backward pass, for where no hook is wanted or possible.

Host clocks only: on a device DDP would wait for its events. Gradients are not touched at all.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from torch.nn.parallel import DistributedDataParallel

_DEFAULT_RATE = 100
"""torch's own sample rate."""


class Logged:
    """One DDP's own log, read once a step."""

    def __init__(self, ddp: DistributedDataParallel) -> None:
        """Ask DDP to time every step.

        Raises:
            AttributeError: this torch hides its log.
        """
        self._ddp: weakref.ref[Any] = weakref.ref(ddp)
        self._rate(1)
        self._iteration = -1

    def step_ended(self) -> dict[str, float]:
        """Seconds from the first hand-over to the last return, bytes and buckets.

        Empty where nothing was reduced since the last call.
        """
        ddp = self._ddp()
        if ddp is None or ddp.logger is None:
            return {}
        ddp.logger.set_runtime_stats_and_log()  # else the log holds the backward before this one
        log = ddp._get_ddp_logging_data()
        iteration = int(log.get("iteration", -1))
        nanoseconds = int(log.get("backward_comm_time", 0))
        if iteration == self._iteration or nanoseconds <= 0:
            return {}
        self._iteration = iteration
        sizes = _sizes(log)
        found = {"allreduce_total_seconds": nanoseconds / 1e9}
        if sizes:
            found |= {"allreduce_bytes": float(sum(sizes)), "allreduce_buckets": float(len(sizes))}
        if len(sizes) == 1:
            found["allreduce_seconds"] = found["allreduce_exposed_seconds"] = nanoseconds / 1e9
        return found

    def stop(self) -> None:
        """Let DDP sample as it would by itself."""
        self._rate(_DEFAULT_RATE)

    def _rate(self, every: int) -> None:
        ddp = self._ddp()
        if ddp is not None:
            ddp._set_ddp_runtime_logging_sample_rate(every)


def _sizes(log: Mapping[str, Any]) -> list[int]:
    """Bytes of each bucket; they are rebuilt after the first backward."""
    said = log.get("rebuilt_bucket_sizes") or log.get("bucket_sizes") or ""
    return [int(part) for part in str(said).split(",") if part.strip().isdigit()]
