"""Groups of alerts: which receiver hears of them together, and what it was told."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from gradwarden_server.store.tables.base import RowId, metadata

notification_group = Table(
    "notification_group",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("project", String(128), nullable=False),
    Column("receiver", String(128), nullable=False),
    # The matchers of the route that led here; empty for one that takes everything.
    Column("route", Text, nullable=False),
    Column("group_key", Text, nullable=False),
    Column("labels", JSON, nullable=False),
    # The most urgent of what its last message held.
    Column("severity", String(16), nullable=False),
    # When to look at it again; empty: when an alert of it changes.
    Column("due_ns", BigInteger),
    Column("open", Boolean, nullable=False),
    Column("storm", Boolean, nullable=False),
    Column("counted", Integer, nullable=False),
    # Groups: the storm that speaks for this one, and the one that escalated into this one.
    Column("folded_into", BigInteger),
    Column("source", BigInteger),
    Column("why", Text, nullable=False),
    Column("began_ns", BigInteger),
    Column("opened_ns", BigInteger),
    Column("told_ns", BigInteger),
    Column("escalated_ns", BigInteger),
    # Why its messages do not arrive; empty while they do.
    Column("failing", Text, nullable=False),
    UniqueConstraint("project", "receiver", "group_key"),
    Index(None, "due_ns"),
    Index(None, "folded_into"),
    Index(None, "source"),
)

group_member = Table(
    "group_member",
    metadata,
    Column(
        "group_id", RowId, ForeignKey("notification_group.id", ondelete="CASCADE"), primary_key=True
    ),
    Column("alert_id", RowId, ForeignKey("alert.id", ondelete="CASCADE"), primary_key=True),
    # Whether the receiver was told that it fires.
    Column("told", Boolean, nullable=False),
    Index(None, "alert_id"),
)

telling = Table(
    "telling",
    metadata,
    Column("outbox_id", RowId, ForeignKey("outbox.id", ondelete="CASCADE"), primary_key=True),
    Column("alert_id", RowId, ForeignKey("alert.id", ondelete="CASCADE"), primary_key=True),
    # Why the message speaks of the alert: fired, changed, repeated, resolved, escalated, storm.
    Column("why", Text, nullable=False),
    Index(None, "alert_id"),
)
