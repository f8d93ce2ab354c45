"""Alive, ready, counted: the routes of the admin port that a supervisor or a scraper asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from litestar import Response, get
from litestar.openapi import ResponseSpec

from cacheproxy.http.admin.document import GUARDED, refusals
from cacheproxy.http.openapi import Health, health_of

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from cacheproxy.http.admin.house import Operated


def handlers(house: Operated) -> list[HTTPRouteHandler]:
    """Return health, readiness and metrics."""

    @get("/healthz", sync_to_thread=False)
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @get("/readyz", sync_to_thread=False, responses={503: ResponseSpec(Health, generate_examples=False)})
    def readyz() -> Response[Health]:
        status, body = health_of(house.readiness())
        return Response(body, status_code=status)

    @get(
        "/metrics",
        media_type="text/plain; version=0.0.4",
        sync_to_thread=False,
        responses=refusals(401),
        security=GUARDED,
    )
    def metrics() -> bytes:
        return house.pipeline.parts.telemetry.render()

    return [healthz, readyz, metrics]
