"""How far a run was judged, and what was said about it to whom."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    true,
)

from gradwarden_server.store.tables.base import RowId, metadata

lease = Table(
    "lease",
    metadata,
    Column("scope", String(256), primary_key=True),
    Column("holder", String(128), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    # By the database's clock, so that hosts with wrong clocks agree.
    Column("expires_ns", BigInteger, nullable=False),
)

cursor = Table(
    "cursor",
    metadata,
    Column("run_id", RowId, ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    # Last step judged of each attempt: {attempt ordinal: step}.
    Column("judged", JSON, nullable=False),
)

detector_state = Table(
    "detector_state",
    metadata,
    Column("run_id", RowId, ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

alert = Table(
    "alert",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("project", String(128), ForeignKey("project.name"), nullable=False),
    Column("run_id", RowId, ForeignKey("run.id", ondelete="CASCADE")),
    # One live row per identity; a new incident after a resolve is a new row.
    Column("fingerprint", String(16), nullable=False),
    Column("alertname", String(128), nullable=False),
    Column("severity", String(16), nullable=False),
    # pending | firing | resolved
    Column("state", String(16), nullable=False),
    Column("labels", JSON, nullable=False),
    Column("annotations", JSON, nullable=False),
    Column("active_ns", BigInteger, nullable=False),
    Column("fired_ns", BigInteger),
    Column("resolved_ns", BigInteger),
    Column("reason", String(64), nullable=False),
    # What holds its messages back, until when if that is known, and whether it was ever told.
    Column("muted", String(160), nullable=False, server_default=""),
    Column("muted_until_ns", BigInteger),
    Column("told", Boolean, nullable=False, server_default=true()),
    Column("acked_ns", BigInteger),
    Column("acked_by", String(128)),
    # The group of rules that keeps it; null where the detectors of its run do.
    Column("rule_group", String(256)),
    Index(None, "project", "state", "active_ns"),
    # Pages and reports ask what fired since a moment; alerts of a year must not slow them down.
    Index(None, "project", "fired_ns"),
    Index(None, "run_id", "fingerprint"),
)

alert_transition = Table(
    "alert_transition",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("alert_id", RowId, ForeignKey("alert.id", ondelete="CASCADE"), nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("from_state", String(16), nullable=False),
    Column("to_state", String(16), nullable=False),
    Column("reason", String(64), nullable=False),
    Column("annotations", JSON, nullable=False),
    Index(None, "alert_id", "at_ns"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("project", String(128), nullable=False),
    Column("receiver", String(128), nullable=False),
    Column("group_key", Text, nullable=False),
    # Order within (receiver, group_key): a resolve never overtakes its trigger.
    Column("seq", BigInteger, nullable=False),
    Column("severity", String(16), nullable=False),
    Column("payload", JSON, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("not_before_ns", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("lease_until_ns", BigInteger, nullable=False),
    # waiting | standing (sent, and repeated while it holds) | sent | superseded | dead
    Column("state", String(16), nullable=False),
    # It says all there is to say of its group: earlier ones that did not arrive are worthless.
    Column("replaces", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("receiver", "group_key", "seq"),
    Index(None, "state", "not_before_ns"),
)

delivery = Table(
    "delivery",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("outbox_id", RowId, ForeignKey("outbox.id", ondelete="CASCADE"), nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("ok", Boolean, nullable=False),
    Column("detail", Text, nullable=False),
    Column("duration_seconds", Float, nullable=False),
    Index(None, "outbox_id"),
)

rule_group = Table(
    "rule_group",
    metadata,
    Column("project", String(128), ForeignKey("project.name"), primary_key=True),
    # The file and the name in it.
    Column("name", String(256), primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    # The moment of its last evaluation; 0 before the first.
    Column("evaluated_ns", BigInteger, nullable=False),
    # Which alerts are pending and firing, and which series were written last, by rule.
    Column("alerts", JSON, nullable=False),
    Column("recorded", JSON, nullable=False),
    # How its last evaluation went, for people.
    Column("report", JSON, nullable=False),
)

receiver_thread = Table(
    "receiver_thread",
    metadata,
    Column("project", String(128), primary_key=True),
    Column("receiver", String(128), primary_key=True),
    Column("group_hash", String(64), primary_key=True),
    # The first message of a group that is not over, as the far end names it.
    Column("place", String(256), nullable=False),
    Column("anchor", String(256), nullable=False),
    Column("made_ns", BigInteger, nullable=False),
)

promotion = Table(
    "promotion",
    metadata,
    Column("project", String(128), ForeignKey("project.name"), primary_key=True),
    # The rule whose pages wake people from then on; empty for all, which ends a shadow period.
    Column("alertname", String(128), primary_key=True),
    Column("at_ns", BigInteger, nullable=False),
    Column("actor", String(128), nullable=False),
)

silence = Table(
    "silence",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("project", String(128), ForeignKey("project.name"), nullable=False),
    # [[name, value, is_regex, is_equal], ...]
    Column("matchers", JSON, nullable=False),
    Column("starts_ns", BigInteger, nullable=False),
    Column("ends_ns", BigInteger, nullable=False),
    Column("author", String(128), nullable=False),
    Column("comment", Text, nullable=False),
    Index(None, "project", "ends_ns"),
)

maintenance = Table(
    "maintenance",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("project", String(128), ForeignKey("project.name"), nullable=False),
    # [[name, value, is_regex, is_equal], ...]
    Column("matchers", JSON, nullable=False),
    Column("starts_ns", BigInteger, nullable=False),
    Column("ends_ns", BigInteger),
    # {days, at, seconds, zone} of one that comes back every week.
    Column("weekly", JSON(none_as_null=True)),
    Column("author", String(128), nullable=False),
    Column("comment", Text, nullable=False),
    Column("ended_ns", BigInteger),
    Index(None, "project", "ends_ns"),
)
