"""What every cached route shares: a request is understood, and may be counted, refused or forwarded."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from cacheproxy.errors import EncodingNotSupported, RateLimited, UpstreamError
from cacheproxy.http import passthrough, problems
from cacheproxy.http.callers import check_models, check_query, model_of, on_account, scope_by
from cacheproxy.http.headers import forwarded_headers, lacks, outcome_headers, shareable, unanswered_headers
from cacheproxy.model import Augment, Bypass, Hit, Miss, Trait
from cacheproxy.ports import Call
from cacheproxy.query.canonical import decode
from cacheproxy.query.controls import controlling, read_body_controls, read_controls
from cacheproxy.query.known import LARGEST_BYTES, key_of
from cacheproxy.query.scope import ACCOUNTS, CREDENTIALS, read_user

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    from cacheproxy import settings
    from cacheproxy.errors import CacheProxyError
    from cacheproxy.http.exchange import Exchange
    from cacheproxy.http.headers import Headers
    from cacheproxy.joining import Flown
    from cacheproxy.journey import Journey
    from cacheproxy.model import Controls, Outcome, Query, Scope
    from cacheproxy.pipeline import Pipeline
    from cacheproxy.query.known import Known

NO_SNIFF = (b"x-content-type-options", b"nosniff")
PRIVATE = (b"cache-control", b"private")
_DROPPED = (b"content-length", b"accept-encoding")
_CHOOSING = frozenset(
    {
        b"anthropic-beta",
        b"anthropic-version",
        b"helicone-fallbacks",
        b"helicone-model-override",
        b"helicone-target-url",
        b"x-portkey-config",
        b"x-portkey-custom-host",
        b"x-portkey-provider",
        b"x-portkey-virtual-key",
    }
)
"""Headers by which gateways choose model or provider without saying `Vary`."""
_BETA = b"openai-beta"
_READ = frozenset({*CREDENTIALS, *ACCOUNTS, *_CHOOSING, _BETA})
_ONCE = frozenset({Trait.STATEFUL, Trait.LIVE_SEARCH, Trait.TOOLS})
"""What may have effects beyond its answer: never sent twice."""
LARGE_BYTES = 128 * 1024
"""A body beyond this is understood in a thread: on the event loop it would hold everybody up for milliseconds."""

Q = TypeVar("Q")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Understood(Generic[Q]):
    """A request's body as it will be forwarded, decoded, and what its dialect reads in it."""

    raw: bytes = field(repr=False)
    body: Mapping[str, Any] = field(repr=False)
    query: Q
    user: str = ""
    """Its end user, digested; "" where it names none."""
    key: bytes = b""
    """What stands for the request among those that are known; b"" where it is not to be remembered."""
    known: bool = False
    """Whether it is one of them."""


