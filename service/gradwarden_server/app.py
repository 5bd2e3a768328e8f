"""The service as an ASGI app: the house behind its doors. Nothing here serves yet: ``cli`` does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from gradwarden_server import telemetry
from gradwarden_server.api import (
    alertmanager,
    alerts,
    backtests,
    casebook,
    communication,
    compare,
    diagnosis,
    differences,
    export,
    federate,
    health,
    ingest,
    latest,
    links,
    maintenance,
    outcomes,
    pages,
    paging,
    problems,
    prometheus,
    prometheus_status,
    ranks,
    reports,
    retention,
    ruled,
    rules,
    runbooks,
    runs,
    samples,
    series,
    shadow,
    silences,
    slos,
    stream,
    tokens,
)
from gradwarden_server.api.front import Front
from gradwarden_server.api.lane import Lane, Service
from gradwarden_server.house import House
from gradwarden_server.settings import Settings
from gradwarden_server.telemetry import Telemetry

DESCRIPTION = (
    "Trainers send frames of per-layer gradient numbers; people read runs and alerts. "
    "Every refusal is an RFC 9457 problem document."
)


def create_app(settings: Settings) -> FastAPI:
    """The service as an ASGI app; its lifespan opens, starts and stops the house."""
    house = House(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(house.open)
        await run_in_threadpool(house.start)
        yield
        await run_in_threadpool(house.stop)

    app = Service(
        title="gradwarden",
        version=telemetry.package_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={"default": problems.OPENAPI_RESPONSE},
    )
    app.state.house = house
    app.state.parts = house.parts
    app.add_middleware(
        Front, max_body_bytes=settings.max_body_bytes, answered=_count(house.telemetry)
    )
    problems.install(app)
    rooms = (
        ingest,
        runs,
        latest,
        series,
        samples,
        compare,
        diagnosis,
        differences,
        export,
        communication,
        ranks,
        casebook,  # before the alerts themselves, whose path takes any number
        alerts,
        paging,
        runbooks,
        shadow,
        silences,
        maintenance,
        links,
        slos,
        outcomes,
        reports,
        alertmanager,
        prometheus,
        prometheus_status,
        ruled,
        rules,
        backtests,
        federate,
        retention,
        tokens,
        stream,
        health,
        pages,
    )
    for room in rooms:
        app.include_router(room.router)
    house.trace(app)
    if not settings.otlp_endpoint:  # a traced request takes the long way, which is traced
        app.lane = Front(Lane(house.parts), settings.max_body_bytes, _count(house.telemetry))
    return app


def _count(numbers: Telemetry) -> Callable[[str, int], None]:
    def answered(path: str, status: int) -> None:
        if path == "/v1/ingest":
            numbers.ingest_requests.labels(str(status)).inc()

    return answered
