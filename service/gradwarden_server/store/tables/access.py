"""Who may ask, and who did what."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Table,
    Text,
)

from gradwarden_server.store.tables.base import RowId, metadata

token = Table(
    "token",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("project", String(128), ForeignKey("project.name"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("prefix", String(16), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("scope", String(16), nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger),
    Column("last_used_ns", BigInteger),
    Column("revoked_ns", BigInteger),
)

link_secret = Table(
    "link_secret",
    metadata,
    Column("project", String(128), ForeignKey("project.name"), primary_key=True),
    # Signs the links in messages; whoever reads it can acknowledge and silence.
    Column("secret", LargeBinary, nullable=False),
    Column("made_ns", BigInteger, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("project", String(128), nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", Text, nullable=False),
    Column("data", JSON, nullable=False),
    Index(None, "project", "at_ns"),
)
