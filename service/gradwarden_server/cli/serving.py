"""``gradwarden serve`` and ``gradwarden migrate``."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import uvicorn
from pydantic import ValidationError

from gradwarden_server import logs
from gradwarden_server.app import create_app
from gradwarden_server.cli.faults import DONE, NO, UNREACHABLE, USAGE, CommandError
from gradwarden_server.house import House, StartRefused
from gradwarden_server.notify.spec import ReceiversError
from gradwarden_server.rules.nodes import RulesError
from gradwarden_server.settings import Settings
from gradwarden_server.store.database import Database
from gradwarden_server.store.errors import DatabaseInUse, StoreError, Unavailable

READY = "gradwarden: listening on "
_GRACE_SECONDS = 10
_KEEP_ALIVE_SECONDS = 75  # trainers beat every ten seconds over one connection
_COLLECT = 20_000, 20, 20
_OPTIONS = ("host", "port", "db", "receivers", "rules", "external_url", "log_format")


def serve(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; both end it cleanly."""
    settings = settings_from(options)
    logs.configure(settings.log_format)
    listener = _bind(settings.host, settings.port)
    settings = settings.model_copy(update={"port": listener.getsockname()[1]})
    try:
        app = create_app(settings)
    except (ReceiversError, RulesError, ValueError) as error:
        raise CommandError(str(error), USAGE) from None
    except OSError as error:
        raise CommandError(f"db: {error}", UNREACHABLE) from None
    _open(app.state.house)
    house: House = app.state.house
    server = _Server(app, f"{READY}{_address(settings)}", house.hub.close)
    for number in (signal.SIGINT, signal.SIGTERM):
        # The server stops on its first signal and then raises it again, for whoever was
        # listening before; by then everything is closed and there is nothing left to end.
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGHUP, lambda *_: app.state.house.rulebook.ask())
    gc.freeze()  # what was made by now lives as long as the process
    # A round of the evaluator makes many things that live to its end. Collected as often as
    # small scripts are, they would grow old by it, and all that is old is looked through.
    gc.set_threshold(*_COLLECT)
    server.run(sockets=[listener])
    return DONE if server.started else NO


def migrate(options: argparse.Namespace) -> int:
    """Bring the schema to the newest revision, holding the file as the service does."""
    database = open_database(settings_from(options).db, "gradwarden migrate")
    database.close()
    print("the database is at the newest schema")
    return DONE


def settings_from(options: argparse.Namespace) -> Settings:
    """Environment, overridden by the options that were given."""
    given = {name: getattr(options, name, None) for name in _OPTIONS}
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        mistakes = [
            f"{'.'.join(map(str, e['loc']))}: {e['input']!r}; {e['msg']}" for e in error.errors()
        ]
        text = "\n  ".join(["these settings cannot be used:", *mistakes])
        raise CommandError(f"{text}\nsee docs/configuration.md", USAGE) from None


def open_database(url: str, note: str, beside: bool = False) -> Database:
    """A migrated database that nobody else writes to.

    Args:
        url: Where it is.
        note: Who holds it now, for those who find it held.
        beside: Only read; a running service that holds the file has migrated it.

    Raises:
        CommandError: a running server holds it, or it cannot be reached.
    """
    try:
        database = Database(url)
    except ValueError as error:
        raise CommandError(str(error), USAGE) from None
    except OSError as error:
        raise CommandError(f"db: {error}", UNREACHABLE) from None
    try:
        database.hold_lock(note)
        database.ping()
        database.migrate()
    except DatabaseInUse as error:
        if beside:
            return database
        database.close()
        raise CommandError(
            f"{error}.\nGo through that service: repeat this with --url http://HOST:PORT",
            UNREACHABLE,
        ) from None
    except (OSError, StoreError) as error:
        database.close()
        raise CommandError(why(error), UNREACHABLE) from None
    return database


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise CommandError(
            f"cannot listen on {host}:{port}: {reason}; choose another with --port", UNREACHABLE
        ) from None
    listener.set_inheritable(True)
    return listener


def _open(house: House) -> None:
    try:
        house.open()
    except StartRefused as error:
        house.stop()
        raise CommandError(str(error), USAGE) from None
    except (OSError, StoreError) as error:
        house.stop()
        raise CommandError(why(error), UNREACHABLE) from None


def why(error: OSError | StoreError) -> str:
    """Why the database cannot be used; of one that is away the driver knows most."""
    away = type(error) is Unavailable
    return f"db: {(error.__cause__ if away else None) or error}"


def _address(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


class _Server(uvicorn.Server):
    """A server that says on stdout when it can be reached, and at its end lets streams end."""

    def __init__(
        self, app: Callable[..., Any], ready: str, close_streams: Callable[[], None]
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )
        self._ready = ready
        self._close_streams = close_streams

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self._ready, flush=True, file=sys.stdout)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._close_streams()  # it waits for open answers, and these have no end of their own
        await super().shutdown(sockets)
