"""``gradwarden token``: straight on the database, or through a running service with ``--url``."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gradwarden_server.api.schemas import token_face
from gradwarden_server.cli.faults import DONE, USAGE, CommandError
from gradwarden_server.cli.reading import Client, table
from gradwarden_server.cli.serving import open_database, settings_from
from gradwarden_server.model import DEFAULT_PROJECT
from gradwarden_server.store.tokens import TokenRecord, TokenStore

_DAY_NS = 86_400 * 1_000_000_000


def create(options: argparse.Namespace) -> int:
    """Make a token; its secret is printed here and never again."""
    if options.days is not None and not 0 < options.days <= 36500:
        raise CommandError(f"--days: {options.days:g}; give 0 to 36500", USAGE)
    name = options.name or options.scope
    if options.url:
        body = {"name": name, "scope": options.scope, "expires_in_days": options.days}
        made = Client(options).call("POST", "/v1/tokens", json=body)
    else:
        with _tokens(options) as (store, project):
            now_ns = time.time_ns()
            expires_ns = None if options.days is None else now_ns + int(options.days * _DAY_NS)
            try:
                issued = store.create(
                    project, name, options.scope, now_ns=now_ns, expires_ns=expires_ns
                ).result()
            except ValueError as error:
                raise CommandError(str(error), USAGE) from None
        made = {**_face(issued.token), "secret": issued.secret}
    if options.json:
        print(json.dumps(made, indent=2))
    else:
        print(made["secret"])
    return DONE


def show(options: argparse.Namespace) -> int:
    """List tokens, newest first."""
    if options.url:
        items = Client(options).call("GET", "/v1/tokens")["items"]
    else:
        database = open_database(settings_from(options).db, "gradwarden token", beside=True)
        try:
            records = TokenStore(database).list(options.project or DEFAULT_PROJECT)
        finally:
            database.close()
        items = [_face(record) for record in records]
    if options.json:
        print(json.dumps({"items": items}, indent=2))
    else:
        columns = ("id", "name", "scope", "prefix", "last_used_at", "expires_at", "revoked_at")
        table(columns, items, "no tokens; make one with: gradwarden token create")
    return DONE


def revoke(options: argparse.Namespace) -> int:
    """Close a token and the sessions it opened."""
    if options.url:
        Client(options).call("DELETE", f"/v1/tokens/{options.id}")
    else:
        with _tokens(options) as (store, project):
            closed = store.revoke(project, options.id, time.time_ns(), "command line").result()
        if not closed:
            raise CommandError(
                f"project {project} has no live token {options.id}; see: gradwarden token list",
                USAGE,
            )
    print(json.dumps({"revoked": options.id}) if options.json else f"revoked token {options.id}")
    return DONE


@contextmanager
def _tokens(options: argparse.Namespace) -> Iterator[tuple[TokenStore, str]]:
    database = open_database(settings_from(options).db, "gradwarden token")
    try:
        yield TokenStore(database), options.project or DEFAULT_PROJECT
    finally:
        database.close()


def _face(token: TokenRecord) -> dict[str, Any]:
    return token_face(token).model_dump()
