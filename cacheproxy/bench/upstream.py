"""The scripted backend: OpenAI's chat completions, streamed or not, after times drawn from a stated distribution.

Simulated, and labelled so in every report: a lognormal time to the first token, one for each token after that, and as
many requests at once as a backend has slots. With all times 0 it answers in one write, which costs little CPU.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import httptools

from cacheproxy.bench.asking import TOKENS

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_WORDS = ("the", "answer", "is", "known", "and", "told", "here", "in", "plain", "words", "that", "mean", "little")
_MOST_TOKENS = 4096
_TICK_S = 0.005
"""Tokens that come within this time are written together, as backends under load do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a scripted backend answers. Times are medians, in milliseconds."""

    ttft_ms: float = 0.0
    """To the first token."""
    token_ms: float = 0.0
    """For each token after it."""
    tokens: int = 40
    """Words of an answer, where its request does not say."""
    spread: float = 0.3
    """Standard deviation of the logarithm of both times."""
    slots: int = 0
    """Requests answered at once; more wait. 0: any number."""

    def told(self) -> dict[str, Any]:
        """Return it for a report."""
        return asdict(self)


class Upstream:
    """The backend. Use as `async with Upstream(pace, seed) as upstream`, which listens on loopback."""

    def __init__(self, pace: Pace, seed: int = 1, *, port: int = 0) -> None:
        self.pace = pace
        self._source = random.Random(seed)
        self._slots = asyncio.Semaphore(pace.slots) if pace.slots else None
        self._want_port = port
        self._server: asyncio.Server | None = None
        self.answered = 0
        """Chat completions that it was asked for; `GET` of any path tells it, as {"answered": 3}."""
        self.connections: set[_Connection] = set()

    @property
    def port(self) -> int:
        """The port it listens on."""
        if self._server is None:
            raise RuntimeError("enter the backend first")
        return cast("int", self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self._want_port, backlog=4096)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
            for connection in list(self.connections):
                connection.stop()
            await self._server.wait_closed()

    def drawn_s(self, median_ms: float) -> float:
        """Return a time in seconds."""
        return median_ms / 1000 * math.exp(self._source.gauss(0, self.pace.spread)) if median_ms else 0.0

    async def play(self, connection: _Connection, asked: dict[str, Any], tokens: int) -> None:
        """Answer one request."""
        if self._slots is None:
            await self._answer(connection, asked, tokens)
        else:
            async with self._slots:
                await self._answer(connection, asked, tokens)

    async def _answer(self, connection: _Connection, asked: dict[str, Any], tokens: int) -> None:
        words = [_WORDS[place % len(_WORDS)] for place in range(tokens)]
        token_s = self.drawn_s(self.pace.token_ms)
        if first_s := self.drawn_s(self.pace.ttft_ms):
            await asyncio.sleep(first_s)
        if not asked.get("stream"):
            if token_s:
                await asyncio.sleep(token_s * (tokens - 1))
            connection.write(_head(b"application/json", body := _whole(asked, words)) + body)
            return
        connection.write(_head(b"text/event-stream", None))
        ready = max(1, round(_TICK_S / token_s)) if token_s else tokens
        for start in range(0, tokens, ready):
            some = words[start : start + ready]
            connection.write(_chunk(b"".join(_event(asked, {"content": f"{word} "}) for word in some)))
            if token_s:
                await asyncio.sleep(token_s * len(some))
        connection.write(_chunk(_event(asked, {}, "stop") + b"data: [DONE]\n\n") + b"0\r\n\r\n")


class _Connection(asyncio.Protocol):
    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._body = bytearray()
        self._tokens = 0
        self._task: asyncio.Task[None] | None = None

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def stop(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._upstream.connections.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.connections.discard(self)
        if self._task is not None:
            self._task.cancel()

    def on_message_begin(self) -> None:
        self._body.clear()
        self._tokens = self._upstream.pace.tokens

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == TOKENS.encode() and value.isdigit():
            self._tokens = max(1, min(int(value), _MOST_TOKENS))

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        try:
            asked = json.loads(self._body or b"{}")
        except ValueError:
            asked = {}
        if self._parser.get_method() == b"GET":
            body = json.dumps({"answered": self._upstream.answered}).encode()
            self.write(_head(b"application/json", body) + body)
            return
        self._upstream.answered += 1
        played = self._upstream.play(self, asked if isinstance(asked, dict) else {}, self._tokens)
        self._task = asyncio.get_running_loop().create_task(played)


def _head(content_type: bytes, body: bytes | None) -> bytes:
    framing = b"transfer-encoding: chunked" if body is None else b"content-length: %d" % len(body)
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n%b\r\n\r\n" % (content_type, framing)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _whole(asked: dict[str, Any], words: list[str]) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": " ".join(words)}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": len(words), "total_tokens": 10 + len(words)}
    return json.dumps({**_frame(asked), "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def _event(asked: dict[str, Any], delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    told = {**_frame(asked), "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + json.dumps(told).encode() + b"\n\n"


def _frame(asked: dict[str, Any]) -> dict[str, Any]:
    return {"id": "chatcmpl-scripted", "created": 1_700_000_000, "model": str(asked.get("model", "scripted"))}
