"""The OpenAPI 3.1 document of the data port: what this proxy itself promises, apart from what a backend adds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from cacheproxy import __version__
from cacheproxy.errors import MethodNotAllowed
from cacheproxy.http import problems
from cacheproxy.http.feedback import FeedbackRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cacheproxy.http.exchange import Exchange

Schema = dict[str, Any]

PATH = "/openapi.json"

_NAME = "^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$"
_REF = "#/components/{}/{}".format


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct, frozen=True, kw_only=True):
    """Every error, this proxy's and a backend's."""

    error: Problem


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the proxy can serve, and which part cannot."""

    status: Literal["ok", "degraded", "unavailable"]
    """`degraded`: requests are answered, by the backend alone."""
    parts: dict[str, str]
    upstreams: dict[str, str] = {}


DEGRADED = "degraded: "
"""Begins the word of a part without which the backend's answers flow all the same."""


def health_of(parts: Mapping[str, str], upstreams: Mapping[str, str] | None = None) -> tuple[int, Health]:
    """Return status and body for what every part says of itself, "" when it is well."""
    wrong = [why for why in parts.values() if why]
    broken = any(not why.startswith(DEGRADED) for why in wrong)
    status: Literal["ok", "degraded", "unavailable"] = "unavailable" if broken else "degraded" if wrong else "ok"
    told = {name: why or "ok" for name, why in parts.items()}
    return 503 if broken else 200, Health(status=status, parts=told, upstreams=dict(upstreams or {}))


_CONTROLS: dict[str, tuple[str, Schema]] = {
    "cache-control": (
        "RFC 9111 and 5861: no-store, no-cache, max-age, min-fresh, max-stale, only-if-cached, stale-if-error.",
        {"type": "string", "examples": ["no-cache", "max-age=3600"]},
    ),
    "x-cacheproxy-category": ("The policy category.", {"type": "string", "pattern": _NAME}),
    "x-cacheproxy-namespace": ("Keeps answers apart within one tenant.", {"type": "string", "pattern": _NAME}),
    "x-cacheproxy-tags": ("Comma list of tags of the stored answer.", {"type": "string"}),
    "x-cacheproxy-ttl": ("Longest life of the stored answer in seconds.", {"type": "number", "minimum": 0}),
    "x-cacheproxy-threshold": ("Raises the similarity a hit needs.", {"type": "number", "minimum": 0, "maximum": 1}),
    "x-cacheproxy-tier": ("Which tiers may answer.", {"type": "string", "enum": ["exact", "semantic", "off"]}),
    "x-cacheproxy-augment": ("Whether the small model may answer.", {"type": "string", "enum": ["off", "auto"]}),
}

_TOLD: dict[str, tuple[str, Schema]] = {
    "cache-status": ("RFC 9211; this proxy's member is `cacheproxy`, the last one.", {"type": "string"}),
    "age": ("Seconds since a hit was stored.", {"type": "integer", "minimum": 0}),
    "x-cacheproxy-outcome": ("What the cache did.", {"enum": ["hit", "augment", "miss", "bypass"]}),
    "x-cacheproxy-tier": ("Which tier hit.", {"enum": ["exact", "semantic"]}),
    "x-cacheproxy-category": ("The policy category.", {"type": "string"}),
    "x-cacheproxy-similarity": ("Similarity of the nearest entry.", {"type": "number", "minimum": -1, "maximum": 1}),
    "x-cacheproxy-threshold": (
        "The similarity a hit needed; with a probability, only the one from which on the verifier was asked.",
        {"type": "number"},
    ),
    "x-cacheproxy-probability": (
        "That the nearest answer is right, as the verifier sees it.",
        {"type": "number", "minimum": 0, "maximum": 1},
    ),
    "x-cacheproxy-entry": ("Opaque id of the stored answer.", {"type": "string"}),
    "x-cacheproxy-reason": ("Why.", {"type": "string"}),
    "x-cacheproxy-lookup-ms": ("Time of the lookup.", {"type": "number", "minimum": 0}),
    "x-cacheproxy-saved-usd": ("What the backend would have charged.", {"type": "number", "minimum": 0}),
    "x-cacheproxy-model": ("Which model answered.", {"type": "string"}),
    "x-cacheproxy-coalesced": ("Whether another's exchange answered.", {"enum": ["true", "false"]}),
}

_REFUSALS = {
    400: "The request is malformed, or the proxy cannot serve it as sent.",
    401: "No valid key.",
    403: "Not with this key.",
    404: "No such thing.",
    405: "The route has other methods.",
    408: "The request did not come in time.",
    413: "The body is too large.",
    414: "The target is too long.",
    415: "The body is compressed.",
    429: "More than this key may ask.",
    431: "Too many or too large headers.",
    502: "The backend did not answer as it must.",
    503: "Overloaded; see Retry-After.",
    504: "The backend was too slow, or only-if-cached and nothing may be served.",
}

