"""What groups of Prometheus's rules remember from one evaluation to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select, update

from gradwarden_server.model import Alert
from gradwarden_server.store import tables as t
from gradwarden_server.store.database import Database, Priority
from gradwarden_server.store.errors import Fenced
from gradwarden_server.store.streams import insert_or_ignore


@dataclass(frozen=True, slots=True)
class Kept:
    """A group as of its last evaluation.

    Attributes:
        alerts: Pending and firing ones, by the identity of their rule.
        recorded: Label sets that were written last, by the identity of their rule.
        report: How the evaluation went, for people.
    """

    name: str
    evaluated_ns: int = 0
    alerts: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    recorded: Mapping[str, Sequence[Mapping[str, str]]] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)


class Rulings:
    """The memory of the groups of a project; written by whoever holds a group's lease."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def reword(self, project: str, connection: Connection, alerts: Sequence[Alert]) -> None:
        """Describe open alerts anew; that is no event of theirs, and nobody is told of it."""
        mine = (t.alert.c.id == bindparam("row")) & (t.alert.c.project == project)
        words = [{"row": alert.id, "words": dict(alert.annotations)} for alert in alerts]
        if words:
            anew = update(t.alert).where(mine).values(annotations=bindparam("words"))
            connection.execute(anew, words)

    def resume(self, project: str, name: str, epoch: int) -> Kept:
        """Where to go on from; claims the group for ``epoch``.

        Raises:
            Fenced: a newer epoch claimed it already.
        """
        mine = (t.rule_group.c.project == project) & (t.rule_group.c.name == name)

        def job(connection: Connection) -> Kept:
            connection.execute(
                insert_or_ignore(connection, t.rule_group).values(
                    project=project,
                    name=name,
                    epoch=epoch,
                    evaluated_ns=0,
                    alerts={},
                    recorded={},
                    report={},
                )
            )
            claimed = connection.execute(
                update(t.rule_group).where(mine, t.rule_group.c.epoch <= epoch).values(epoch=epoch)
            )
            if claimed.rowcount != 1:
                raise Fenced(f"epoch {epoch} of the rules {name} of {project} is over")
            return _kept(connection.execute(select(t.rule_group).where(mine)).one())

        return self._database.write(job, Priority.ALERT).result()

    def save(
        self, project: str, connection: Connection, epoch: int, old_ns: int, kept: Kept
    ) -> None:
        """Keep one evaluation within the caller's transaction.

        Raises:
            Fenced: another process evaluates this group now; the caller's work is undone.
        """
        moved = connection.execute(
            update(t.rule_group)
            .where(
                t.rule_group.c.project == project,
                t.rule_group.c.name == kept.name,
                t.rule_group.c.epoch == epoch,
                t.rule_group.c.evaluated_ns == old_ns,
            )
            .values(
                evaluated_ns=kept.evaluated_ns,
                alerts=kept.alerts,
                recorded=kept.recorded,
                report=kept.report,
            )
        )
        if moved.rowcount != 1:
            raise Fenced(f"the rules {kept.name} of {project} were evaluated elsewhere")

    def forget(self, project: str, connection: Connection, epoch: int, name: str) -> None:
        """Forget a group that is no more, within the caller's transaction.

        Raises:
            Fenced: another process keeps it now.
        """
        gone = connection.execute(
            delete(t.rule_group).where(
                t.rule_group.c.project == project,
                t.rule_group.c.name == name,
                t.rule_group.c.epoch == epoch,
            )
        )
        if gone.rowcount != 1:
            raise Fenced(f"the rules {name} of {project} are kept elsewhere")

    def all(self, project: str) -> dict[str, Kept]:
        """Every group of a project by its name."""
        query = select(t.rule_group).where(t.rule_group.c.project == project)
        with self._database.read() as connection:
            return {row.name: _kept(row) for row in connection.execute(query)}

    def names(self, project: str) -> set[str]:
        """The groups that something is kept of."""
        query = select(t.rule_group.c.name).where(t.rule_group.c.project == project)
        with self._database.read() as connection:
            return set(connection.execute(query).scalars())


def _kept(row: Any) -> Kept:
    return Kept(row.name, row.evaluated_ns, row.alerts, row.recorded, row.report)
