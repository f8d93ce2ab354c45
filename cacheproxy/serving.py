"""Serving: a proxy is assembled, listened to on two ports, drained and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from cacheproxy.app import assemble
from cacheproxy.collecting import TEND_S, Collecting
from cacheproxy.errors import ConfigError
from cacheproxy.http.admin import create_admin_app
from cacheproxy.http.door import Door
from cacheproxy.http.listener import Listener, bind, data_app, is_loopback, listener, url_of
from cacheproxy.supervise import Supervisor
from cacheproxy.upstream.open import refuse_loops

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheproxy.house import House
    from cacheproxy.ports import Clock
    from cacheproxy.settings import Settings

log = structlog.get_logger()

_ADMIN_CONNECTIONS = 256
_TURN_S = 0.001
"""How long a thread may hold the interpreter while the event loop wants it: Python's own 5 ms are most of its lag."""
_ADMIN_OPEN = "no admin.token: whoever is on this machine may change everything; it listens on loopback only"


class Running:
    """A proxy that is being listened to."""

    def __init__(self, house: House, data: Listener, admin: Listener, url: str, admin_url: str) -> None:
        self.house = house
        self.pipeline = house.pipeline
        self.url = url
        self.admin_url = admin_url
        self._data = data
        self._admin = admin

    def drain(self) -> None:
        """Stop accepting, let answers in flight finish."""
        self.house.ready.draining = True
        self._data.should_exit = True

    def abandon(self) -> None:
        """Stop without waiting for answers in flight."""
        self.drain()
        self._data.force_exit = self._admin.force_exit = True


@asynccontextmanager
async def running(
    settings: Settings, clock: Clock | None = None, *, shared_port: bool = False
) -> AsyncIterator[Running]:
    """Assemble a proxy and listen on both ports until the block ends or it was drained. Port 0 takes any free port.

    A `shared_port` is the data port of several processes, of which this is one.
    """
    server = settings.server
    with contextlib.ExitStack() as sockets:
        data_socket = sockets.enter_context(
            bind(server.host, server.port, "server.host, server.port", shared=shared_port)
        )
        admin_host = server.admin_host
        if not settings.admin.token.reveal() and not is_loopback(admin_host):
            raise ConfigError("server.admin_host is not loopback: set admin.token first (CACHEPROXY_ADMIN__TOKEN)")
        if settings.admin.read_token.reveal() and not settings.admin.token.reveal():
            raise ConfigError("admin.read_token: without admin.token there is nothing that it may not do; set both")
        if settings.admin.token.reveal() and settings.admin.read_token.reveal() == settings.admin.token.reveal():
            raise ConfigError("admin.read_token: it is admin.token, so its readers could change all; set another one")
        admin_keys = "server.admin_host, server.admin_port"
        admin_socket = sockets.enter_context(bind(admin_host, server.admin_port, admin_keys))
        own_port = data_socket.getsockname()[1]
        for port in (own_port, admin_socket.getsockname()[1]):
            refuse_loops(settings, port, {server.host, admin_host})
        async with assemble(settings, clock) as house:
            admin_app = create_admin_app(house)
            data = listener(data_app(house.edge), server, house.edge.door, drain_s=server.drain_s)
            admin = listener(admin_app, server, Door(server, _ADMIN_CONNECTIONS), drain_s=1)
            async with asyncio.TaskGroup() as group:
                data_task = group.create_task(data.serve([data_socket]))
                admin_task = group.create_task(admin.serve([admin_socket]))
                await data.until_started()
                await admin.until_started()
                house.claim.announce(url_of(admin_host, admin_socket))
                if not settings.admin.token.reveal():
                    log.warning("admin_open", url=url_of(admin_host, admin_socket), what=_ADMIN_OPEN)
                proxy = Running(house, data, admin, url_of(server.host, data_socket), url_of(admin_host, admin_socket))
                try:
                    yield proxy
                finally:
                    proxy.drain()
                    await asyncio.wait([data_task])
                    admin.should_exit = True
                    await asyncio.wait([admin_task])


async def serve(settings: Settings, worker: int | None = None) -> bool:
    """Serve until SIGTERM or SIGINT: drain on the first, stop at once on the second. SIGHUP reads the pack again.

    `worker` is the number of this process among several on one data port (workers.py). Returns whether to start anew: a
    replica that was apart has drained, and knows by now what it takes to join.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    if worker is not None:
        structlog.contextvars.bind_contextvars(worker=worker)
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(running(settings, shared_port=worker is not None))
        sys.setswitchinterval(_TURN_S)
        collecting = stack.enter_context(Collecting(lambda: proxy.house.edge.door.requests))
        supervisor = await stack.enter_async_context(Supervisor())
        supervisor.every(TEND_S, collecting.tend, "garbage")

        def on_stop() -> None:
            if stop.is_set():
                log.warning("server_abandoned", reason="second signal")
                proxy.abandon()
            else:
                log.info("server_draining", limit_s=settings.server.drain_s)
                proxy.drain()
                stop.set()

        def on_reload() -> None:
            proxy.house.book.ask_reload()
            if proxy.house.keeper is not None:
                proxy.house.keeper.reload()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_stop)
        loop.add_signal_handler(signal.SIGHUP, on_reload)
        port, admin_port = (url.rpartition(":")[2] for url in (proxy.url, proxy.admin_url))
        own = {"replica": name} if (name := proxy.house.replicas.own) else {}
        log.info("server_started", url=f"{proxy.url}/v1", port=int(port), admin_port=int(admin_port), **own)
        return await _stopped(proxy, stop)


async def _stopped(proxy: Running, stop: asyncio.Event) -> bool:
    """Wait for the end; return whether it is one to start anew after."""
    waits = [asyncio.ensure_future(stop.wait())]
    if proxy.house.rejoin is not None:
        waits.append(asyncio.ensure_future(proxy.house.rejoin.wait()))
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return not stop.is_set()
