"""The guard's own checkpoints: saved by the user's function, verified, restored, thrown away."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gradwarden.checkpoint import checksum, modified
from gradwarden.errors import say
from gradwarden.guard import flags
from gradwarden.guard.agreement import Agreement
from gradwarden.guard.checkpoints import Ledger, Saved
from gradwarden.guard.options import Guard


class Shelf:
    """Files of one rank. Failures are said and reported; none reaches the training."""

    def __init__(
        self,
        guard: Guard,
        model: nn.Module,
        ledger: Ledger,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self._guard, self._model, self._ledger, self._report = guard, model, ledger, report
        self._threads: list[threading.Thread] = []

    def save(self, step: int, first: bool = False) -> None:
        """Have the state saved; its checksum is taken by a thread beside the training."""
        assert self._guard.save is not None
        started = time.perf_counter()
        event = {"kind": "checkpoint", "saved_step": step, "ok": False, "by": "guard"}
        try:
            path = Path(self._guard.save(step))
            # Read at once: what is on a device had to be waited for by the save as well.
            finite = not bool(flags.of_tensors(_floats(self._model)))
        except Exception as error:
            seconds = time.perf_counter() - started
            self._report({**event, "seconds": seconds, "error": f"{type(error).__name__}: {error}"})
            say(f"guard: save({step}) failed ({type(error).__name__}: {error}); training goes on")
            return
        event |= {"path": str(path), "seconds": time.perf_counter() - started, "finite": finite}
        self._ledger.saved(step, path, finite, proven=first, ours=True)
        thread = threading.Thread(
            target=self._describe, args=(path, event), name="gradwarden-checksum", daemon=True
        )
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()
        for old in self._ledger.superfluous(self._guard.keep):
            self._throw_away(old)

    def restore(self, before: int, agreement: Agreement) -> tuple[Saved | None, str]:
        """Restore the newest checkpoint that is healthy on all ranks, and which, or why not.

        Only one of a step ``before`` the finding: ranks act two steps after it, and what was
        saved meanwhile may carry it. A file whose checksum differs on any rank is refused on
        all; the next older healthy one is taken.
        """
        assert self._guard.restore is not None
        for thread in self._threads:
            thread.join(self._guard.timeout)
        held = {h.step: h for h in reversed(self._ledger.healthy()) if h.ours and h.step < before}
        for step in agreement.common(list(held)):
            entry = held[step]
            sound = self._sound(entry)
            if not agreement.all(sound):
                if sound:
                    say(f"guard: another rank refuses its checkpoint of step {step}")
                self._ledger.drop(entry)
                continue
            fault = self._restored(entry.path)
            if not agreement.all(fault is None):
                return None, f"restoring {entry.path} failed ({fault or 'on another rank'})"
            for later in self._ledger.rewound(entry):
                if later.ours:
                    self._throw_away(later)
            return entry, ""
        return None, "no healthy checkpoint to go back to"

    def _restored(self, path: Path) -> str | None:
        assert self._guard.restore is not None
        try:
            self._guard.restore(path)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None

    def _sound(self, entry: Saved) -> bool:
        try:
            wrong = None if checksum(entry.path)[0] == entry.sha256 else "its checksum differs"
        except OSError as error:
            wrong = f"{type(error).__name__}: {error}"
        if wrong is None:
            return True
        say(f"guard: {entry.path} is refused: {wrong} from when it was saved")
        event = {"kind": "checkpoint", "path": str(entry.path), "saved_step": entry.step}
        self._report({**event, "ok": False, "by": "guard", "verified": False, "error": wrong})
        return False

    def _describe(self, path: Path, event: dict[str, Any]) -> None:
        try:
            digest, size = checksum(path)
            written = modified(path)
        except OSError as error:
            if self._ledger.holds(path):  # else it was thrown away meanwhile
                self._report({**event, "error": f"{type(error).__name__}: {error}"})
            return
        self._ledger.described(path, digest, size, written)
        described = {"bytes": size, "sha256": digest, "modified_ns": written, "ok": True}
        self._report({**event, **described})

    def _throw_away(self, entry: Saved) -> None:
        self._ledger.drop(entry)
        try:
            if entry.path.is_dir():
                shutil.rmtree(entry.path)
            else:
                entry.path.unlink(missing_ok=True)
        except OSError as error:
            say(f"guard: {entry.path} could not be deleted ({error})")


def _floats(model: nn.Module) -> Iterable[Tensor]:
    yield from (p.detach() for p in model.parameters())
    yield from (b for b in model.buffers() if b.is_floating_point())
