"""The OpenAPI document of the admin port, drawn by Litestar from the typed handlers that answer there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Litestar, Router
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.spec import Components, OpenAPIMediaType, Operation, Reference, RequestBody, SecurityScheme
from litestar.openapi.spec import Schema as LitestarSchema

from cacheproxy import __version__
from cacheproxy.explain import ExplainRequest
from cacheproxy.http.openapi import Error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from litestar.handlers import HTTPRouteHandler

PATH = "/admin/v1/openapi.json"
GUARDED: Sequence[dict[str, list[str]]] = [{"token": []}]


def refusals(*statuses: int) -> dict[int, ResponseSpec]:
    """Return the refusals a handler may answer with, for its `responses`."""
    return {status: ResponseSpec(Error, description="Refused.", generate_examples=False) for status in statuses}


@dataclass
class ExplainOperation(Operation):
    """`explain` reads its body itself, strictly, so its form is told here."""

    def __post_init__(self) -> None:
        schema = Reference(ref="#/components/schemas/ExplainRequest")
        self.request_body = RequestBody(content={"application/json": OpenAPIMediaType(schema=schema)}, required=True)


def document(handlers: Sequence[HTTPRouteHandler]) -> dict[str, Any]:
    """Return the document of these handlers, from an application that is never served.

    Served by Litestar itself it would come with pages of its own beside it.
    """
    schema: Any = msgspec.json.schema_components((ExplainRequest,))[1]["ExplainRequest"]
    config = OpenAPIConfig(
        title="cacheproxy admin",
        version=__version__,
        components=Components(
            schemas={"ExplainRequest": LitestarSchema()},
            security_schemes={"token": SecurityScheme(type="http", scheme="bearer")},
        ),
        openapi_router=Router(path="/never", route_handlers=[], include_in_schema=False),
    )
    told = Litestar([*handlers], openapi_config=config, logging_config=None).openapi_schema.to_schema()
    told["components"]["schemas"]["ExplainRequest"] = schema
    return told
