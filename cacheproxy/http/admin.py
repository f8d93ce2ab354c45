"""The admin listener: health and metrics, apart from the data port so that no data path can reach it."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any

from litestar import Litestar, Request, Response, get
from litestar.exceptions import HTTPException, NotAuthorizedException

from cacheproxy.http.problems import problem_body

if TYPE_CHECKING:
    from collections.abc import Callable

    from litestar.connection import ASGIConnection
    from litestar.handlers import BaseRouteHandler

    from cacheproxy.settings import Secret
    from cacheproxy.telemetry import Telemetry


def create_admin_app(telemetry: Telemetry, readiness: Callable[[], dict[str, str]], token: Secret) -> Litestar:
    """Return the admin application. With a token, everything but health asks for it as a bearer token."""

    def check_token(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        sent = connection.headers.get("authorization", "").removeprefix("Bearer ")
        expected = token.reveal()
        if expected and not hmac.compare_digest(sent.encode(), expected.encode()):
            raise NotAuthorizedException("give the admin token as a bearer token")

    @get("/healthz", sync_to_thread=False)
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @get("/readyz", sync_to_thread=False)
    def readyz() -> Response[dict[str, Any]]:
        parts = readiness()
        broken = any(parts.values())
        body = {"status": "unavailable" if broken else "ok", "parts": {name: why or "ok" for name, why in parts.items()}}
        return Response(body, status_code=503 if broken else 200)

    @get("/metrics", guards=[check_token], media_type="text/plain; version=0.0.4; charset=utf-8", sync_to_thread=False)
    def metrics() -> bytes:
        return telemetry.render()

    return Litestar(
        [healthz, readyz, metrics],
        openapi_config=None,
        logging_config=None,
        exception_handlers={HTTPException: _problem},
    )


def _problem(_: Request[Any, Any, Any], exc: HTTPException) -> Response[bytes]:
    kind = "authentication_error" if exc.status_code == 401 else "invalid_request_error"
    body = problem_body(str(exc.detail), kind, f"http_{exc.status_code}")
    return Response(body, status_code=exc.status_code, media_type="application/json")
