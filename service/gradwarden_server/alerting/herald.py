"""The thread that turns marked groups into messages: what receivers hear, from what is so now.

A flush reads groups and alerts and writes messages and what was told in one transaction, so a
crash loses nothing and says nothing twice. What is decided is in ``notify.groups``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence

from gradwarden_server.model import Folded, Group, Lane, Notification
from gradwarden_server.notify import groups as deciding
from gradwarden_server.notify.groups import ESCALATED, FIRED, RESOLVED, Step
from gradwarden_server.notify.payload import body, group_key
from gradwarden_server.notify.routes import Route, Routing
from gradwarden_server.store.alerts.groups import GroupStore
from gradwarden_server.store.alerts.outbox import enqueue
from gradwarden_server.store.alerts.storms import Storms
from gradwarden_server.store.database import Database, Priority, Transaction
from gradwarden_server.store.errors import StoreError

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_GROUPS = 200
"""How many are looked at in one transaction."""
_AGAIN_NS = 60 * 1_000_000_000
"""When a group that could not be told is tried again."""
_SWEEP_NS = 3600 * 1_000_000_000


class Herald:
    """Looks at what is due. ``wake`` after a commit; a poll each second covers a lost wake."""

    def __init__(
        self,
        database: Database,
        groups: GroupStore,
        routing: Routing,
        external_url: str,
        projects: Callable[[], Iterable[str]],
        clock: Callable[[], int],
        told: Callable[[], None] = lambda: None,
    ) -> None:
        """``told`` is called when messages may have been written."""
        self._database = database
        self._groups = groups
        self._routing = routing
        self._url = external_url
        self._projects = projects
        self._clock = clock
        self._told = told
        self._swept_ns = 0
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="herald", daemon=True)
        self.errors = 0

    def start(self) -> None:
        """Begin; alerts that fired while other routes stood in the file find their groups."""
        self.adopt()
        self._thread.start()

    def adopt(self) -> None:
        """Mark alerts that fire and belong to groups that nobody made yet."""
        for project in self._projects():

            def job(connection: Transaction, project: str = project) -> int:
                lanes = self._routing.lanes
                return self._groups.adopt(project, connection, lanes, self._clock())

            self._database.write(job, Priority.ALERT).result()

    def wake(self) -> None:
        """Something may be due."""
        self._woken.set()

    def stop(self) -> None:
        """Finish the flush under way."""
        self._stopping.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                self.round(self._clock())
            except StoreError as error:
                self.errors += 1
                log.error("groups wait, nothing of them is lost: %s", error)
            except Exception:
                self.errors += 1
                log.exception("groups could not be told and are tried again")
            self._woken.wait(_POLL_SECONDS)
            self._woken.clear()

    def round(self, now_ns: int) -> int:
        """Tell everything that is due; how many groups were looked at."""
        looked = 0
        while due := self._groups.due(now_ns):
            before = looked
            for project, receiver in due:
                looked += self._tell(project, receiver, now_ns)
            if looked == before:  # another process is about them
                break
        if now_ns - self._swept_ns >= _SWEEP_NS:
            self._swept_ns = now_ns
            self._database.write(
                lambda connection: self._groups.sweep(connection, now_ns), Priority.COMPACTION
            ).result()
        return looked

    def _tell(self, project: str, receiver: str, now_ns: int) -> int:
        def job(connection: Transaction) -> int:
            groups = self._groups.take(project, connection, receiver, now_ns, _GROUPS)
            self._flush(connection, project, receiver, groups, now_ns)
            return len(groups)

        try:
            looked = self._database.write(job, Priority.ALERT).result()
        except StoreError:
            raise
        except Exception:
            self.errors += 1
            log.exception("groups of %s could not be told together", receiver)
            looked = self._tell_singly(project, receiver, now_ns)
        self._told()
        return looked

    def _tell_singly(self, project: str, receiver: str, now_ns: int) -> int:
        """One group at a time: one that cannot be told must keep no other waiting."""

        def job(connection: Transaction) -> int:
            groups = self._groups.take(project, connection, receiver, now_ns, 1)
            try:
                with connection.begin_nested():
                    self._flush(connection, project, receiver, groups, now_ns)
            except StoreError:
                raise
            except Exception:
                log.exception("group %s waits, and is tried again", groups[0].key)
                self._groups.postpone(project, connection, groups[0], now_ns + _AGAIN_NS)
            return len(groups)

        looked = 0
        while self._database.write(job, Priority.ALERT).result():
            looked += 1
        return looked

    def _flush(
        self,
        connection: Transaction,
        project: str,
        receiver: str,
        groups: Sequence[Group],
        now_ns: int,
    ) -> None:
        flush = _Flush(self._groups, self._routing, self._url, connection, project, now_ns)
        flush.groups(receiver, [group for group in groups if not group.storm])
        # Storms last: what was folded a moment ago is theirs to tell.
        flush.storms([group for group in groups if group.storm])


class _Flush:
    """One transaction over due groups of one receiver."""

    def __init__(
        self,
        store: GroupStore,
        routing: Routing,
        url: str,
        connection: Transaction,
        project: str,
        now_ns: int,
    ) -> None:
        self._store = store
        self._storms = Storms()
        self._routing = routing
        self._url = url
        self._connection = connection
        self._project = project
        self._now_ns = now_ns

    def groups(self, receiver: str, groups: Sequence[Group]) -> None:
        steps = [(deciding.decide(g, self._route(g), self._now_ns), g) for g in groups]
        opening = [
            step
            for step, before in steps
            if step.say in (FIRED, RESOLVED) and step.severity == "page" and not before.open
        ]
        opening.sort(key=lambda step: step.say == RESOLVED)  # what fires rings first
        folded = self._folding(receiver, opening)
        for step, before in steps:
            storm = folded.get(before.id)
            if storm is not None:
                self._fold(step, storm)
            else:
                self._settle(step, before)

    def storms(self, groups: Sequence[Group]) -> None:
        for group in groups:
            held = self._folded(group)
            route = self._route(group)
            step = deciding.decide_storm(group, held, route, self._project, self._now_ns)
            self._settle(step, group)

    def _folded(self, group: Group) -> Folded:
        return self._storms.folded(self._project, self._connection, group.source or group.id)

    def _route(self, group: Group) -> Route:
        # The file may have changed since: then what was told is told to its end.
        known = self._routing.route(group.receiver, group.route)
        return known or Route(group.receiver, storm=None)

    def _folding(self, receiver: str, opening: Sequence[Step]) -> dict[int, int]:
        """Which of the pages that begin now are too many, and the storms that speak for them."""
        begun: dict[float, int] = {}
        folded: dict[int, int] = {}
        storms: dict[str, int] = {}
        rung = 0
        for step in opening:
            storm = self._route(step.group).storm
            if storm is not None:
                if storm.seconds not in begun:
                    since_ns = self._now_ns - round(storm.seconds * 1e9)
                    where = self._project, self._connection, receiver, since_ns
                    begun[storm.seconds] = self._storms.begun(*where)
                if begun[storm.seconds] + rung >= storm.groups:
                    route = step.group.route
                    if route not in storms:
                        storms[route] = self._storm(receiver, route)
                    folded[step.group.id] = storms[route]
                    continue
            rung += 1
        return folded

    def _storm(self, receiver: str, route: str) -> int:
        labels = {"alertname": deciding.STORM_ALERT, "project": self._project}
        lane = Lane(receiver, route, group_key(labels, route), labels, deciding.STORM_WAIT_NS)
        return self._storms.row(self._project, self._connection, lane, self._now_ns)

    def _fold(self, step: Step, storm: int) -> None:
        step = deciding.fold(step, storm)
        where = self._project, self._connection
        self._store.settle(*where, step.group, None, "page", (), step.gone)

    def _settle(self, step: Step, before: Group) -> None:
        where = self._project, self._connection
        if step.say:
            self._say(step)
        severity = step.severity if step.say and step.say != RESOLVED else ""
        after = step.group
        self._store.settle(*where, after, step.due_ns, severity, step.told, step.gone)
        if before.folded_into is not None:
            self._storms.look(*where, before.folded_into, self._now_ns)
        escalation = self._route(after).escalate
        if step.escalate and escalation is not None:
            names = *where, after, escalation.receiver
            self._store.escalate(*names, step.escalate, self._now_ns)
        elif before.escalated_ns is not None:
            self._store.follow(*where, after, self._now_ns)

    def _say(self, step: Step) -> None:
        group = step.group
        if not group.storm:
            held = self._store.unsaid(self._project, self._connection, group)
            step = deciding.with_unsaid(step, held)
        message = Notification(
            project=self._project,
            receiver=group.receiver,
            group_key=group.key,
            severity=step.severity,
            payload=body(
                group.receiver,
                group.labels,
                step.alerts,
                self._url,
                group.key,
                self._routing.most(group.receiver),
            ),
        )
        where = self._project, self._connection
        row = enqueue(*where, message, self._now_ns, replaces=True)
        if group.storm:
            self._storms.told(*where, row, group.source or group.id)
            return
        why = f"{step.say}: {group.why}" if step.say == ESCALATED else step.say
        self._store.told(*where, row, step.news, why)
