"""Litestar's typed handler against its raw ASGI layer: `python -m tests.benchmarks.handlers`.

Each answers the same chat request with the same bytes, called in process without sockets: what the framework adds.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from typing import Any

import msgspec
import uvloop
from litestar import Litestar, Response, asgi, post
from litestar.params import JSONBody
from litestar.types import Receive, Scope, Send

from tests.benchmarks.scenarios import request

CALLS, ROUNDS = 3000, 7
HEAD, _, BODY = request("What is the capital of Australia?").partition(b"\r\n\r\n")
HEADERS = [tuple(line.split(b": ", 1)) for line in HEAD.split(b"\r\n")[1:]]
ANSWER = b'{"ok": true}'


class Message(msgspec.Struct):
    """A chat message."""

    role: str
    content: str


class Chat(msgspec.Struct):
    """A chat completion request."""

    model: str
    messages: list[Message]
    stream: bool = False


async def _answer(receive: Receive, send: Send) -> None:
    message = await receive()
    assert message["type"] == "http.request"
    msgspec.json.decode(message["body"])
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER, "more_body": False})


async def bare(_: Scope, receive: Receive, send: Send) -> None:
    """Answer without a framework."""
    await _answer(receive, send)


@asgi("/", is_mount=True, copy_scope=False)
async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer from Litestar's raw ASGI layer."""
    await _answer(receive, send)


@post("/v1/chat/completions", status_code=200)
async def typed(data: JSONBody[Chat]) -> Response[bytes]:
    """Answer from a typed handler."""
    return Response(ANSWER, media_type="application/json")


async def _us(app: Any) -> float:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(_: Any) -> None:
        pass

    began = time.process_time()
    for _ in range(CALLS):
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/chat/completions",
            "raw_path": b"/v1/chat/completions",
            "query_string": b"",
            "root_path": "",
            "headers": HEADERS,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "state": {},
        }
        await app(scope, receive, send)
    return (time.process_time() - began) / CALLS * 1e6


async def main() -> None:
    """Measure in interleaved rounds and print medians."""
    apps = {
        "no framework": bare,
        "litestar @asgi": Litestar([mounted], openapi_config=None, logging_config=None),
        "litestar typed": Litestar([typed], openapi_config=None, logging_config=None),
    }
    found: dict[str, list[float]] = {name: [] for name in apps}
    for _ in range(ROUNDS):
        for name, app in apps.items():
            found[name].append(await _us(app))
            await asyncio.sleep(0)
    for name, values in found.items():
        sys.stdout.write(f"{name:15} {statistics.median(values):6.1f} us [{min(values):.1f}, {max(values):.1f}]\n")


if __name__ == "__main__":
    uvloop.run(main())
