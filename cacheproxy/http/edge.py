"""The data port: one ASGI callable that routes, understands, answers, and turns failures into OpenAI-shaped bodies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from cacheproxy.errors import CacheProxyError, MethodNotAllowed, RouteNotFound
from cacheproxy.http import passthrough, problems
from cacheproxy.http.exchange import CallerGone, Exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cacheproxy.http.cached import CachedRoute
    from cacheproxy.http.exchange import Receive, Send
    from cacheproxy.ports import Upstream
    from cacheproxy.telemetry import Telemetry

log = structlog.get_logger()


class Edge:
    """The routes of the data port: `cached` ones by path, health, and everything else of /v1 passed through."""

    def __init__(
        self,
        upstream: Upstream,
        telemetry: Telemetry,
        cached: Mapping[str, CachedRoute],
        *,
        max_upload_bytes: int,
        readiness: Callable[[], dict[str, str]],
    ) -> None:
        self._upstream = upstream
        self._telemetry = telemetry
        self._cached = cached
        self._max_upload_bytes = max_upload_bytes
        self._readiness = readiness

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request. This is one of the two borders where any exception ends: as a 500 that tells nothing."""
        exchange = Exchange(scope, receive, send)
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

    async def _route(self, exchange: Exchange) -> None:
        path = exchange.path
        if path in self._cached and exchange.method == "POST":
            await self._cached[path](exchange)
        elif path.startswith("/v1/"):
            await passthrough.forward(exchange, self._upstream, max_body_bytes=self._max_upload_bytes)
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
