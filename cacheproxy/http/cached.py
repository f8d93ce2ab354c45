"""A cached route: one request understood, answered from the cache or by the backend, and told what the cache did."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from cacheproxy.errors import CacheProxyError, EncodingNotSupported, NotCached, UpstreamError
from cacheproxy.http import passthrough, problems
from cacheproxy.http.headers import (
    forwarded_headers,
    lacks,
    outcome_headers,
    saved_usd,
    shareable,
    unanswered_headers,
)
from cacheproxy.model import Bypass, Hit, Miss
from cacheproxy.ports import Call
from cacheproxy.query.canonical import decode
from cacheproxy.query.controls import read_body_controls, read_controls
from cacheproxy.query.scope import read_scope

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    from cacheproxy import settings
    from cacheproxy.http.exchange import Exchange
    from cacheproxy.model import Controls, Outcome, Query, Scope
    from cacheproxy.pipeline import Flown, Journey, Pipeline
    from cacheproxy.ports import Dialect

_NO_SNIFF = (b"x-content-type-options", b"nosniff")
_PRIVATE = (b"cache-control", b"private")
_DROPPED = (b"content-length", b"accept-encoding")
_LARGE_BYTES = 128 * 1024
"""A body beyond this is understood in a thread: on the event loop it would hold everybody up for milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Understood:
    """A request's body as it will be forwarded, decoded, and as a Query."""

    raw: bytes
    body: Mapping[str, Any]
    query: Query


