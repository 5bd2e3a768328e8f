"""``accelerator.log`` of Hugging Face Accelerate, beside its other trackers.

Capture needs nothing of this: ``watch`` works before and after ``accelerator.prepare``.
"""

from __future__ import annotations

from typing import Any

from accelerate.tracking import GeneralTracker

from gradwarden.attach import Monitor
from gradwarden.integrations import numbers


class GradwardenTracker(GeneralTracker):  # type: ignore[misc]
    """Forwards ``accelerator.log`` to a monitor, and ``accelerator.end_training`` ends its run.

    ``Accelerator(log_with=GradwardenTracker(monitor))``, or after the fact
    ``accelerator.trackers.append(GradwardenTracker(monitor))``. Every rank calls ``watch``;
    Accelerate itself logs on the main process only. The ``step`` of a log is not taken: loops
    count micro-batches or epochs by it. ``monitor.step`` says it where it is the optimizer's.
    """

    name = "gradwarden"
    requires_logging_directory = False

    def __init__(self, monitor: Monitor) -> None:
        super().__init__()
        self.monitor = monitor

    @property
    def tracker(self) -> Monitor:
        """What ``accelerator.get_tracker("gradwarden", unwrap=True)`` gives."""
        return self.monitor

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Attach the numbers among ``values`` to the step in progress."""
        self.monitor.log(**numbers(values))

    def finish(self) -> None:
        """End the run."""
        self.monitor.finish()
