"""What ``watch`` was asked to do: the argument, else the environment, else the default."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from gradwarden import wire
from gradwarden.errors import ConfigurationError
from gradwarden.schedule import PRESETS

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"", "0", "false", "no", "off"}


@dataclass(frozen=True, slots=True)
class Settings:
    """One run's configuration, checked at construction so that nothing fails later."""

    run: str | None = None
    """Run id; None means: from the launcher, else a new one."""
    project: str = "default"
    """Sent as a header; a token's own project wins on the server."""
    url: str | None = None
    """Base address of the service; None spools to disk only."""
    token: str | None = None
    """Bearer token with the ingest scope."""
    name: str | None = None
    """What people call the run."""
    start_step: int = 0
    """Number of the first captured step."""
    environment: str = "dev"
    """Only ``prod`` pages, unless ``page`` is set."""
    training_job: str | None = None
    owner: str | None = None
    team: str | None = None
    dataset: str | None = None
    cluster: str | None = None
    queue: str | None = None
    config: Mapping[str, Any] | None = None
    """Hyperparameters to show beside the series; must be JSON."""
    group: int | None = None
    """Replica group by its lowest rank; None means: found out."""
    page: bool = False
    """Page for this run whatever its environment."""
    cost_per_hour: float | None = None
    target_loss: float | None = None
    spool: Path | None = None
    """Directory of the on-disk spool; None means: the user's state directory."""
    spool_bytes: int = 256 << 20
    """Upper bound of this process's spool."""
    preset: str = "standard"
    """How much is taken of a captured step: ``light``, ``standard`` or ``full``."""
    every: int = 1
    """Steps from one captured step to the next; a non-finite one is noticed in between too."""
    early: int = 0
    """First steps that are all captured, whatever ``every`` says."""
    throttle: bool = True
    """Capture fewer steps where capturing costs more than 1 % of a step and 300 us."""
    comm: str = "auto"
    """How all-reduces are timed: ``auto``, ``off``, ``hook``, ``ddp`` or ``nccl``."""
    spans: int = 0
    """Steps from one OpenTelemetry trace of a step to the next; 0 traces none."""
    activations: tuple[str, ...] = ()
    """Patterns (``blocks.*.act``) of modules whose outputs are measured."""
    exit_seconds: float = 5.0
    """How long the end of the process may wait for delivery; the rest is spooled."""
    notify_url: str | None = None
    """Where tripwires post, with or without a server."""
    resume_command: str | None = None
    """What resumes this run, told with a diagnosis; {checkpoint} and {step} are filled in."""
    diagnose: bool = True
    """Say at the end of a run without a service what ailed it."""
    disabled: bool = False
    """Do nothing at all."""

    @classmethod
    def resolve(cls, **given: Any) -> Settings:
        """Merge arguments (None means not given), ``GRADWARDEN_*`` and defaults.

        Raises:
            ConfigurationError: one value is unusable; the message names it and the remedy.
        """
        values: dict[str, Any] = {}
        for name in cls.__dataclass_fields__:
            value = given.pop(name, None)
            where = f"{name}="
            if value is None:
                value = os.environ.get(f"GRADWARDEN_{name.upper()}") or None
                where = f"GRADWARDEN_{name.upper()}="
            if value is not None:
                values[name] = _CHECKS.get(name, _text)(value, where)
        if "run" not in values and (known := os.environ.get("GRADWARDEN_RUN_ID")):
            _identifier(known, "GRADWARDEN_RUN_ID=")
        if given:
            raise ConfigurationError(
                f"unknown arguments {sorted(given)}; see help(gradwarden.watch)"
            )
        return cls(**values)

    @property
    def spool_root(self) -> Path:
        """Where this user's spools lie."""
        if self.spool is not None:
            return self.spool
        state = os.environ.get("XDG_STATE_HOME")
        base = Path(state) if state else Path.home() / ".local" / "state"
        if os.access(_nearest(base), os.W_OK):
            return base / "gradwarden" / "spool"
        return Path(tempfile.gettempdir()) / f"gradwarden-{os.getuid()}" / "spool"


def _nearest(path: Path) -> Path:
    return next(p for p in [path, *path.parents] if p.exists())


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 1024 or "\x00" in value:
        raise ConfigurationError(f"{where}{value!r}: expected text of 1 to 1024 characters")
    return value


def _line(value: object, where: str) -> str:
    text = _text(value, where)
    if not text.isascii() or not text.isprintable():  # it travels in an HTTP header
        raise ConfigurationError(f"{where}: expected printable ASCII characters")
    return text


