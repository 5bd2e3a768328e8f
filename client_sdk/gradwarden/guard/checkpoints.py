"""Which checkpoints are healthy: verified, finite, and enough clean steps behind them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(slots=True)
class Saved:
    """One checkpoint on disk and what is known of its health."""

    step: int
    path: Path
    sha256: str | None = None
    bytes: int = 0
    finite: bool | None = None
    """Whether all weights were finite when it was saved; None while that is unknown."""
    clean: int = 0
    """Clean steps in a row since it was saved."""
    proven: bool = False
    """Whether it had enough clean steps behind it once; that is never taken back."""
    source: Literal["local", "server"] = "local"
    """Who says that it is healthy."""

    @property
    def healthy(self) -> bool:
        return self.proven and self.finite is True and self.sha256 is not None


class Ledger:
    """The checkpoints of one run in step order; fed by saves and by the verdict on each step."""

    def __init__(self, healthy_after_steps: int = 200) -> None:
        self._after = healthy_after_steps

    def saved(self, step: int, path: Path, finite: bool | None, proven: bool = False) -> Saved:
        """Enter a checkpoint; its checksum follows by :meth:`described`."""
        raise NotImplementedError

    def described(self, path: Path, sha256: str, size: int) -> None:
        """The checksum of what lies at ``path`` is known."""
        raise NotImplementedError

    def step_ended(self, clean: bool) -> None:
        """One more step; a finding makes every checkpoint not yet proven start again."""
        raise NotImplementedError

    def last_healthy(self) -> Saved | None:
        """The newest healthy checkpoint."""
        raise NotImplementedError