class Route(Generic[Q]):
    """`POST` to one cached API. `read` makes a Query of a body; `threads` understands large bodies."""

    def __init__(
        self,
        pipeline: Pipeline,
        config: settings.Settings,
        secret: bytes,
        read: Callable[[Mapping[str, Any], Scope, Controls, bytes], Q],
        threads: Executor,
        known: Known[Understood[Q]] | None = None,
    ) -> None:
        """With `known`, what is understood of requests that the exact tier answers is not read anew."""
        self._pipeline = pipeline
        self._known = known
        self._telemetry = pipeline.parts.telemetry
        self._requests_by = cache(self._telemetry.requests.labels)
        self._lookup_seconds_by = cache(self._telemetry.lookup_seconds.labels)
        self._max_body_bytes = config.server.max_body_bytes
        self._max_depth = config.server.max_depth
        self._secret = secret
        self._read = read
        self._threads = threads

    async def _understand(self, exchange: Exchange) -> Understood[Q]:
        if exchange.header(b"content-encoding") not in (None, b"", b"identity"):
            raise EncodingNotSupported("the request body is compressed; send it as it is (content-encoding: identity)")
        raw = await exchange.body(self._max_body_bytes)
        headers = _looked_at(exchange.headers)
        if self._known is None or len(raw) > LARGEST_BYTES:
            read = partial(self._read_request, exchange, raw, headers)
            return await self._aside(read) if len(raw) > LARGE_BYTES else read()
        key = self._key(exchange, raw, headers)
        known = self._known.get(key, self._pipeline.parts.store.fence)
        if known is None:
            return self._read_request(exchange, raw, headers, key)
        self._check(exchange, known.body)
        return known

    def _key(self, exchange: Exchange, raw: bytes, headers: Headers) -> bytes:
        """Return what a request is known by: everything that `_read_request` looks at."""
        told, caller = exchange.scope, exchange.caller
        whose = (caller.tenant.encode(), b"%d" % caller.consents) if caller is not None else ()
        return key_of((told["raw_path"], told["query_string"], raw, *whose), headers, self._secret)

    def _remember(self, understood: Understood[Q], query: Q, *, answered: bool) -> None:
        """Know a request from now on that the exact tier answered, planned as `query`; know it no longer if not."""
        if self._known is None or answered == understood.known:
            return
        if understood.known:
            self._known.drop(understood.key)
        elif understood.key:
            # `query.headers` are of the caller's choosing; the queries of some routes have none.
            size_bytes = len(understood.raw) + sum(map(len, chain.from_iterable(getattr(query, "headers", ()))))
            self._known.put(understood.key, replace(understood, query=query, known=True), size_bytes)

    async def _aside(self, work: Callable[[], T]) -> T:
        """Do what takes long by the size of its input in the thread, so that the event loop goes on."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _read_request(self, exchange: Exchange, raw: bytes, headers: Headers, key: bytes = b"") -> Understood[Q]:
        """Read a body and `headers`, and nothing else of the request: a known one is told by these alone."""
        controls, namespace = read_controls(headers)
        body = decode(raw, self._max_depth)
        if "cache" in body:
            controls, namespace = read_body_controls(controls, namespace, body.pop("cache"))
            raw = msgspec.json.encode(body)
        scope = scope_by(exchange.caller, headers, self._secret, namespace)
        model = model_of(body)
        self._check(exchange, body)
        variant = _variant(exchange.scope["query_string"], headers)
        variant += self._pipeline.parts.resolve(model).variant(model)
        query = self._read(body, scope, controls, variant)
        return Understood(raw=raw, body=body, query=query, user=read_user(body, self._secret), key=key)

    def _check(self, exchange: Exchange, body: Mapping[str, Any]) -> None:
        """Raise ModelNotAllowed unless the caller's key is for all that is asked for."""
        if exchange.caller is not None:
            check_query(exchange)
            check_models(exchange.caller, body)

    def _call(self, exchange: Exchange, query: Query, body: bytes, *, max_answer_bytes: int) -> Call:
        """Return a request for an answer that may be kept, on its caller's account. Raises RateLimited."""
        call = Call(
            method="POST",
            target=exchange.target,
            headers=passthrough.end_to_end(exchange, *_DROPPED),
            body=body,
            max_answer_bytes=max_answer_bytes,
            model=query.model,
            tenant=query.scope.tenant,
            repeatable=query.traits.isdisjoint(_ONCE),
        )
        return on_account(exchange, call)

    async def _send_flown(self, exchange: Exchange, journey: Journey, flown: Flown) -> None:
        head, outcome = flown.head, flown.outcome
        headers = [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in (shareable(head.headers) if flown.coalesced else head.headers)
            if name.lower() != "content-length"
        ]
        headers += outcome_headers(outcome, 0)
        headers += forwarded_headers(
            outcome,
            status=head.status,
            model=outcome.by.model if isinstance(outcome, Augment) else journey.query.model,
            settlement=None if flown.body is None else await self._pipeline.settlement(flown),
            coalesced=flown.coalesced,
        )
        if lacks(head.headers, "cache-control"):
            headers.append(PRIVATE)
        if flown.body is None:
            await exchange.send_stream(head.status, headers, flown.reader.chunks())
        else:
            await exchange.send_whole(head.status, headers, flown.body)

    async def _forward(
        self, exchange: Exchange, journey: Journey, outcome: Miss | Bypass, understood: Understood[Q]
    ) -> None:
        self._count(outcome)
        model = journey.query.model
        try:
            await passthrough.forward(
                exchange,
                self._pipeline.parts.upstream,
                max_body_bytes=self._max_body_bytes,
                body=understood.raw,
                asked=passthrough.Asked(
                    model=model,
                    tenant=journey.query.scope.tenant,
                    elsewhere=journey.query.traits.isdisjoint(_ONCE),
                ),
                more_headers=lambda status: (
                    outcome_headers(outcome, 0)
                    + forwarded_headers(outcome, status=status, model=model, settlement=None, coalesced=False)
                ),
            )
        except (UpstreamError, RateLimited) as exc:
            await self._refuse(exchange, exc, outcome, model)

    async def refuse(self, exchange: Exchange, error: CacheProxyError) -> None:
        """Answer a request that was refused before anything could be looked up, with the cache's headers."""
        await self._refuse(exchange, error, Bypass(category=self._pipeline.pack().default_category, reason=error.code))

    async def _refuse(
        self, exchange: Exchange, error: CacheProxyError, outcome: Miss | Bypass, model: str = ""
    ) -> None:
        self._telemetry.refused.labels(error.code).inc()
        headers = outcome_headers(outcome, 0) + unanswered_headers(outcome, error.code, model)
        await problems.send(exchange, error, headers)

    def _count(self, outcome: Outcome) -> None:
        kind = type(outcome).__name__.lower()
        tier = outcome.tier.value if isinstance(outcome, Hit) else ""
        self._requests_by(kind, tier, outcome.category, outcome.reason).inc()
        if isinstance(outcome, Hit | Miss):
            self._lookup_seconds_by(kind).observe(outcome.evidence.lookup_ms / 1000)


def _looked_at(headers: Headers) -> Headers:
    """Return the headers that are read to understand a request."""
    return [header for header in headers if header[0] in _READ or controlling(header[0])]


def _variant(query: bytes, headers: Headers) -> bytes:
    """Return what else of a request changes the answer: its query string, and the headers that choose it."""
    beta = b", ".join([value for name, value in headers if name == _BETA])
    told = [b"\n%b:%b" % (name, value) for name, value in headers if name in _CHOOSING]
    return (b"?" + query if query else b"") + (b"\nbeta:" + beta if beta else b"") + b"".join(told)
