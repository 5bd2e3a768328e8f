"""The data model: every table of the service, for SQLite and PostgreSQL alike.

Times are UTC nanoseconds since the epoch. ``run_id`` and the like are internal row numbers;
the identifiers that users see are the text columns beside them.
"""

from gradwarden_server.store.tables.access import audit, link_secret, token
from gradwarden_server.store.tables.alerts import (
    alert,
    alert_transition,
    cursor,
    delivery,
    detector_state,
    lease,
    maintenance,
    outbox,
    promotion,
    receiver_thread,
    rule_group,
    silence,
)
from gradwarden_server.store.tables.base import metadata
from gradwarden_server.store.tables.costs import outcome, price, report_sent
from gradwarden_server.store.tables.paging import group_member, notification_group, telling
from gradwarden_server.store.tables.samples import (
    chunk,
    frame_batch,
    retention,
    rollup,
    sample_chunk,
    segment,
    series,
)
from gradwarden_server.store.tables.training import (
    attempt,
    command,
    event,
    layout,
    project,
    run,
    stream,
)

__all__ = [
    "alert",
    "alert_transition",
    "attempt",
    "audit",
    "chunk",
    "command",
    "cursor",
    "delivery",
    "detector_state",
    "event",
    "frame_batch",
    "group_member",
    "layout",
    "lease",
    "link_secret",
    "maintenance",
    "metadata",
    "notification_group",
    "outbox",
    "outcome",
    "price",
    "project",
    "promotion",
    "receiver_thread",
    "report_sent",
    "retention",
    "rollup",
    "rule_group",
    "run",
    "sample_chunk",
    "segment",
    "series",
    "silence",
    "stream",
    "telling",
    "token",
]
