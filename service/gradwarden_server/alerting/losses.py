"""Keeps the alert that telemetry is lost: one of each project, of no run.

It stands in the ledger and nowhere else, so a restart forgets nothing: the time since which runs
are silent is when the alert began.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from gradwarden_server.alerting.muting import Muting
from gradwarden_server.alerting.telemetry_loss import ALIVE_NS, SECOND_NS, Heard, Loss, loss, named
from gradwarden_server.alerting.watch import Rooms
from gradwarden_server.model import SHADOW, WOULD_HAVE_PAGED, Alert, Change
from gradwarden_server.rules.spec import LossRule
from gradwarden_server.store.database import Priority, Transaction
from gradwarden_server.store.judging.evaluation import Lease
from gradwarden_server.store.records import RunRecord

GROUP = "telemetry"
"""Who keeps it in the ledger."""
BEGAN = "telemetry_lost"
OVER = "heard_again"
_LEASE_NS = 15 * SECOND_NS
_NAMED = 20
_FIRST_ACTION = (
    "Look whether the trainers reach this service (network, proxy, DNS, its certificate) and "
    "whether the cluster is up. Stop no run before that: what trains keeps its frames and sends "
    "them later."
)


@dataclass(slots=True)
class _Held:
    lease: Lease | None = None
    renew_ns: int = 0
    standing: Mapping[str, Alert] | None = None


class Losses:
    """Looks at the runs of every project, each second."""

    def __init__(self, rooms: Rooms, holder: str) -> None:
        self._rooms = rooms
        self._holder = holder
        self._held: dict[str, _Held] = {}

    def over(self, project: str, run: RunRecord, now_ns: int) -> tuple[Alert, ...]:
        """The alert that explains the silence of a run, where it fell silent with the others."""
        held, rule = self._held.get(project), self._rooms.rules.telemetry
        if held is None or not held.standing or rule is None:
            return ()
        quiet_ns = now_ns - round(rule.silent_seconds * SECOND_NS)
        return tuple(
            alert
            for alert in held.standing.values()
            if alert.active_ns <= run.last_seen_ns < quiet_ns
        )

    def round(self, project: str, now_ns: int, changed: Callable[[], None]) -> None:
        """Judge a project; ``changed`` is called where something may wait for delivery.

        Raises:
            Fenced: another process judges it now; nothing was written.
        """
        rule = self._rooms.rules.telemetry
        if rule is None:
            return
        held = self._held.setdefault(project, _Held())
        with self._rooms.database.read() as connection:
            standing = self._rooms.ledger.ruled(project, connection, GROUP)
        held.standing = standing
        if now_ns >= held.renew_ns:
            held.renew_ns = now_ns + _LEASE_NS // 2
            evaluation = self._rooms.evaluation
            held.lease = evaluation.acquire(project, GROUP, self._holder, _LEASE_NS)
        if held.lease is None:
            return
        since_ns = min((alert.active_ns for alert in standing.values()), default=None)
        listening_ns = self._rooms.service_started_ns
        horizon_ns = min(since_ns or now_ns, now_ns - ALIVE_NS, listening_ns - ALIVE_NS)
        heard = [
            Heard(run, last_ns, page or environment == "prod")
            for run, last_ns, page, environment in self._rooms.watched.heard(project, horizon_ns)
        ]
        found = loss(rule, heard, since_ns, listening_ns, now_ns)
        new = self._changes(project, rule, standing, found, now_ns)
        muting = Muting(self._rooms.rules.inhibitions, self._rooms.silences(project, now_ns))
        changes, settled = muting.apply(standing, new, now_ns)
        if not changes:
            return
        lease = held.lease

        def job(connection: Transaction) -> Mapping[str, Alert]:
            self._rooms.evaluation.check(project, connection, lease)
            ledger = self._rooms.ledger
            return ledger.apply(project, connection, None, changes, now_ns)

        touched = self._rooms.database.write(job, Priority.ALERT).result()
        held.standing = {key: touched.get(key, alert) for key, alert in settled.items()}
        changed()

    def _changes(
        self,
        project: str,
        rule: LossRule,
        standing: Mapping[str, Alert],
        found: Loss | None,
        now_ns: int,
    ) -> list[Change]:
        if found is None:
            return [
                Change(
                    replace(alert, state="resolved", resolved_ns=now_ns, reason=OVER),
                    alert.state,
                    now_ns,
                    OVER,
                )
                for alert in standing.values()
            ]
        if standing:
            return []
        alert = self._alert(project, rule, found, now_ns)
        fired = replace(alert, state="firing", fired_ns=now_ns)
        return [Change(alert, "inactive", now_ns, BEGAN), Change(fired, "pending", now_ns, BEGAN)]

    def _alert(self, project: str, rule: LossRule, found: Loss, now_ns: int) -> Alert:
        pages = any(run.pages for run in found.runs)
        shadow = pages and self._rooms.shadow(project, now_ns).holds(rule.alert)
        words = {
            "summary": f"{len(found.runs)} of {found.known} runs fell silent at once: "
            "their telemetry is lost, and perhaps more",
            "runs": named(found.runs, _NAMED),
            "first_action": _FIRST_ACTION,
            "runbook_url": f"{self._rooms.external_url}/runbooks/{rule.runbook}",
            "dashboard_url": self._rooms.external_url,
        }
        severity = "page" if pages and not shadow else "ticket"
        return Alert(
            id=None,
            project=project,
            run=None,
            labels={"alertname": rule.alert, "severity": severity, "project": project},
            annotations=words | ({SHADOW: WOULD_HAVE_PAGED} if shadow else {}),
            state="pending",
            active_ns=found.since_ns,
            reason=BEGAN,
            rule_group=GROUP,
        )
