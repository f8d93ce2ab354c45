"""The admin listener: health, metrics, explain, apart from the data port so that no data path can reach it."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from litestar import Litestar, Request, Response, get, post
from litestar.exceptions import NotAuthorizedException
from litestar.openapi import ResponseSpec

from cacheproxy.errors import InvalidRequest
from cacheproxy.explain import ExplainRequest, Explanation
from cacheproxy.http import problems
from cacheproxy.http.openapi import Health
from cacheproxy.http.openapi_admin import GUARDED, ExplainOperation, document, refusals
from cacheproxy.http.openapi_admin import PATH as OPENAPI_PATH
from cacheproxy.query.canonical import decode

if TYPE_CHECKING:
    from litestar.connection import ASGIConnection
    from litestar.handlers import BaseRouteHandler

    from cacheproxy.pipeline import Pipeline
    from cacheproxy.settings import Secret

_MAX_DEPTH = 64


class Operated(Protocol):
    """What an operator can ask of an assembled proxy."""

    @property
    def pipeline(self) -> Pipeline:
        """The line."""
        ...

    def readiness(self) -> dict[str, str]:
        """Return every part with "" or what is wrong with it."""
        ...

    async def explain(self, request: ExplainRequest) -> Explanation:
        """Show every step of one decision."""
        ...


def create_admin_app(house: Operated, token: Secret) -> Litestar:
    """Return the admin application. With a token, everything but health asks for it as a bearer token."""

    def check_token(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        sent = connection.headers.get("authorization", "").removeprefix("Bearer ")
        expected = token.reveal()
        if expected and not hmac.compare_digest(sent.encode(), expected.encode()):
            raise NotAuthorizedException("give the admin token as a bearer token")

    @get("/healthz", sync_to_thread=False)
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @get("/readyz", sync_to_thread=False, responses={503: ResponseSpec(Health, generate_examples=False)})
    def readyz() -> Response[Health]:
        parts = house.readiness()
        broken = any(parts.values())
        body = Health(
            status="unavailable" if broken else "ok", parts={name: why or "ok" for name, why in parts.items()}
        )
        return Response(body, status_code=503 if broken else 200)

    @get(
        "/metrics",
        guards=[check_token],
        media_type="text/plain; version=0.0.4",
        sync_to_thread=False,
        responses=refusals(401),
        security=GUARDED,
    )
    def metrics() -> bytes:
        return house.pipeline.parts.telemetry.render()

    @post(
        "/admin/v1/explain",
        guards=[check_token],
        status_code=200,
        responses=refusals(400, 401, 413),
        security=GUARDED,
        operation_class=ExplainOperation,
    )
    async def explain(request: Request[Any, Any, Any]) -> Explanation:
        return await house.explain(_explain_request(await request.body()))

    @get(OPENAPI_PATH, guards=[check_token], sync_to_thread=False, responses=refusals(401), security=GUARDED)
    def openapi() -> dict[str, Any]:
        return described

    handlers = [healthz, readyz, metrics, explain, openapi]
    described = document(handlers)
    return Litestar(
        handlers,
        openapi_config=None,
        logging_config=None,
        exception_handlers=problems.HANDLERS,
    )


def _explain_request(body: bytes) -> ExplainRequest:
    try:
        return msgspec.convert(decode(body, _MAX_DEPTH), ExplainRequest)
    except msgspec.ValidationError as exc:
        raise InvalidRequest(f"the body is not what explain takes: {exc}") from exc