class CachedRoute:
    """`POST` to one cached API. `read` makes a Query of a body; `threads` understands large bodies."""

    def __init__(
        self,
        pipeline: Pipeline,
        config: settings.Settings,
        secret: bytes,
        dialect: Dialect,
        read: Callable[[Mapping[str, Any], Scope, Controls, bytes], Query],
        threads: Executor,
    ) -> None:
        self._pipeline = pipeline
        self._telemetry = pipeline.parts.telemetry
        self._max_body_bytes = config.server.max_body_bytes
        self._max_depth = config.server.max_depth
        self._max_answer_bytes = config.upstream.max_decoded_bytes
        self._secret = secret
        self._dialect = dialect
        self._read = read
        self._threads = threads

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request. Raises CallerGone; every error of ours is answered here, with the cache's headers."""
        try:
            understood = await self._understand(exchange)
            journey = self._pipeline.set_out(understood.query)
        except CacheProxyError as exc:
            refused = Bypass(category=self._pipeline.pack().default_category, reason=exc.code)
            await self._refuse(exchange, exc, refused)
            return
        outcome = await self._pipeline.look_up(journey)
        if isinstance(outcome, Hit):
            await self._replay(exchange, journey, outcome)
        elif journey.plan.only_if_cached:
            error = NotCached(f"only-if-cached: nothing may be served ({outcome.reason})")
            await self._refuse(exchange, error, outcome)
        elif isinstance(outcome, Miss) and journey.plan.store:
            await exchange.while_caller_stays(self._fly(exchange, journey, outcome, understood))
        else:
            await self._forward(exchange, journey, outcome, understood)

    async def _understand(self, exchange: Exchange) -> _Understood:
        if exchange.header(b"content-encoding") not in (None, b"", b"identity"):
            raise EncodingNotSupported("the request body is compressed; send it as it is (content-encoding: identity)")
        raw = await exchange.body(self._max_body_bytes)
        if len(raw) <= _LARGE_BYTES:
            return self._read_request(exchange, raw)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._read_request, exchange, raw)

    def _read_request(self, exchange: Exchange, raw: bytes) -> _Understood:
        controls, namespace = read_controls(exchange.headers)
        body = decode(raw, self._max_depth)
        if "cache" in body:
            controls, namespace = read_body_controls(controls, namespace, body.pop("cache"))
            raw = msgspec.json.encode(body)
        scope = read_scope(exchange.headers, self._secret, namespace)
        query = self._read(body, scope, controls, _variant(exchange))
        return _Understood(raw=raw, body=body, query=query)

    async def _replay(self, exchange: Exchange, journey: Journey, hit: Hit) -> None:
        now_s, reply = self._pipeline.parts.clock.now(), hit.entry.reply
        saved = saved_usd(hit, self._pipeline.pack().price(str(reply.body.get("model") or "")))
        self._telemetry.saved_usd.inc(saved)
        self._count(hit)
        content_type, body = self._dialect.render(reply, journey.query.wire, entry_id=hit.entry.id, now_s=now_s)
        headers = outcome_headers(hit, now_s, saved)
        headers += [_PRIVATE, _NO_SNIFF, (b"content-type", content_type)]
        await exchange.send_whole(200, headers, body)

    async def _fly(self, exchange: Exchange, journey: Journey, miss: Miss, understood: _Understood) -> None:
        asked = self._dialect.request(understood.body, journey.query.wire)
        call = Call(
            method="POST",
            target=exchange.target,
            headers=passthrough.end_to_end(exchange, *_DROPPED),
            body=understood.raw if asked is None else asked,
            max_answer_bytes=self._max_answer_bytes,
            model=journey.query.model,
            tenant=journey.query.scope.tenant,
            repeatable=True,
        )
        try:
            flown = await self._pipeline.fly(journey, miss, call, self._dialect)
        except UpstreamError as exc:
            self._count(miss)
            await self._refuse(exchange, exc, miss)
            return
        if isinstance(flown, Hit):
            await self._replay(exchange, journey, flown)
            return
        self._count(miss)
        try:
            await self._send_flown(exchange, journey, flown)
        finally:
            flown.reader.leave()

    async def _send_flown(self, exchange: Exchange, journey: Journey, flown: Flown) -> None:
        head = flown.head
        headers = [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in (shareable(head.headers) if flown.coalesced else head.headers)
            if name.lower() != "content-length"
        ]
        headers += outcome_headers(flown.outcome, 0)
        headers += forwarded_headers(
            flown.outcome,
            status=head.status,
            model=journey.query.model,
            settlement=None if flown.body is None else await self._pipeline.settlement(flown),
            coalesced=flown.coalesced,
        )
        if lacks(head.headers, "cache-control"):
            headers.append(_PRIVATE)
        if flown.body is None:
            await exchange.send_stream(head.status, headers, flown.reader.chunks())
        else:
            await exchange.send_whole(head.status, headers, flown.body)

    async def _forward(
        self, exchange: Exchange, journey: Journey, outcome: Miss | Bypass, understood: _Understood
    ) -> None:
        self._count(outcome)
        model = journey.query.model
        try:
            await passthrough.forward(
                exchange,
                self._pipeline.parts.upstream,
                max_body_bytes=self._max_body_bytes,
                body=understood.raw,
                more_headers=lambda status: (
                    outcome_headers(outcome, 0)
                    + forwarded_headers(outcome, status=status, model=model, settlement=None, coalesced=False)
                ),
            )
        except UpstreamError as exc:
            await self._refuse(exchange, exc, outcome)

    async def _refuse(self, exchange: Exchange, error: CacheProxyError, outcome: Miss | Bypass) -> None:
        self._telemetry.refused.labels(error.code).inc()
        await problems.send(exchange, error, outcome_headers(outcome, 0) + unanswered_headers(outcome, error.code))

    def _count(self, outcome: Outcome) -> None:
        kind = type(outcome).__name__.lower()
        tier = outcome.tier.value if isinstance(outcome, Hit) else ""
        self._telemetry.requests.labels(kind, tier, outcome.category, outcome.reason).inc()
        if isinstance(outcome, Hit | Miss):
            self._telemetry.lookup_seconds.labels(kind).observe(outcome.evidence.lookup_ms / 1000)


def _variant(exchange: Exchange) -> bytes:
    """Return what else of the request changes the answer: its query string, and the beta features it opts in to."""
    query, beta = exchange.scope["query_string"], exchange.header(b"openai-beta")
    return (b"?" + query if query else b"") + (b"\nbeta:" + beta if beta else b"")
