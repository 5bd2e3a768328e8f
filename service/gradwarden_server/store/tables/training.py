"""What trainers announce: projects, runs, attempts, streams, layouts, events, commands."""

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
    String,
    Table,
    UniqueConstraint,
)

from gradwarden_server.store.tables.base import RowId, metadata, run_reference

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
    # Newest values by name, for lists: {"loss": 2.1, "grad_norm": 0.7, ...}; null before any.
    Column("latest", JSON),
    # Set when someone asked for its deletion: no reader sees it from then on.
    Column("deleted_ns", BigInteger),
    UniqueConstraint("project", "run"),
    Index(None, "project", "status", "last_seen_ns"),
)

attempt = Table(
    "attempt",
    metadata,
    Column("id", RowId, primary_key=True),
    run_reference(),
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
    run_reference(),
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
    # What its part of the log holds that no segment does yet: frames, and their bytes inflated.
    Column("logged_frames", BigInteger, nullable=False, server_default="0"),
    Column("logged_bytes", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("attempt_id", "rank"),
    Index(None, "logged_frames"),
    Index(None, "run_id", "rank"),
)

event = Table(
    "event",
    metadata,
    Column("id", RowId, primary_key=True),
    run_reference(),
    Column("attempt_id", RowId, ForeignKey("attempt.id", ondelete="CASCADE"), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("time_ns", BigInteger, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("data", JSON, nullable=False),
    Index(None, "run_id", "time_ns"),
    # Without it the deletion of an attempt would look through all events of all runs.
    Index(None, "attempt_id"),
)

command = Table(
    "command",
    metadata,
    Column("id", RowId, primary_key=True),
    run_reference(),
    Column("rank", Integer, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("args", JSON, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Column("acked_ns", BigInteger),
    Index(None, "run_id", "rank", "acked_ns"),
)
