"""Listening: sockets bound before anything slow starts, and uvicorn servers that leave signals to the application."""

from __future__ import annotations

import asyncio
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from litestar import Litestar, asgi
from litestar.types import Receive, Scope, Send

from cacheproxy.errors import ConfigError
from cacheproxy.http import problems
from cacheproxy.http.accepting import Acceptor
from cacheproxy.http.protocol import capped

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from contextlib import AbstractAsyncContextManager

    from cacheproxy import settings
    from cacheproxy.http.door import Door

    Asgi = Callable[[Any, Any, Any], Awaitable[None]]
    Lifespan = Callable[[Litestar], AbstractAsyncContextManager[None]]

_BACKLOG = 4096
"""Connections that wait in the kernel to be taken; one too many is only tried again by its caller after a second."""


def data_app(edge: Callable[[Any, Receive, Send], Awaitable[None]], *lifespan: Lifespan) -> Litestar:
    """Return the application of the data port: one ASGI mount, since typed handlers cost more than an exact hit may."""

    @asgi("/", is_mount=True, copy_scope=False)
    async def data(scope: Scope, receive: Receive, send: Send) -> None:
        await edge(scope, receive, send)

    return Litestar(
        [data],
        lifespan=lifespan,
        openapi_config=None,
        logging_config=None,
        exception_handlers=problems.HANDLERS,
    )


class Listener(uvicorn.Server):
    """A uvicorn server that leaves signals to us: two of them share this process."""

    def __init__(self, config: uvicorn.Config, door: Door) -> None:
        super().__init__(config)
        self._door = door
        self._ready = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Install nothing."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, but take connections in our own way (`accepting.py`), and tell."""
        await super().startup([])
        # An Acceptor is closed and waited for as asyncio's servers are; nothing else is done to those.
        self.servers += [Acceptor(one, self._protocol, self._door.room) for one in sockets or ()]  # type: ignore[misc]
        self._ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down as uvicorn does, once those that were taken last are among the connections that it tells."""
        for server in self.servers:
            server.close()
            await server.wait_closed()
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg] # uvicorn calls it so
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    async def on_tick(self, counter: int) -> bool:
        """Look after deadlines ten times a second; the door decides when it is time again."""
        self._door.sweep(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    async def until_started(self) -> None:
        """Wait until connections are accepted."""
        await self._ready.wait()


def listener(app: Asgi, limits: settings.Server, door: Door, *, drain_s: float) -> Listener:
    """Return a server for an application behind a door of its own."""
    config = uvicorn.Config(
        app,
        http=cast("Any", capped(limits, door)),
        ws="none",
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(drain_s)),
    )
    return Listener(config, door)


def bind(host: str, port: int, key: str, *, shared: bool = False, listen: bool = True) -> socket.socket:
    """Return a listening socket, or one that only reserves the port. Raises ConfigError naming the setting `key`.

    A `shared` port may be bound by other processes of this user that share it, too; the kernel deals connections out to
    those that listen.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
    except OSError as exc:
        listener.close()
        raise ConfigError(f"{key}: cannot listen on {host}:{port} ({exc.strerror}); choose another") from exc
    if listen:
        listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def url_of(host: str, listener: socket.socket) -> str:
    """Return the URL a local client reaches a listening socket under."""
    shown = f"[{host}]" if ":" in host else "127.0.0.1" if host == "0.0.0.0" else host
    return f"http://{shown}:{listener.getsockname()[1]}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`."""
    return host in ("127.0.0.1", "::1", "localhost")
