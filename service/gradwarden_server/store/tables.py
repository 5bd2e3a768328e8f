"""The data model: every table of the service, for SQLite and PostgreSQL alike.

Times are UTC nanoseconds since the epoch. ``run_id`` and the like are internal row numbers;
the identifiers that users see are the text columns beside them.
"""

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
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows only in INTEGER primary keys; PostgreSQL needs the wider type.
RowId = BigInteger().with_variant(Integer, "sqlite")


def _run_reference() -> Column[int]:
    return Column("run_id", RowId, ForeignKey("run.id", ondelete="CASCADE"), nullable=False)


project = Table(
    "project",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("created_ns", BigInteger, nullable=False),
)

run = Table(
    "run",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("project", String(128), ForeignKey("project.name"), nullable=False),
    Column("run", String(128), nullable=False),
    Column("name", String(256), nullable=False),
    Column("training_job", String(256)),
    Column("model", String(256)),
    Column("dataset", String(256)),
    Column("cluster", String(256)),
    Column("queue", String(256)),
    Column("owner", String(256)),
    Column("team", String(256)),
    Column("environment", String(64), nullable=False),
    Column("git_commit", String(64)),
    Column("config", JSON, nullable=False),
    Column("world_size", Integer, nullable=False),
    Column("cost_per_hour", Float),
    Column("target_loss", Float),
    # running | finished | failed | cancelled | preempted
    Column("status", String(16), nullable=False),
    # Asked for pages whatever its environment.
    Column("page", Boolean, nullable=False),
    Column("started_ns", BigInteger, nullable=False),
    Column("ended_ns", BigInteger),
    Column("last_seen_ns", BigInteger, nullable=False),
    Column("last_step", BigInteger),
    # The last log position given out; advanced inside the commit that uses it.
    Column("position", BigInteger, nullable=False),
    UniqueConstraint("project", "run"),
    Index(None, "project", "status", "last_seen_ns"),
)

attempt = Table(
    "attempt",
    metadata,
    Column("id", RowId, primary_key=True),
    _run_reference(),
    Column("attempt", String(128), nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("parent", String(128)),
    Column("first_step", BigInteger, nullable=False),
    Column("started_ns", BigInteger, nullable=False),
    Column("ended_ns", BigInteger),
    # running | finished | failed | cancelled | preempted
    Column("status", String(16), nullable=False),
    UniqueConstraint("run_id", "attempt"),
    UniqueConstraint("run_id", "ordinal"),
)

layout = Table(
    "layout",
    metadata,
    Column("project", String(128), primary_key=True),
    Column("hash", String(32), primary_key=True),
    Column("body", JSON, nullable=False),
)

stream = Table(
    "stream",
    metadata,
    Column("id", RowId, primary_key=True),
    _run_reference(),
    Column("attempt_id", RowId, ForeignKey("attempt.id", ondelete="CASCADE"), nullable=False),
    Column("rank", Integer, nullable=False),
    # The ranks that share their parameters, named by the lowest of them.
    Column("group", Integer, nullable=False),
    # Which part of the group's parameters it holds, and of how many; ranks with equal group
    # and shard are replicas.
    Column("shard", Integer, nullable=False, server_default="0"),
    Column("shards", Integer, nullable=False, server_default="1"),
    Column("nonce", String(128), nullable=False),
    Column("host", String(256), nullable=False),
    Column("pid", BigInteger, nullable=False),
    # Where it runs, for the person who must cordon a node: pod, node, gpu, local_rank, ...
    Column("place", JSON, nullable=False),
    # Received seq intervals [[first, last], ...]; never compacted away.
    Column("seqs", JSON, nullable=False),
    # Windowed minimum of received minus sent heartbeats: this host's clock against ours,
    # as {"since": ns, "current": ns, "previous": ns | null}.
    Column("clock", JSON),
    Column("last_time_ns", BigInteger),
    Column("last_step", BigInteger),
    # When the last step first became known here.
    Column("last_step_ns", BigInteger),
    Column("last_seen_ns", BigInteger, nullable=False),
    # Set by heartbeats alone: a spool sent later is no sign of life.
    Column("heartbeat_ns", BigInteger),
    Column("phase", String(64)),
    Column("ended", Boolean, nullable=False),
    UniqueConstraint("attempt_id", "rank"),
    Index(None, "run_id", "rank"),
)

frame_batch = Table(
    "frame_batch",
    metadata,
    Column("id", RowId, primary_key=True),
    _run_reference(),
    Column("position", BigInteger, nullable=False),
    Column("stream_id", RowId, ForeignKey("stream.id", ondelete="CASCADE"), nullable=False),
    Column("first_seq", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("step0", BigInteger, nullable=False),
    Column("step1", BigInteger, nullable=False),
    Column("t0_ns", BigInteger, nullable=False),
    Column("t1_ns", BigInteger, nullable=False),
    # Added to the frames' own times to give series time (0 where a clock was refused).
    Column("shift_ns", BigInteger, nullable=False),
    Column("received_ns", BigInteger, nullable=False),
    Column("layout", String(32), nullable=False),
    Column("body", LargeBinary, nullable=False),
    UniqueConstraint("run_id", "position"),
    UniqueConstraint("stream_id", "first_seq"),
    Index(None, "run_id", "step0"),
)

event = Table(
    "event",
    metadata,
    Column("id", RowId, primary_key=True),
    _run_reference(),
    Column("attempt_id", RowId, ForeignKey("attempt.id", ondelete="CASCADE"), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("time_ns", BigInteger, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("data", JSON, nullable=False),
    Index(None, "run_id", "time_ns"),
)

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

series = Table(
    "series",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("project", String(128), ForeignKey("project.name"), nullable=False),
    # The run that it was derived from; it goes with its run.
    Column("run_id", RowId, ForeignKey("run.id", ondelete="CASCADE")),
    Column("name", String(256), nullable=False),
    Column("labels", JSON, nullable=False),
    Column("fingerprint", String(32), nullable=False),
    UniqueConstraint("project", "fingerprint"),
    Index(None, "project", "name"),
    Index(None, "run_id", "name"),
)

sample_chunk = Table(
    "sample_chunk",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("series_id", RowId, ForeignKey("series.id", ondelete="CASCADE"), nullable=False),
    Column("t0_ns", BigInteger, nullable=False),
    Column("t1_ns", BigInteger, nullable=False),
    Column("codec", String(16), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index(None, "series_id", "t0_ns"),
)

command = Table(
    "command",
    metadata,
    Column("id", RowId, primary_key=True),
    _run_reference(),
    Column("rank", Integer, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("args", JSON, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Column("acked_ns", BigInteger),
    Index(None, "run_id", "rank", "acked_ns"),
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
    Index(None, "project", "state", "active_ns"),
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
    # waiting | standing (sent, and repeated while it holds) | sent | dead
    Column("state", String(16), nullable=False),
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
