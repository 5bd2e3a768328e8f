"""The alerts of a run that someone deleted: resolved, and told so to whoever was paged."""

from __future__ import annotations

from collections.abc import Callable

from gradwarden_server.alerting import lifecycle
from gradwarden_server.alerting.watch import Rooms
from gradwarden_server.store.database import Priority, Transaction
from gradwarden_server.store.judging.evaluation import Lease

REASON = "run_deleted"


def close_alerts(
    rooms: Rooms, project: str, acquire: Callable[[str], Lease | None], now_ns: int
) -> None:
    """Resolve the open alerts of a project's deleted runs.

    Args:
        rooms: What an evaluation reads and writes.
        project: Whose runs.
        acquire: The lease of a run by its identifier, or None while another process holds it.
        now_ns: By our clock.

    Raises:
        Fenced: another process took the lease meanwhile, and sees to it.
    """
    for run in rooms.evaluation.forgotten(project):
        lease = acquire(run.run)
        if lease is None:
            continue
        cursor, _ = rooms.evaluation.resume(project, run.row, lease.epoch)
        with rooms.database.read() as connection:
            alerts = rooms.ledger.open_alerts(project, connection, run.row)
        changes = lifecycle.resolve_all(alerts, REASON, now_ns)

        def job(connection: Transaction) -> None:
            rooms.evaluation.move(project, connection, run.row, lease.epoch, cursor, cursor)  # noqa: B023
            rooms.ledger.apply(project, connection, run.row, changes, now_ns)  # noqa: B023

        rooms.database.write(job, Priority.ALERT).result()
