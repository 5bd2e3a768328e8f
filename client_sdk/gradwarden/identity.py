"""Who speaks: run, attempt, rank and its cell, the same on every rank without waiting.

Rank 0 publishes run and attempt through the default process group's key/value store, which
is no collective; the other ranks look there from their own thread until it appears.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradwarden import wire

if TYPE_CHECKING:
    from gradwarden.cells import Cell

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid(now_ns: int | None = None) -> str:
    """A new identifier that sorts by time: 48 bits of milliseconds, 80 random bits."""
    milliseconds = (time.time_ns() if now_ns is None else now_ns) // 1_000_000
    number = (milliseconds & ((1 << 48) - 1)) << 80 | secrets.randbits(80)
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


def known_run(argument: str | None) -> str | None:
    """The run id that an argument or the launcher gives; None asks rank 0 for a new one."""
    launched = os.environ.get("TORCHELASTIC_RUN_ID", "")
    candidates = (
        argument,
        os.environ.get("GRADWARDEN_RUN_ID"),
        launched if launched.lower() != "none" else None,
        os.environ.get("SLURM_JOB_ID"),
        os.environ.get("GRADWARDEN_JOB_UID"),
        os.environ.get("JOB_UID"),
    )
    for candidate in candidates:
        if candidate and wire.is_identifier(candidate):
            return candidate
    return None


@dataclass(frozen=True, slots=True)
class Place:
    """This process among its fellows."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    distributed: bool = False


def place() -> Place:
    """Rank and world size from the process group, else from the launcher's environment."""
    local = _integer("LOCAL_RANK", "SLURM_LOCALID", default=0)
    dist = _initialized()
    if dist is not None:
        return Place(dist.get_rank(), dist.get_world_size(), local, True)
    world = _integer("WORLD_SIZE", default=1)
    return Place(_integer("RANK", default=0) if world > 1 else 0, max(world, 1), local, False)


@dataclass(frozen=True, slots=True)
class Identity:
    """The stream's key but for seq: known once rank 0 has spoken."""

    run: str
    attempt: str
    rank: int
    world: int
    group: int
    nonce: str
    shard: int = 0
    shards: int = 1
    speaker: int = 0
    """The lowest rank that holds the same shard: it sends the matrices of its cell."""
    has_replicas: bool = False
    """Whether, as far as is known, other ranks hold the same: they are compared by roots."""

    def stream(self, rollback: int = 0) -> wire.StreamKey:
        """The stream of the attempt after so many rollbacks."""
        return wire.StreamKey(
            self.run, self.attempt_after(rollback), self.rank, self.nonce, self.group
        )

    def attempt_after(self, rollback: int) -> str:
        return f"{self.attempt}.{rollback}" if rollback else self.attempt

    @property
    def speaks(self) -> bool:
        """Whether this rank sends the matrices of its cell."""
        return self.speaker == self.rank


class Resolver:
    """Finds this process's identity; ``look`` is cheap and asked again until it answers."""

    def __init__(self, run: str | None, group: int | None, watch_number: int = 0) -> None:
        self._run, self._group = known_run(run), group
        self._attempt, self.nonce = ulid(), ulid()
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._key = f"gradwarden/identity/{restart}/{watch_number}"

    def look(self, layout: wire.Layout | None, cell: Cell | None) -> Identity | None:
        """The identity, or None while rank 0 has not published it.

        ``layout`` is what this rank captured first. Where no ``cell`` is known, as of a model
        that is wrapped after it was watched, its parameters tell whether rank 0 has the same.
        """
        here = place()
        parameters = wire.Layout(layout.parameters).hash if layout is not None else ""
        if here.world == 1:
            return self._as(here, self._run or self._attempt, self._attempt, cell, 0)
        common = store() if here.distributed else None
        if common is None:
            return self._as(here, *self._derived(), cell, 0)
        if here.rank == 0:
            run = self._run or self._attempt
            said = {"run": run, "attempt": self._attempt, "parameters": parameters}
            common.set(self._key, json.dumps(said))
            return self._as(here, run, self._attempt, cell, 0)
        if not common.check([self._key]):
            return None
        said = json.loads(bytes(common.get(self._key)))
        group = 0 if parameters in ("", said["parameters"]) else here.rank
        return self._as(here, said["run"], said["attempt"], cell, group)

    def _as(self, here: Place, run: str, attempt: str, cell: Cell | None, group: int) -> Identity:
        """``group`` is what to assume without a cell; a group that was set goes before all."""
        chosen = group if self._group is None else self._group
        who = (run, attempt, here.rank, here.world)
        if cell is None:
            many = here.world > 1 and (group == 0 or self._group is not None)
            return Identity(*who, chosen, self.nonce, speaker=chosen, has_replicas=many)
        named = cell.group if self._group is None else self._group
        speaker = cell.speaker if cell.shards > 1 or self._group is None else self._group
        held = (cell.shard, cell.shards, speaker, cell.replicas > 1)
        return Identity(*who, named, self.nonce, *held)

    def _derived(self) -> tuple[str, str]:
        """Without a process group all ranks derive one key from what their launcher told."""
        names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID")
        seed = "|".join([self._run or "", *(os.environ.get(n, "") for n in names), self._key])
        digest = hashlib.sha256(seed.encode()).hexdigest()[:26]
        return self._run or digest, digest


def _initialized() -> Any:
    import torch.distributed as dist

    return dist if dist.is_available() and dist.is_initialized() else None


def store() -> Any:
    """The default process group's key/value store; None where this torch hides it."""
    try:
        from torch.distributed.distributed_c10d import _get_default_store
    except ImportError:  # private name: ranks then derive one key from the environment
        return None
    return _get_default_store()


def _integer(*names: str, default: int) -> int:
    for name in names:
        value = os.environ.get(name, "")
        if value.isdigit():
            return int(value)
    return default