_TEXT = {"anyOf": [{"type": "string"}, {"type": "array", "items": {}}]}
_CACHED: dict[str, tuple[str, str, Schema, list[str]]] = {
    "/v1/chat/completions": (
        "createChatCompletion",
        "A chat completion, from the cache or from the backend.",
        {"messages": {"type": "array", "items": {"type": "object"}}, "stream": {"type": "boolean"}},
        ["model", "messages"],
    ),
    "/v1/completions": (
        "createCompletion",
        "A legacy completion, from the cache or from the backend.",
        {"prompt": _TEXT, "stream": {"type": "boolean"}},
        ["model", "prompt"],
    ),
    "/v1/responses": (
        "createResponse",
        "A response, from the cache or from the backend; requests with state bypass the cache.",
        {"input": _TEXT, "stream": {"type": "boolean"}},
        ["model", "input"],
    ),
    "/v1/embeddings": (
        "createEmbedding",
        "Embeddings, each input from the exact tier or from the backend.",
        {"input": _TEXT, "encoding_format": {"enum": ["float", "base64"]}},
        ["model", "input"],
    ),
}


class DocumentRoute:
    """`GET /openapi.json`."""

    def __init__(self) -> None:
        self._body = msgspec.json.encode(document())

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request. Raises MethodNotAllowed."""
        if exchange.method not in ("GET", "HEAD"):
            raise MethodNotAllowed(f"{PATH} answers GET and HEAD")
        await exchange.send_whole(200, [problems.JSON], self._body)


def document() -> Schema:
    """Return the whole document."""
    _, schemas = msgspec.json.schema_components(
        (FeedbackRequest, Error, Health), ref_template=_REF("schemas", "{name}")
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cacheproxy",
            "version": __version__,
            "description": "A semantic cache in front of an OpenAI-compatible backend. Every other route under /v1/ "
            "passes through untouched.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "paths": {
            **{path: {"post": _cached(*told)} for path, told in _CACHED.items()},
            "/v1/models": {"get": _plain("listModels", "The backend's models.", {"type": "object"})},
            "/v1/cache/feedback": {"post": _feedback()},
            "/healthz": {"get": _health("isAlive", "Whether the process lives.")},
            "/readyz": {"get": _health("isReady", "Whether every part can serve, and which cannot.")},
            PATH: {"get": _plain("describe", "This document.", {"type": "object"}) | {"security": []}},
        },
        "components": {
            "schemas": schemas,
            "parameters": {
                name: {"name": name, "in": "header", "required": False, "description": text, "schema": schema}
                for name, (text, schema) in _CONTROLS.items()
            },
            "headers": {name: {"description": text, "schema": schema} for name, (text, schema) in _TOLD.items()},
            "responses": {
                f"Refused{status}": {"description": text, "content": {"application/json": {"schema": _schema("Error")}}}
                for status, text in _REFUSALS.items()
            },
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "The backend's key, or a virtual one."}
            },
        },
    }


def _cached(name: str, text: str, fields: Schema, required: list[str]) -> Schema:
    body = {"type": "object", "required": required, "properties": {"model": {"type": "string"}, **fields}}
    answer = {
        "description": "The answer, as the backend gives it; a hit has a new id and created.",
        "headers": {header: {"$ref": _REF("headers", header)} for header in _TOLD},
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {}}},
    }
    return {
        "operationId": name,
        "summary": text,
        "parameters": [{"$ref": _REF("parameters", control)} for control in _CONTROLS],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": answer, **_refused()},
    }


def _feedback() -> Schema:
    said = _plain("giveFeedback", "Says that an answer was good or bad, in the caller's own scope.", {"type": "object"})
    return said | {
        "requestBody": {"required": True, "content": {"application/json": {"schema": _schema("FeedbackRequest")}}}
    }


def _health(name: str, text: str) -> Schema:
    content = {"application/json": {"schema": _schema("Health")}}
    told = {"200": {"description": "Yes.", "content": content}, "503": {"description": "No.", "content": content}}
    return {"operationId": name, "summary": text, "security": [], "responses": told}


def _plain(name: str, text: str, schema: Schema) -> Schema:
    answer = {"description": "Done.", "content": {"application/json": {"schema": schema}}}
    return {"operationId": name, "summary": text, "responses": {"200": answer, **_refused()}}


def _refused() -> Schema:
    return {str(status): {"$ref": _REF("responses", f"Refused{status}")} for status in _REFUSALS}


def _schema(name: str) -> Schema:
    return {"$ref": _REF("schemas", name)}
