"""``/api/v1/rules`` and ``/api/v1/alerts``: how rules stand, as Prometheus tells it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from gradwarden_server.api.deps import CREDENTIALS, PartsDep, Reader
from gradwarden_server.api.prometheus import Form, FormDep, success
from gradwarden_server.model import Alert, fingerprint
from gradwarden_server.promql.notation import span
from gradwarden_server.querying.ruling import GroupState, identities
from gradwarden_server.querying.templates import go_exponent
from gradwarden_server.rules.groups import PromGroup, PromRule
from gradwarden_server.store.judging.rulings import Kept

router = APIRouter(prefix="/api/v1", tags=["prometheus"], dependencies=CREDENTIALS)

_NEVER = "0001-01-01T00:00:00Z"
_KINDS = {"alert": "alerting", "record": "recording"}


@router.get("/rules", summary="Groups of Prometheus's rules, and how they stand")
def rules(form: FormDep, who: Reader, parts: PartsDep) -> Response:
    """Parameters: type, rule_name[], file[], rule_group[]. Detectors are in /v1/rules."""
    kept = parts.rulings.all(who.project)
    groups = []
    for group in parts.rulebook.book.rules.groups:
        if not _asked(form, "file[]", group.file) or not _asked(form, "rule_group[]", group.name):
            continue
        held = kept.get(group.key, Kept(group.key))
        told = [
            _rule(rule, identity, held)
            for rule, identity in zip(group.rules, identities(group.rules), strict=True)
            if _asked(form, "rule_name[]", rule.name) and _of_kind(form, rule)
        ]
        if told:
            groups.append(_group(group, held) | {"rules": told})
    return success({"groups": groups})


@router.get("/rules/{namespace}/{group}", include_in_schema=False)
def ruler(namespace: str, group: str, who: Reader) -> Response:
    """Grafana asks whether rules can be written here, as with Mimir: this answer says no."""
    return PlainTextResponse("404 page not found\n", status_code=404)


@router.get("/alerts", summary="Alerts that are pending or firing")
def alerts(who: Reader, parts: PartsDep) -> Response:
    """As Prometheus tells them, of detectors and rules; the whole of them is at /v1/alerts."""
    live = {
        fingerprint(held["labels"]): held
        for kept in parts.rulings.all(who.project).values()
        for found in kept.alerts.values()
        for held in found
    }
    page = parts.ledger.list(who.project, ("pending", "firing"), limit=500)
    return success({"alerts": [_of_ledger(alert, live) for alert in page.items]})


def _asked(form: Form, name: str, value: str) -> bool:
    wanted = [held for key, held in form if key == name]
    return not wanted or value in wanted


def _of_kind(form: Form, rule: PromRule) -> bool:
    kind = next((value for key, value in form if key == "type"), "")
    return kind not in _KINDS or bool(rule.alert) == (kind == "alert")


def _group(group: PromGroup, kept: Kept) -> dict[str, Any]:
    return {
        "name": group.name,
        "file": group.file,
        "interval": GroupState(group).interval_ms / 1000,
        "limit": group.limit,
        "evaluationTime": kept.report.get("seconds", 0.0),
        "lastEvaluation": _moment(kept.evaluated_ns),
    }


def _rule(rule: PromRule, identity: str, kept: Kept) -> dict[str, Any]:
    report = kept.report.get("rules", {}).get(identity)
    error = report["error"] if report else ""
    told: dict[str, Any] = {
        "name": rule.name,
        "query": rule.expr,
        "labels": dict(rule.labels),
        "health": "unknown" if report is None else "err" if error else "ok",
        "evaluationTime": report["seconds"] if report else 0.0,
        "lastEvaluation": _moment(kept.evaluated_ns),
    }
    if error:
        told["lastError"] = error
    if rule.record:
        return told | {"type": "recording"}
    held = [_alert(one) for one in kept.alerts.get(identity, ())]
    states = {one["state"] for one in held}
    state = "firing" if "firing" in states else "pending" if "pending" in states else "inactive"
    return told | {
        "type": "alerting",
        "state": state,
        "duration": span(rule.hold) / 1000,
        "keepFiringFor": span(rule.keep) / 1000,
        "annotations": dict(rule.annotations),
        "alerts": held,
    }


def _alert(held: Mapping[str, Any]) -> dict[str, Any]:
    told = {
        "labels": held["labels"],
        "annotations": held["annotations"],
        "state": held["state"],
        "activeAt": _moment(held["active_ms"] * 1_000_000),
        "value": go_exponent(float(held["value"])),
    }
    if held["lost_ms"] is not None:
        told["keepFiringSince"] = _moment(held["lost_ms"] * 1_000_000)
    return told


def _of_ledger(alert: Alert, live: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    held = live.get(alert.fingerprint)
    if held is not None:
        return _alert(held)
    return {
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "state": alert.state,
        "activeAt": _moment(alert.active_ns),
        "value": "1e+00",
    }


def _moment(ns: int) -> str:
    if not ns:
        return _NEVER
    at = datetime.fromtimestamp(ns / 1e9, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
