"""What a caller's virtual key means for its request; in pass mode there is no caller, and nothing changes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from cacheproxy.errors import RequestError
from cacheproxy.model import Scope
from cacheproxy.query.canonical import decode
from cacheproxy.query.scope import ACCOUNTS, CREDENTIALS, common_of, read_scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cacheproxy.access.gate import Caller
    from cacheproxy.http.exchange import Exchange
    from cacheproxy.ports import Call

SEEN_BYTES = 1024 * 1024
"""Largest passed-through body that is read to learn its model."""
_MAX_DEPTH = 64
_READS = ("GET", "HEAD", "OPTIONS")
_MORE_MODELS = frozenset({"models", "fallbacks", "fallback_models"})
_MODEL_IN_BODY = frozenset(
    f"/v1/{route}"
    for route in (
        "audio/speech",
        "chat/completions",
        "completions",
        "embeddings",
        "images/generations",
        "messages",
        "moderations",
        "rerank",
        "responses",
        "responses/compact",
        "responses/input_tokens",
        "score",
    )
)
"""Where the body's `model` says all. Elsewhere a path, a file or an older job names one that cannot be seen here."""


def scope_of(exchange: Exchange, secret: bytes) -> Scope:
    """Return who may share this request's answer, as `scope_by`."""
    return scope_by(exchange.caller, exchange.headers, secret)


def scope_by(
    caller: Caller | None, headers: Iterable[tuple[bytes, bytes]], secret: bytes, namespace: str = ""
) -> Scope:
    """Return who may share a request's answer: the key's tenant, or the one that its credential names.

    Raises InvalidRequest when a credential header comes twice.
    """
    if caller is None:
        return read_scope(headers, secret, namespace)
    return Scope(tenant=caller.tenant, namespace=namespace, common=common_of(secret), consents=caller.consents)


def withheld(exchange: Exchange) -> tuple[bytes, ...]:
    """Return the request headers that stop here: a virtual key, and the accounts that go with a key."""
    if exchange.caller is None:
        return ()
    # A compressed answer would not show its usage.
    compressed = (b"accept-encoding",) if exchange.caller.charge is not None else ()
    return (*CREDENTIALS, *ACCOUNTS, *compressed)


def on_account(exchange: Exchange, call: Call) -> Call:
    """Return the call as the caller's key has it sent and charged. Raises RateLimited when its tokens are spent."""
    caller = exchange.caller
    if caller is None:
        return call
    if call.method == "POST":  # nothing else is charged
        caller.check_tokens()
    headers = call.headers
    if caller.charge is not None and call.max_answer_bytes is None:
        headers = (*headers, ("accept-encoding", "identity"))
    return replace(
        call,
        headers=headers,
        tenant=call.tenant or caller.tenant,
        upstream_key=caller.upstream_key,
        charge=caller.charge,
    )


async def look_through(exchange: Exchange) -> bytes | None:
    """Return the body of a request to be passed through, where it had to be read to see that its model is allowed.

    A key for certain models passes what only reads (no body), and bodies that name an allowed model. Raises
    ModelNotAllowed and CallerGone.
    """
    caller = exchange.caller
    if caller is None or not caller.restricted:
        return None
    check_query(exchange)
    bare = exchange.header(b"transfer-encoding") is None and exchange.header(b"content-length") in (None, b"0")
    if bare and exchange.method in _READS:
        return None
    if exchange.path not in _MODEL_IN_BODY or not has_small_json(exchange):
        caller.check_model("")
    body = await exchange.body(SEEN_BYTES)
    try:
        asked = decode(body, _MAX_DEPTH)
    except RequestError:
        asked = {}  # parsers may disagree on such a body: what is seen here need not be what the backend sees
    check_models(caller, asked)
    return body


def check_query(exchange: Exchange) -> None:
    """Raise ModelNotAllowed where a query string names a model that the caller's key is not for."""
    caller, query = exchange.caller, exchange.scope["query_string"].decode("latin-1")
    if caller is not None and caller.restricted and query:
        for name, model in parse_qsl(query, keep_blank_values=True):
            if name.lower() == "model":
                caller.check_model(model)


def check_models(caller: Caller, body: Mapping[str, Any]) -> None:
    """Raise ModelNotAllowed unless a key is for every model that a decoded body names.

    Gateways route to any of `models` and `fallbacks`; a tool may have a model of its own; and some backends read keys
    without their case, so that another spelling of `model` counts as one that cannot be seen.
    """
    if not caller.restricted:
        return
    named: list[object] = [body.get("model")]
    for key, value in body.items():
        if key.lower() == "model" and key != "model":
            named.append(None)
        elif key.lower() in _MORE_MODELS:
            named += value if isinstance(value, list) else [value]
        elif key.lower() == "tools" and isinstance(value, list):
            named += [tool["model"] for tool in value if isinstance(tool, dict) and "model" in tool]
    for one in named:
        model = one.get("model") if isinstance(one, dict) else one
        caller.check_model(model if isinstance(model, str) else "")


def has_small_json(exchange: Exchange) -> bool:
    """Whether the body is declared as JSON that is worth reading to learn its model."""
    length = exchange.header(b"content-length") or b""
    kind = (exchange.header(b"content-type") or b"").partition(b";")[0].strip().lower()
    plain = exchange.header(b"content-encoding") in (None, b"", b"identity")
    return length.isdigit() and 0 < int(length[:12]) <= SEEN_BYTES and plain and kind == b"application/json"


def tenant_of(exchange: Exchange, secret: bytes) -> str:
    """Return who asks, to be fair to all; "" also where the credentials are ambiguous, which the backend may judge."""
    try:
        return scope_of(exchange, secret).tenant
    except RequestError:
        return ""


def model_of(body: Mapping[str, Any]) -> str:
    """Return the model that a decoded body names, or ""."""
    model = body.get("model")
    return model if isinstance(model, str) else ""
