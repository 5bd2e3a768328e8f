"""What clients of Prometheus ask about a server itself: valid, and mostly empty here."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from gradwarden_server import telemetry
from gradwarden_server.api.deps import CREDENTIALS, Reader
from gradwarden_server.api.prometheus import success

router = APIRouter(prefix="/api/v1", tags=["prometheus"], dependencies=CREDENTIALS)


@router.get("/status/buildinfo", summary="What answers here")
def buildinfo(who: Reader) -> Response:
    """Named like a Prometheus without the rulers of others, so that clients expect no more."""
    rest = dict.fromkeys(("revision", "branch", "buildUser", "buildDate", "goVersion"), "")
    return success({"version": telemetry.package_version(), **rest})


@router.get("/status/config", summary="The configuration: there is no file of Prometheus's")
def config(who: Reader) -> Response:
    """Always empty."""
    return success({"yaml": ""})


@router.get("/status/flags", summary="Flags: there are none")
def flags(who: Reader) -> Response:
    """Always empty."""
    return success({})


@router.get("/status/runtimeinfo", summary="How the process runs: see /metrics")
def runtimeinfo(who: Reader) -> Response:
    """Always empty."""
    return success({})


@router.get("/alertmanagers", summary="Alertmanagers: receivers are told by the service itself")
def alertmanagers(who: Reader) -> Response:
    """Always empty."""
    return success({"activeAlertmanagers": [], "droppedAlertmanagers": []})


@router.get("/query_exemplars", summary="Exemplars: there are none")
def exemplars(who: Reader) -> Response:
    """Always empty."""
    return success([])


@router.get("/targets", summary="Targets: nothing is scraped")
def targets(who: Reader) -> Response:
    """Always empty: trainers send."""
    return success({"activeTargets": [], "droppedTargets": [], "droppedTargetCounts": {}})
