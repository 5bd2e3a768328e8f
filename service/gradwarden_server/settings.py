"""Settings of the service, from the environment. docs/configuration.md repeats every one."""

from __future__ import annotations

import ipaddress
import os
import pwd
import re
import socket
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

DEFAULT_PORT = 8321


def _data_file(name: str) -> Path:
    """A file in the user's data folder (XDG), also where HOME is unset or empty."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else _home() / ".local" / "share") / "gradwarden" / name


def _home() -> Path:
    if os.environ.get("HOME"):
        return Path(os.environ["HOME"])
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:  # a container that runs as a number without a name
        return Path.cwd()


def _default_db() -> str:
    return f"sqlite:///{_data_file('gradwarden.sqlite')}"


class Settings(BaseSettings):
    """Every setting of ``gradwarden serve``; each is the variable ``GRADWARDEN_<NAME>``."""

    model_config = SettingsConfigDict(env_prefix="GRADWARDEN_", env_ignore_empty=True)

    host: str = "127.0.0.1"
    """The address to listen on; any other than loopback needs a token first."""

    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535)
    """The port to listen on; 0 takes a free one and prints it."""

    db: str = Field(default_factory=_default_db)
    """The database: sqlite:///FILE, or postgresql+psycopg://USER:PASSWORD@HOST/NAME."""

    series: str = ""
    """Where values of compacted frames lie: empty for the database, or a ClickHouse URL."""

    receivers: Path | None = None
    """The YAML file that says who is told; without it alerts are recorded and nobody is told."""

    rules: Path | None = None
    """A folder of alert rules in place of the shipped ones."""

    shadow_days: float = Field(default=7.0, ge=0, le=365)
    """Days, and at least 3 finished runs, in which pages of a new project are tickets; 0: none."""

    evaluate: bool = True
    """Whether this process judges runs and delivers alerts; false leaves it to another one."""

    precision_bits: int = Field(default=0, ge=0, le=22)
    """Bits of mantissa that compacted norms keep (12: an error of at most 0.013 %); 0 keeps all."""

    external_url: str = ""
    """The address under which people reach the service; alerts link to it."""

    admin_token_file: Path | None = None
    """A file with a token that is registered at start as admin of project default."""

    otlp_endpoint: str = Field(default="", validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    """The OTLP/HTTP address to send traces of the service itself to; unset sends none."""

    log_format: Literal["auto", "json", "text"] = "auto"
    """How log lines look: json, text, or auto (text on a terminal, else json)."""

    max_body_bytes: int = Field(default=16 << 20, ge=1024)
    """The largest request body that is read."""

    max_payload_bytes: int = Field(default=64 << 20, ge=1024)
    """The largest size that one message may inflate to."""

    max_in_flight: int = Field(default=1024, ge=1)
    """How many trainer requests may be in the house at once; more are told to come back."""

    rate_per_second: float = Field(default=5000.0, gt=0)
    """How many trainer requests one token may make a second, with a burst of as many."""

    max_streams: int = Field(default=256, ge=1, le=10_000)
    """How many browsers may hear news over an open connection at once; more are told to poll."""

    embed_origins: str = "'self' http://localhost:* http://127.0.0.1:*"
    """Whose pages may hold /embed/runs/RUN in a frame: sources of frame-ancestors, or 'none'."""

    session_hours: float = Field(default=12.0, gt=0)
    """How long a login in the browser lasts."""

    @field_validator("port", mode="before")
    @classmethod
    def _ignore_service_links(cls, value: object) -> object:
        # Kubernetes sets GRADWARDEN_PORT=tcp://10.0.0.1:8321 beside a Service of our name.
        return DEFAULT_PORT if isinstance(value, str) and "://" in value else value

    @field_validator("embed_origins")
    @classmethod
    def _check_embed_origins(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9.:/*'\[\]_ -]+", value):
            raise ValueError("name origins with a space between, as in https://wiki.example.com")
        return value

    @field_validator("external_url")
    @classmethod
    def _check_external_url(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("begin with http:// or https://")
        return value.rstrip("/")

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def url(self) -> str:
        """Where people find the service: the external URL, else the bind address."""
        if self.external_url:
            return self.external_url
        host = socket.gethostname() if self.host in ("0.0.0.0", "::", "") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
