"""A SuperLink whose control is for its own machine: others may take part in a run, but not start one.

Flower serves nodes, operators and its own processes on one port, and lets anybody who reaches it start an app, which is
code. Run as `python -m cacheproxy_federated.superlink` with the options of `flower-superlink`.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import structlog
from flwr.superlink import extensions
from flwr.superlink.cli import flower_superlink
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_OPEN = ("/v1/fleet/",)
"""What nodes need."""
_HEALTH = "/health"

_log = structlog.get_logger()


class FleetOnly:
    """Lets callers on other machines reach what nodes need, and nothing else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""
        if scope["type"] == "lifespan" or _is_open(str(scope.get("path", ""))) or _is_local(scope):
            await self._app(scope, receive, send)
            return
        _log.warning("control_refused", todo="start runs on the machine of the server: cacheproxy federated serve")
        answer = PlainTextResponse("only nodes may call this port from elsewhere", status_code=403)
        await answer(scope, receive, send)


def _is_open(path: str) -> bool:
    return path == _HEALTH or (path.startswith(_OPEN) and ".." not in path)


def _is_local(scope: Scope) -> bool:
    """Whether a request comes from this machine: from loopback, or from the address that it reached."""
    client, server = scope.get("client"), scope.get("server")
    if not client:
        return False
    try:
        return ipaddress.ip_address(client[0]).is_loopback or bool(server and server[0] == client[0])
    except ValueError:
        return False


if __name__ == "__main__":
    extensions.get_middleware = lambda: (Middleware(FleetOnly),)
    flower_superlink()