def _command(value: object, where: str) -> str:
    text = _text(value, where)
    if not text.isprintable():  # it is shown to be copied, and must be one line
        raise ConfigurationError(f"{where}: expected one line of printable characters")
    return text


def _identifier(value: object, where: str) -> str:
    if not isinstance(value, str) or not wire.is_identifier(value):
        raise ConfigurationError(
            f"{where}{value!r}: use letters, digits and . _ : + - only, at most 128 of them"
        )
    return value


def _address(value: object, where: str) -> str:
    text = _line(value, where)
    parts = _parts(text)
    if parts is None or parts.query:
        raise ConfigurationError(f"{where}{text!r}: expected http://host:port or https://host")
    return text.rstrip("/")


def _notify(value: object, where: str) -> str:
    text = _line(value, where)
    if _parts(text) is None:
        raise ConfigurationError(f"{where}{text!r}: expected an http or https URL")
    return text


def _parts(text: str) -> SplitResult | None:
    """The parts of an http or https URL with a host; None where it is none."""
    try:
        parts = urlsplit(text)
        _ = parts.port  # it raises where that is no number of a port
    except ValueError:
        return None
    return parts if parts.scheme in ("http", "https") and parts.hostname else None


def _count(value: object, where: str) -> int:
    try:
        number = int(value) if isinstance(value, (int, str)) and value is not True else -1
    except ValueError:
        number = -1
    if not 0 <= number < 2**63 or isinstance(value, bool):
        raise ConfigurationError(f"{where}{value!r}: expected an integer of at least 0")
    return number


def _number(value: object, where: str) -> float:
    try:
        number = float(value) if isinstance(value, (int, float, str)) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise ConfigurationError(f"{where}{value!r}: expected a finite number")
    return number


def _seconds(value: object, where: str) -> float:
    number = _number(value, where)
    if number < 0:
        raise ConfigurationError(f"{where}{value!r}: expected seconds of at least 0")
    return number


def _flag(value: object, where: str) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text not in _TRUE | _FALSE:
        raise ConfigurationError(f"{where}{value!r}: expected 1 or 0")
    return text in _TRUE


def _choice(*names: str) -> Callable[[object, str], str]:
    def check(value: object, where: str) -> str:
        if value not in names:
            raise ConfigurationError(f"{where}{value!r}: choose one of {', '.join(names)}")
        return str(value)

    return check


def _every(value: object, where: str) -> int:
    number = _count(value, where)
    if number == 0:
        raise ConfigurationError(f"{where}{value!r}: expected an integer of at least 1")
    return number


def _patterns(value: object, where: str) -> tuple[str, ...]:
    listed = value.split(",") if isinstance(value, str) else value
    if not isinstance(listed, Iterable):
        raise ConfigurationError(f"{where}{value!r}: expected patterns such as 'blocks.*.act'")
    return tuple(_text(v.strip() if isinstance(v, str) else v, where) for v in listed)


def _directory(value: object, where: str) -> Path:
    if not isinstance(value, (str, os.PathLike)):
        raise ConfigurationError(f"{where}{value!r}: expected a directory")
    path = Path(value).expanduser().absolute()
    if any(p.exists() and not p.is_dir() for p in [path, *path.parents]):
        raise ConfigurationError(f"{where}{str(path)!r}: there is a file in the way")
    return path


def _config(value: object, where: str) -> Mapping[str, Any]:
    try:
        value = json.loads(value) if isinstance(value, str) else value
        if not isinstance(value, Mapping):
            raise TypeError("expected a mapping")
        return dict(json.loads(json.dumps(dict(value), allow_nan=False, default=str)))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{where}: {error}; give a dict that JSON can hold") from None


_CHECKS: dict[str, Any] = {
    "run": _identifier,
    "project": _line,
    "url": _address,
    "token": _line,
    "start_step": _count,
    "config": _config,
    "group": _count,
    "page": _flag,
    "cost_per_hour": _number,
    "target_loss": _number,
    "preset": _choice(*PRESETS),
    "every": _every,
    "early": _count,
    "throttle": _flag,
    "comm": _choice("auto", "off", "hook", "ddp", "nccl"),
    "spans": _count,
    "activations": _patterns,
    "spool": _directory,
    "spool_bytes": _count,
    "exit_seconds": _seconds,
    "notify_url": _notify,
    "resume_command": _command,
    "diagnose": _flag,
    "disabled": _flag,
}
