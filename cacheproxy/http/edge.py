"""The data port: one ASGI callable that routes, understands, answers, and turns failures into OpenAI-shaped bodies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from cacheproxy.errors import CacheProxyError, MethodNotAllowed, RouteNotFound
from cacheproxy.http import passthrough, problems
from cacheproxy.http.callers import look_through
from cacheproxy.http.exchange import CallerGone, Exchange
from cacheproxy.http.openapi import health_of
from cacheproxy.shared import patience

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from cacheproxy.access.gate import Gate
    from cacheproxy.http.aliases import Aliases
    from cacheproxy.http.cached import CachedRoute
    from cacheproxy.http.door import Door
    from cacheproxy.http.embeddings import EmbeddingsRoute
    from cacheproxy.http.exchange import Receive, Send
    from cacheproxy.ports import Upstream
    from cacheproxy.telemetry import Telemetry

log = structlog.get_logger()


class Edge:
    """The routes of the data port: `cached` and our `own` ones by path, health, and the rest of /v1 passed through."""

    def __init__(
        self,
        upstream: Upstream,
        telemetry: Telemetry,
        cached: Mapping[str, CachedRoute | EmbeddingsRoute],
        *,
        own: Mapping[str, Callable[[Exchange], Awaitable[None]]],
        aliases: Aliases,
        max_upload_bytes: int,
        tenant_of: Callable[[Exchange], str],
        readiness: Callable[[], dict[str, str]],
        upstreams: Callable[[], dict[str, str]],
        door: Door,
        gate: Gate | None = None,
    ) -> None:
        self.door = door
        self._upstream = upstream
        self._telemetry = telemetry
        self._cached = cached
        self._own = own
        self._aliases = aliases
        self._max_upload_bytes = max_upload_bytes
        self._tenant_of = tenant_of
        self._readiness = readiness
        self._upstreams = upstreams
        self._gate = gate

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request. This is one of the borders where any exception ends: as a 500 that tells nothing."""
        patience.begin()
        exchange = Exchange(scope, receive, send, self.door)
        try:
            await self._route(exchange)
        except CallerGone:
            log.debug("caller_gone")
        except CacheProxyError as exc:
            self._telemetry.refused.labels(exc.code).inc()
            await problems.send(exchange, exc)
        except Exception:
            log.exception("request_failed")
            await problems.send(exchange, CacheProxyError("the proxy failed; its log has the details"))
        finally:
            exchange.leave()

    async def _route(self, exchange: Exchange) -> None:
        path = exchange.path
        if path.startswith("/v1/"):
            try:
                self.door.knock()
                if self._gate is not None:
                    self._admit(exchange, self._gate)
            except CacheProxyError as exc:
                if path not in self._cached or exchange.method != "POST":
                    raise
                await self._cached[path].refuse(exchange, exc)
                return
        if path in self._cached and exchange.method == "POST":
            await self._cached[path](exchange)
        elif path in self._own:
            await self._own[path](exchange)
        elif path.startswith("/v1/"):
            body = await look_through(exchange)
            upstream = await self._aliases.upstream(exchange, self._upstream)
            asked = passthrough.Asked(tenant=self._tenant_of(exchange))
            await passthrough.forward(exchange, upstream, max_body_bytes=self._max_upload_bytes, body=body, asked=asked)
        elif path in ("/healthz", "/readyz"):
            if exchange.method not in ("GET", "HEAD"):
                raise MethodNotAllowed(f"{path} answers GET and HEAD")
            await self._health(exchange, path)
        else:
            raise RouteNotFound("no such route; the API is under /v1/, health under /healthz and /readyz")

    def _admit(self, exchange: Exchange, gate: Gate) -> None:
        exchange.caller = gate.admit(exchange.headers)
        exchange.caller.count_request()

    async def _health(self, exchange: Exchange, path: str) -> None:
        if path == "/healthz":
            await exchange.send_whole(200, [problems.JSON], b'{"status":"ok","parts":{}}')
            return
        # Of backends for information: without one the cache still answers.
        status, body = health_of(self._readiness(), self._upstreams())
        await exchange.send_whole(status, [problems.JSON], msgspec.json.encode(body))
