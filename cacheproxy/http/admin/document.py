"""The OpenAPI document of the admin port, drawn by Litestar from the typed handlers that answer there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec
from litestar import Litestar, Router, get
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.spec import Components, OpenAPIMediaType, Operation, Reference, RequestBody, SecurityScheme
from litestar.openapi.spec import Schema as LitestarSchema

from cacheproxy import __version__
from cacheproxy.http.openapi import Error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from litestar.handlers import HTTPRouteHandler

PATH = "/admin/v1/openapi.json"
_GUARD = {
    "401": "No token, or a wrong one.",
    "403": "Not with this token, or another site's page asked.",
    "414": "The target is too long.",
    "415": "The body is not JSON.",
    "421": "The Host is none of the admin port's.",
    "429": "Too many wrong tokens.",
    "431": "Too many or too large headers.",
}
GUARDED: Sequence[dict[str, list[str]]] = [{"token": []}]


class _Told(Protocol):
    told: type[msgspec.Struct]


def refusals(*statuses: int) -> dict[int, ResponseSpec]:
    """Return the refusals a handler may answer with, for its `responses`."""
    return {status: ResponseSpec(Error, description="Refused.", generate_examples=False) for status in statuses}


def told(form: type[msgspec.Struct], media_type: str = "application/json") -> type[Operation]:
    """Return the `operation_class` of a handler that reads its body itself, strictly (`body_of`): its form is told."""

    @dataclass
    class ToldOperation(Operation):
        def __post_init__(self) -> None:
            schema = Reference(ref=f"#/components/schemas/{form.__name__}")
            self.request_body = RequestBody(content={media_type: OpenAPIMediaType(schema=schema)}, required=True)

    cast("_Told", ToldOperation).told = form
    return ToldOperation


def handlers(of: Sequence[HTTPRouteHandler]) -> list[HTTPRouteHandler]:
    """Return the route of the document of the handlers given, itself included."""

    @get(PATH, sync_to_thread=False, responses=refusals(401), security=GUARDED)
    def openapi() -> dict[str, Any]:
        return described

    described = document([*of, openapi])
    return [openapi]


def document(handlers: Sequence[HTTPRouteHandler]) -> dict[str, Any]:
    """Return the document of these handlers, from an application that is never served.

    Served by Litestar itself it would come with pages of its own beside it.
    """
    forms = {form for handler in handlers if (form := getattr(handler.operation_class, "told", None))}
    schemas: dict[str, Any] = msgspec.json.schema_components(
        sorted(forms, key=lambda form: form.__name__), ref_template="#/components/schemas/{name}"
    )[1]
    config = OpenAPIConfig(
        title="cacheproxy admin",
        version=__version__,
        components=Components(
            schemas={name: LitestarSchema() for name in schemas},
            security_schemes={"token": SecurityScheme(type="http", scheme="bearer")},
        ),
        openapi_router=Router(path="/never", route_handlers=[], include_in_schema=False),
    )
    drawn = Litestar([*handlers], openapi_config=config, logging_config=None).openapi_schema.to_schema()
    drawn["components"]["schemas"].update(schemas)
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    guards = {status: {"description": why, "content": content} for status, why in _GUARD.items()}
    for path, methods in drawn["paths"].items():
        for operation in methods.values() if path not in ("/healthz", "/readyz") else ():
            operation["responses"] = {**guards, **operation["responses"]}
    return drawn
