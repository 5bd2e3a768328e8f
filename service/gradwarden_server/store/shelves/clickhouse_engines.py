"""Ways to reach ClickHouse: a server over HTTP, or the engine embedded in this process."""

from __future__ import annotations

import importlib
import logging
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from gradwarden_server.store.errors import Unavailable

_PORT, _TLS_PORT = 8123, 8443
_CONNECT_SECONDS, _ANSWER_SECONDS = 5, 60
# What is answered was written: nothing waits in a buffer for others.
_SETTINGS = {"async_insert": 0}
# What ClickHouse says of files that are not as it wrote them.
_SPOILED = (
    "CHECKSUM_DOESNT_MATCH",
    "CORRUPTED_DATA",
    "CANNOT_DECOMPRESS",
    "CANNOT_READ_ALL_DATA",
    "UNKNOWN_CODEC",
    "FILE_DOESNT_EXIST",
)


class Spoiled(Exception):
    """ClickHouse cannot read its own files."""


class Engine(Protocol):
    """Every method raises Unavailable where ClickHouse is not reached or refuses, and Spoiled
    where it finds its files damaged."""

    def execute(self, statement: str) -> None:
        """Run a statement without an answer."""

    def insert(self, table: str, columns: Sequence[str], body: bytes) -> None:
        """Add rows in RowBinary; they are durable afterwards."""

    def query(self, statement: str) -> bytes:
        """The answer in RowBinary."""

    def close(self) -> None:
        """Let go of it."""


def connect(url: str) -> Engine:
    """The engine of a URL; nothing is asked of it yet.

    Raises:
        ValueError: the URL is of another kind, or what it needs is not installed.
    """
    parts = urlsplit(url)
    if parts.scheme == "chdb" and parts.path.strip("/"):
        return _Embedded(Path(parts.path))
    if parts.scheme in ("clickhouse", "clickhouses") and parts.hostname:
        return _Server(url)
    raise ValueError(
        "series: use clickhouse://USER:PASSWORD@HOST:8123/DATABASE (clickhouses:// over TLS), "
        "or chdb:///FOLDER"
    )


class _Server:
    """A server over HTTP. Connected to when first asked, and again after it was away."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        secure = parts.scheme == "clickhouses"
        for name in ("clickhouse_connect", "urllib3.connectionpool"):
            # That the server is away is told by who asked it, once.
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._package = _package("clickhouse_connect", "pip install 'gradwarden[clickhouse]'")
        self._options = {
            "host": parts.hostname,
            "port": parts.port or (_TLS_PORT if secure else _PORT),
            "username": unquote(parts.username or "default"),
            "password": _password(parts),
            "database": parts.path.strip("/") or "default",
            "secure": secure,
            "connect_timeout": _CONNECT_SECONDS,
            "send_receive_timeout": _ANSWER_SECONDS,
            "autogenerate_session_id": False,  # threads share it
            "settings": _SETTINGS,
        }
        self._place = f"ClickHouse at {parts.hostname}:{self._options['port']}"
        self._lock = threading.Lock()
        self._client: Any = None

    def execute(self, statement: str) -> None:
        self._ask("command", statement)

    def insert(self, table: str, columns: Sequence[str], body: bytes) -> None:
        self._ask("raw_insert", table, column_names=columns, insert_block=body, fmt="RowBinary")

    def query(self, statement: str) -> bytes:
        return bytes(self._ask("raw_query", statement, fmt="RowBinary"))

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _ask(self, method: str, *words: Any, **options: Any) -> Any:
        try:
            with self._lock:
                if self._client is None:
                    self._client = self._package.get_client(**self._options)
            return getattr(self._client, method)(*words, **options)
        except self._package.driver.exceptions.Error as error:
            raise _meaning(f"{self._place} cannot be used now", error) from error


class _Embedded:
    """ClickHouse within this process, for tests and for a look at what it holds.

    One folder belongs to one process, and a process opens one folder.
    """

    def __init__(self, folder: Path) -> None:
        package = _package("chdb.session", "pip install chdb")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._session: Any = package.Session(str(folder))
        except RuntimeError as error:
            raise ValueError(f"series: chdb does not open {folder}: {_first(error)}") from None
        self._lock = threading.Lock()

    def execute(self, statement: str) -> None:
        self._ask(statement)

    def insert(self, table: str, columns: Sequence[str], body: bytes) -> None:
        with tempfile.NamedTemporaryFile(suffix=".bin") as file:
            file.write(body)
            file.flush()
            names = ", ".join(columns)
            self._ask(f"INSERT INTO {table} ({names}) FROM INFILE '{file.name}' FORMAT RowBinary")

    def query(self, statement: str) -> bytes:
        return self._ask(statement)

    def close(self) -> None:
        self._session.close()

    def _ask(self, statement: str) -> bytes:
        try:
            with self._lock:
                return bytes(self._session.query(statement, "RowBinary").bytes())
        except RuntimeError as error:
            raise _meaning("the embedded ClickHouse refuses", error) from error


def _password(parts: SplitResult) -> str:
    """From the URL, or from the file that it names, so that it need not stand in the open."""
    file = parse_qs(parts.query).get("password_file")
    if file is None:
        return unquote(parts.password or "")
    try:
        return Path(file[0]).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(f"series: password_file: {error}") from None


def _meaning(what: str, error: BaseException) -> Exception:
    said = _first(error)
    if any(name in str(error) for name in _SPOILED):
        return Spoiled(said)
    return Unavailable(f"{what}: {said}")


def _package(name: str, remedy: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f"series: {name} is not installed; {remedy}") from None


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
