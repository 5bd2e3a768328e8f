"""Who did what: one row for every act of a person, in the transaction of the act."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert

from gradwarden_server.store import tables as t


def record(
    project: str,
    connection: Connection,
    at_ns: int,
    actor: str,
    action: str,
    subject: str,
    data: Mapping[str, Any],
) -> None:
    """Note an act within the caller's transaction."""
    connection.execute(
        insert(t.audit).values(
            project=project,
            at_ns=at_ns,
            actor=actor[:128],
            action=action,
            subject=subject,
            data=dict(data),
        )
    )
