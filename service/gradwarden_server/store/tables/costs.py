"""How runs ended, what hardware costs, and which reports went out."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, String, Table

from gradwarden_server.store.tables.base import RowId, metadata

outcome = Table(
    "outcome",
    metadata,
    Column("run_id", RowId, ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    Column("ended_ns", BigInteger, nullable=False),
    # Null leaves the run out of the count.
    Column("good", Boolean),
    Column("reason", String(256), nullable=False),
    # Said by a person, who is not overruled.
    Column("marked", Boolean, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("actor", String(128), nullable=False),
)

price = Table(
    "price",
    metadata,
    Column("project", String(128), ForeignKey("project.name"), primary_key=True),
    # As the driver names it; "*" stands for all others.
    Column("gpu", String(128), primary_key=True),
    Column("per_hour", Float, nullable=False),
    Column("currency", String(8), nullable=False),
)

report_sent = Table(
    "report_sent",
    metadata,
    Column("project", String(128), ForeignKey("project.name"), primary_key=True),
    Column("receiver", String(128), primary_key=True),
    # The first day of the period that it tells of, as 2026-11-16.
    Column("period", String(16), primary_key=True),
    Column("at_ns", BigInteger, nullable=False),
)
