"""The data port: one ASGI callable that routes, understands, answers, and turns failures into OpenAI-shaped bodies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from cacheproxy.errors import (
    CacheProxyError,
    EncodingNotSupported,
    MethodNotAllowed,
    RouteNotFound,
    UpstreamError,
)
from cacheproxy.http import passthrough, problems
from cacheproxy.http.chat import ChatDialect, new_id, render_body, render_stream
from cacheproxy.http.exchange import CallerGone, Exchange
from cacheproxy.http.headers import forwarded_headers, lacks, outcome_headers, saved_usd, shareable
from cacheproxy.model import Hit, Miss
from cacheproxy.ports import Call
from cacheproxy.query.canonical import decode
from cacheproxy.query.chat import read_chat
from cacheproxy.query.controls import read_body_controls, read_controls
from cacheproxy.query.scope import read_scope

if TYPE_CHECKING:
    from collections.abc import Callable

    from cacheproxy import settings
    from cacheproxy.http.exchange import Receive, Send
    from cacheproxy.http.headers import Headers
    from cacheproxy.model import Bypass, Outcome
    from cacheproxy.pipeline import Flown, Journey, Pipeline

log = structlog.get_logger()

_CHAT = "/v1/chat/completions"
_NO_SNIFF = (b"x-content-type-options", b"nosniff")
_EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")
_PRIVATE = (b"cache-control", b"private")
_DROPPED = (b"content-length", b"accept-encoding")


class Edge:
    """Everything between a caller's connection and the pipeline."""

    def __init__(
        self,
        pipeline: Pipeline,
        config: settings.Settings,
        secret: bytes,
        readiness: Callable[[], dict[str, str]],
    ) -> None:
        self._pipeline = pipeline
        self._server = config.server
        self._max_answer_bytes = config.upstream.max_decoded_bytes
        self._secret = secret
        self._readiness = readiness
        self._chat_dialect = ChatDialect(
            max_reply_bytes=config.store.max_entry_bytes, ask_stream_usage=config.upstream.ask_stream_usage
        )
        self._telemetry = pipeline.parts.telemetry

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request. This is one of the two borders where any exception ends: as a 500 that tells nothing."""
        exchange = Exchange(scope, receive, send)
        try:
            await self._route(exchange)
        except CallerGone:
            log.debug("caller_gone")
        except CacheProxyError as exc:
            await self._refuse(exchange, exc)
        except Exception:
            log.exception("request_failed")
            await self._refuse(exchange, CacheProxyError("the proxy failed; its log has the details"))

    async def _route(self, exchange: Exchange) -> None:
        path = exchange.path
        if path == _CHAT and exchange.method == "POST":
            await self._chat(exchange)
        elif path.startswith("/v1/"):
            await passthrough.forward(
                exchange, self._pipeline.parts.upstream, max_body_bytes=self._server.max_upload_bytes
            )
        elif path in ("/healthz", "/readyz"):
            if exchange.method not in ("GET", "HEAD"):
                raise MethodNotAllowed(f"{path} answers GET and HEAD")
            await self._health(exchange, path)
        else:
            raise RouteNotFound("no such route; the API is under /v1/, health under /healthz and /readyz")

    async def _health(self, exchange: Exchange, path: str) -> None:
        parts = self._readiness() if path == "/readyz" else {}
        broken = {name: why for name, why in parts.items() if why}
        body = msgspec.json.encode(
            {"status": "unavailable" if broken else "ok", "parts": {n: w or "ok" for n, w in parts.items()}}
        )
        await exchange.send_whole(503 if broken else 200, [problems.JSON], body)

    async def _chat(self, exchange: Exchange) -> None:
        controls, namespace = read_controls(exchange.headers)
        if exchange.header(b"content-encoding") not in (None, b"", b"identity"):
            raise EncodingNotSupported("the request body is compressed; send it as it is (content-encoding: identity)")
        raw = await exchange.body(self._server.max_body_bytes)
        body = decode(raw, self._server.max_depth)
        if "cache" in body:
            controls, namespace = read_body_controls(controls, namespace, body.pop("cache"))
            raw = msgspec.json.encode(body)
        scope = read_scope(exchange.headers, self._secret, namespace)
        query = read_chat(body, scope, controls, exchange.scope["query_string"])
        journey = self._pipeline.set_out(query)
        outcome = await self._pipeline.look_up(journey)
        if isinstance(outcome, Hit):
            await self._replay(exchange, journey, outcome)
        elif isinstance(outcome, Miss) and journey.plan.store:
            asked = self._chat_dialect.request(body, query.wire)
            call = Call(
                method="POST",
                target=exchange.target,
                headers=passthrough.end_to_end(exchange, *_DROPPED),
                body=raw if asked is None else asked,
                max_answer_bytes=self._max_answer_bytes,
            )
            await exchange.while_caller_stays(self._fly(exchange, journey, outcome, call))
        else:
            await self._forward(exchange, journey, outcome, raw)

    async def _replay(self, exchange: Exchange, journey: Journey, hit: Hit) -> None:
        now_s, wire, reply = self._pipeline.parts.clock.now(), journey.query.wire, hit.entry.reply
        saved = saved_usd(hit, self._pipeline.pack().price(str(reply.body.get("model") or "")))
        self._telemetry.saved_usd.inc(saved)
        self._count(hit)
        headers = outcome_headers(hit, now_s)
        headers += [_PRIVATE, _NO_SNIFF, (b"x-cacheproxy-saved-usd", b"%.6f" % saved)]
        if wire.stream:
            headers.append(_EVENT_STREAM)
            body = render_stream(reply, new_id(reply), int(now_s), wire)
        else:
            headers.append(problems.JSON)
            body = render_body(reply, new_id(reply), int(now_s))
        await exchange.send_whole(200, headers, body)

    async def _fly(self, exchange: Exchange, journey: Journey, miss: Miss, call: Call) -> None:
        try:
            flown = await self._pipeline.fly(journey, miss, call, self._chat_dialect)
        except UpstreamError as exc:
            self._count(miss)
            await self._refuse(exchange, exc, outcome_headers(miss, 0))
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
        streams, head = flown.body is None, flown.head
        settlement = None if streams else await self._pipeline.settlement(flown)
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
            settlement=settlement,
            coalesced=flown.coalesced,
        )
        if lacks(head.headers, "cache-control"):
            headers.append(_PRIVATE)
        if flown.body is None:
            await exchange.send_stream(head.status, headers, flown.reader.chunks())
        else:
            await exchange.send_whole(head.status, headers, flown.body)

    async def _forward(self, exchange: Exchange, journey: Journey, outcome: Miss | Bypass, raw: bytes) -> None:
        self._count(outcome)
        headers = outcome_headers(outcome, 0)
        await passthrough.forward(
            exchange,
            self._pipeline.parts.upstream,
            max_body_bytes=self._server.max_body_bytes,
            body=raw,
            more_headers=lambda status: (
                headers
                + forwarded_headers(outcome, status=status, model=journey.query.model, settlement=None, coalesced=False)
            ),
        )

    async def _refuse(self, exchange: Exchange, error: CacheProxyError, headers: Headers | None = None) -> None:
        self._telemetry.refused.labels(error.code).inc()
        if exchange.started:
            # Half an answer is out: leaving it unfinished makes the server break the connection, so nobody takes it for
            # whole.
            log.info("answer_broken_off", code=error.code)
            return
        headers = [problems.JSON, *(headers or [])]
        if error.status in (413, 415):
            headers.append((b"connection", b"close"))
        if error.status == 405:
            headers.append((b"allow", b"GET, HEAD"))
        if error.status == 415:
            headers.append((b"accept-encoding", b"identity"))
        await exchange.send_whole(error.status, headers, problems.body_of(error))

    def _count(self, outcome: Outcome) -> None:
        kind = type(outcome).__name__.lower()
        tier = outcome.tier.value if isinstance(outcome, Hit) else ""
        self._telemetry.requests.labels(kind, tier, outcome.category, outcome.reason).inc()
        if not isinstance(outcome, Hit | Miss):
            return
        self._telemetry.lookup_seconds.labels(kind).observe(outcome.evidence.lookup_ms / 1000)
