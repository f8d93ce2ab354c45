"""Opening the pool: every backend that the settings name, each behind its queue."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from cacheproxy.errors import ConfigError
from cacheproxy.upstream.backend import Backend
from cacheproxy.upstream.budget import RetryBudget
from cacheproxy.upstream.client import HttpUpstream
from cacheproxy.upstream.keys import Keys
from cacheproxy.upstream.pool import UpstreamPool
from cacheproxy.upstream.queue import FairQueue, Limits
from cacheproxy.upstream.route import DEFAULT, Routes
from cacheproxy.upstream.small import small_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection
    from pathlib import Path

    from cacheproxy.ports import Clock
    from cacheproxy.settings import Settings


def clients(settings: Settings, socket_path: Path | None = None) -> dict[str, HttpUpstream]:
    """Return a client for every backend, not open yet. Raises ConfigError naming section and key of what is wrong.

    `socket_path` is where the embedded model listens, when it is the default backend.
    """
    local = settings.upstream.url == "local" and socket_path is None
    base = msgspec.structs.replace(settings.upstream, url="http://local/v1") if local else settings.upstream
    # The embedded model needs no key, so it is sent nobody's.
    found = {DEFAULT: HttpUpstream(base, socket_path=socket_path, keys=Keys() if socket_path else None)}
    for name, named in settings.upstreams.items():
        section = f"upstreams.{name}"
        if named.api_key.reveal() and named.pass_key:
            raise ConfigError(f"{section}: api_key and pass_key exclude each other: the backend gets one key")
        found[name] = HttpUpstream(
            msgspec.structs.replace(settings.upstream, url=named.url),
            section=section,
            keys=Keys(own=named.api_key, callers=named.pass_key),
        )
    return found


def refuse_loops(settings: Settings, port: int, hosts: Collection[str] = ()) -> None:
    """Raise ConfigError when a backend is `port` of this machine: the proxy would call itself."""
    for name, client in clients(settings).items():
        if (name != DEFAULT or settings.upstream.url != "local") and client.leads_to(port, hosts):
            key = "upstream.url" if name == DEFAULT else f"upstreams.{name}.url"
            hint = " (is OPENAI_BASE_URL?)" if name == DEFAULT else ""
            raise ConfigError(f"{key} is this proxy's own address{hint}; give the backend's")
    if settings.small.url and small_client(settings).leads_to(port, hosts) and settings.small.url != "local":
        raise ConfigError("small.url is this proxy's own address; give the small model's")


@asynccontextmanager
async def open_pool(
    settings: Settings,
    clock: Clock,
    *,
    socket_path: Path | None = None,
    observe: Callable[[str, float], object] = lambda name, seconds: None,
) -> AsyncIterator[UpstreamPool]:
    """Open every backend and close them at the end. `observe` is told by name how long every head took, in seconds."""
    routes, backends = Routes(settings), dict[str, Backend]()
    async with AsyncExitStack() as stack:
        for name, client in clients(settings, socket_path).items():
            await stack.enter_async_context(client)
            backends[name] = Backend(
                name,
                client,
                FairQueue(_limits(settings, name), clock),
                clock,
                shared=name in routes.shared,
                per_caller=client.keys.of_caller,
                observe=partial(observe, name),
            )
        yield UpstreamPool(routes, backends, clock, RetryBudget(settings.upstream.retry_percent))


def _limits(settings: Settings, name: str) -> Limits:
    default = settings.upstream
    own = settings.upstreams[name].max_concurrency if name != DEFAULT else None
    return Limits(
        running=min(own or default.max_concurrency, default.max_connections),
        waiting=default.queue,
        wait_s=default.queue_timeout_s,
    )
