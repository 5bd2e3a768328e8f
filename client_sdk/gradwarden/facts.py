"""What a start record tells about this process: host, place, owner, commit. No subprocess."""

from __future__ import annotations

import getpass
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

import torch

from gradwarden.identity import Identity, place
from gradwarden.instruments.gpu import device_facts
from gradwarden.settings import Settings

_COMMIT = re.compile(r"[0-9a-f]{40,64}\Z")
_PLACE = {
    "pod": ("GRADWARDEN_POD", "POD_NAME"),
    "namespace": ("GRADWARDEN_NAMESPACE", "POD_NAMESPACE"),
    "node": ("GRADWARDEN_NODE", "NODE_NAME", "SLURMD_NODENAME"),
    "role": ("GRADWARDEN_ROLE",),
    "slurm_job": ("SLURM_JOB_ID",),
}


def start_record(
    settings: Settings,
    identity: Identity,
    rollback: int,
    first_step: int,
    model: str,
    device: torch.device,
    started_ns: int,
) -> dict[str, Any]:
    """The body of ``POST /v1/start``."""
    tracked = _tracked()
    return {
        "run": identity.run,
        "attempt": identity.attempt_after(rollback),
        "rank": identity.rank,
        "nonce": identity.nonce,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "world_size": identity.world,
        "group": identity.group,
        "shard": identity.shard,
        "shards": identity.shards,
        "first_step": first_step,
        "parent": identity.attempt_after(rollback - 1) if rollback else None,
        "started_ns": started_ns,
        "takeover": False,
        "name": settings.name or tracked.get("name"),
        "training_job": settings.training_job or os.environ.get("SLURM_JOB_NAME"),
        "model": model,
        "dataset": settings.dataset,
        "cluster": settings.cluster or os.environ.get("SLURM_CLUSTER_NAME"),
        "queue": settings.queue or os.environ.get("SLURM_JOB_PARTITION"),
        "owner": settings.owner or tracked.get("owner") or _user(),
        "team": settings.team,
        "environment": settings.environment,
        "git_commit": git_commit(Path.cwd()),
        "config": {**tracked.get("config", {}), **(settings.config or {})},
        "page": settings.page,
        "cost_per_hour": settings.cost_per_hour,
        "target_loss": settings.target_loss,
        "place": {
            **where(),
            **{f"gpu_{k}": v for k, v in device_facts(device).items()},
            **_again(settings),
        },
    }


def _again(settings: Settings) -> dict[str, Any]:
    """What a diagnosis must know to say how this run is resumed."""
    found = {}
    if settings.resume_command:
        found["resume_command"] = settings.resume_command
    if "gradwarden.integrations.huggingface" in sys.modules:
        found["trainer"] = "transformers"
    return found


def _tracked() -> dict[str, Any]:
    """Name, owner and address of this process's live W&B run, which is never imported here."""
    run = getattr(sys.modules.get("wandb"), "run", None)
    if run is None:
        return {}
    try:
        address = run.url or f"offline run {run.id}"
        return {"name": run.name, "owner": run.entity, "config": {"wandb": address}}
    except Exception:  # somebody else's object
        return {}


def where() -> dict[str, Any]:
    """Pod, node, GPU: what an SRE cordons."""
    found: dict[str, Any] = {"local_rank": place().local_rank}
    for key, names in _PLACE.items():
        value = next((os.environ[n] for n in names if os.environ.get(n)), None)
        if value:
            found[key] = value
    found.setdefault("node", socket.gethostname())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if found["local_rank"] < len(visible) and visible[0]:
        found["gpu"] = visible[found["local_rank"]]
    return found


def git_commit(start: Path) -> str | None:
    """The commit checked out at ``start``, read from the repository's own files."""
    try:
        for folder in [start, *start.parents]:
            git = folder / ".git"
            if git.is_file():  # a worktree or submodule points to its real directory
                git = (folder / git.read_text().partition("gitdir:")[2].strip()).resolve()
            if (git / "HEAD").is_file():
                return _resolve(git, (git / "HEAD").read_text().strip())
    except (OSError, UnicodeDecodeError):
        return None
    return None


def _resolve(git: Path, head: str) -> str | None:
    if not head.startswith("ref:"):
        return head if _COMMIT.match(head) else None
    name = head.partition(":")[2].strip()
    common = git / "commondir"
    for base in [git, *([(git / common.read_text().strip())] if common.is_file() else [])]:
        if (base / name).is_file():
            commit = (base / name).read_text().strip()
            return commit if _COMMIT.match(commit) else None
        if (base / "packed-refs").is_file():
            for line in (base / "packed-refs").read_text().splitlines():
                commit, _, ref = line.partition(" ")
                if ref == name and _COMMIT.match(commit):
                    return commit
    return None


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's uid may have no name
        return None
