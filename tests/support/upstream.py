"""An OpenAI-like backend on a real loopback port that does exactly what a test tells it to, down to the byte.

A script is a sequence of steps: `Send` bytes, `Wait`, `Hold` until a test lets go, `Cut` the connection. `answer` and
`stream` build the usual ones. A request without a script gets OpenAI's answer to a chat completion or a model list, and
its own body back from any other route. It is a bare `asyncio.Protocol`: no framework stands between a script and the
socket, and an answer without pauses is written in one call, which also makes it a fair backend for benchmarks.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import msgspec

from tests.support import embeddings_wire, openai_wire, responses_wire
from tests.support.polling import LONG_S, eventually

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


@dataclass(frozen=True, slots=True)
class Send:
    """Write these bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing for some seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Hold:
    """Do nothing until the test sets the event."""

    until: asyncio.Event


@dataclass(frozen=True, slots=True)
class Cut:
    """End the connection after what was sent: by FIN, or by RST."""

    reset: bool = False


Step = Send | Wait | Hold | Cut
CUT, RESET = Cut(), Cut(reset=True)


@dataclass(slots=True)
class Received:
    """One request as it came, and how it ended."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    at_s: float = field(default_factory=time.monotonic)
    answered: bool = False
    client_left_s: float | None = None
    taken_bytes: int = 0
    """Bytes of a scripted answer that the client's side has taken, where the script has pauses."""

    def header(self, name: str) -> str | None:
        """Return the first value of a header, or None."""
        return next((value for key, value in self.headers if key.lower() == name), None)

    def json(self) -> Any:
        """Return the decoded body."""
        return msgspec.json.decode(self.body)


Script = Sequence[Step] | Callable[[Received], Sequence[Step]]

_REASONS = {200: "OK", 204: "No Content", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests"}


def head(status: int, headers: Sequence[tuple[str, str]]) -> bytes:
    """Return a status line and headers."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def answer(
    body: bytes | object,
    *,
    status: int = 200,
    content_type: str = "application/json",
    headers: Sequence[tuple[str, str]] = (),
    length: int | None = None,
) -> list[Step]:
    """Answer at once; an object becomes JSON. `length` lies about Content-Length."""
    data = body if isinstance(body, bytes) else openai_wire.encode(body)
    framing = [("content-type", content_type), ("content-length", str(len(data) if length is None else length))]
    return [Send(head(status, [*framing, *headers]) + data)]


def stream(
    *parts: bytes | Step,
    status: int = 200,
    content_type: str = "text/event-stream; charset=utf-8",
    headers: Sequence[tuple[str, str]] = (),
) -> list[Step]:
    """Answer in chunks, one per part; steps may stand between them. Ends cleanly unless the last part is a `Cut`."""
    steps: list[Step] = [
        Send(head(status, [("content-type", content_type), ("transfer-encoding", "chunked"), *headers]))
    ]
    steps += [
        Send(b"%x\r\n%b\r\n" % (len(part), part)) if isinstance(part, bytes) else part for part in parts if part != b""
    ]
    if not isinstance(steps[-1], Cut):
        steps.append(Send(b"0\r\n\r\n"))
    return steps


class ScriptedUpstream:
    """The backend. Use as `async with ScriptedUpstream() as upstream`; `url` is for the proxy's `upstream.url`."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.connections: set[_Connection] = set()
        self._scripts: deque[Script] = deque()
        self._always: Script | None = None
        self._calls = 0
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        if self._server is None:
            raise RuntimeError("enter the upstream first")
        return cast("int", self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """The base URL, `/v1` included."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def calls(self) -> int:
        """How many requests came since the last reset."""
        return len(self.requests)

    def play(self, *scripts: Script) -> None:
        """Give the next requests these scripts, one each."""
        self._scripts.extend(scripts)

    def always(self, script: Script | None) -> None:
        """Give every request without a script of its own this one; None restores the default."""
        self._always = script

    def reset(self) -> None:
        """Forget scripts and recorded requests; the call counter in default answers goes on."""
        self.requests = []
        self._scripts.clear()
        self._always = None

    async def received(self, count: int, within_s: float = LONG_S) -> Received:
        """Wait for the `count`-th request since the last reset and return it."""
        await eventually(lambda: len(self.requests) >= count, f"request {count} at the upstream", within_s)
        return self.requests[count - 1]

    def steps(self, request: Received) -> Sequence[Step]:
        """Choose the answer to a request."""
        script = self._scripts.popleft() if self._scripts else self._always
        if script is None:
            self._calls += 1
            return default_steps(request, self._calls)
        return script(request) if callable(script) else script

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), "127.0.0.1", 0, backlog=4096
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is None:
            return
        self._server.close()
        for connection in list(self.connections):
            await connection.stop()
        await self._server.wait_closed()


_WRITERS = {
    "/v1/chat/completions": openai_wire.default_answer,
    responses_wire.PATH: responses_wire.default_answer,
    embeddings_wire.PATH: embeddings_wire.default_answer,
}
"""What answers a JSON request by default: the whole body, or (None, the events) when a stream was asked."""


def default_steps(request: Received, call: int) -> Sequence[Step]:
    """Answer as OpenAI does to its APIs and its model list, and with an echo of the body on any other route."""
    path = request.target.partition("?")[0]
    if path in _WRITERS and request.method == "POST":
        try:
            body = request.json()
        except msgspec.DecodeError:
            body = None
        if not isinstance(body, dict):
            error = {"message": "not a JSON object", "type": "invalid_request_error", "param": None, "code": None}
            return answer({"error": error}, status=400)
        whole, events = _WRITERS[path](body, call)
        return stream(*events) if whole is None else answer(whole, headers=[("x-request-id", f"req-{call}")])
    if path == "/v1/models" and request.method in ("GET", "HEAD"):
        listed = openai_wire.encode({"object": "list", "data": [{"id": openai_wire.MODEL, "object": "model"}]})
        return answer(b"", length=len(listed)) if request.method == "HEAD" else answer(listed)
    if request.method == "HEAD":
        return answer(b"", length=len(request.body))
    return answer(request.body, content_type=request.header("content-type") or "application/octet-stream")


class _Connection(asyncio.Protocol):
    """One connection: reads requests strictly, plays their scripts in order."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self._upstream = upstream
        self._buffer = bytearray()
        self._current: Received | None = None
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(0)
        self._writable.set()
        self._upstream.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._advance()

    def eof_received(self) -> bool:
        self._peer_left()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._peer_left()
        self._writable.set()
        self._upstream.connections.discard(self)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def stop(self) -> None:
        """End the connection and its script."""
        if self._transport is not None:
            self._transport.abort()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def _peer_left(self) -> None:
        if self._current is not None and not self._current.answered:
            self._current.client_left_s = self._current.client_left_s or time.monotonic()
        if self._task is not None:
            self._task.cancel()

    def _advance(self) -> None:
        while self._task is None and (request := self._take()) is not None:
            self._current = request
            self._upstream.requests.append(request)
            steps = self._upstream.steps(request)
            if self._transport is not None and all(type(step) is Send for step in steps):
                self._transport.writelines([cast("Send", step).data for step in steps])
                request.answered = True
            else:
                self._task = asyncio.get_running_loop().create_task(self._play(steps, request))

    def _take(self) -> Received | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        first, *lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
        known = {name.lower(): value for name, value in headers}
        if known.get("transfer-encoding", "").lower() == "chunked":
            whole = _dechunk(self._buffer, end + 4)
        else:
            until = end + 4 + int(known.get("content-length", "0"))
            whole = (bytes(self._buffer[end + 4 : until]), until) if len(self._buffer) >= until else None
        if whole is None:
            return None
        del self._buffer[: whole[1]]
        return Received(method=method, target=target, headers=headers, body=whole[0])

    async def _play(self, steps: Sequence[Step], request: Received) -> None:
        transport = self._transport
        if transport is None:
            return
        for step in steps:
            match step:
                case Send(data):
                    if transport.is_closing():
                        return  # nobody takes it, and `connection_lost` is about to say so
                    transport.write(data)
                    await self._writable.wait()
                    request.taken_bytes += len(data)
                case Wait(seconds):
                    await asyncio.sleep(seconds)
                case Hold(until):
                    await until.wait()
                case Cut(reset):
                    request.answered = True
                    self._cut(transport, reset=reset)
                    return
        request.answered = True
        self._task = None
        self._advance()

    def _cut(self, transport: asyncio.Transport, *, reset: bool) -> None:
        if reset:
            linger = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            transport.abort()
        else:
            transport.close()


def _dechunk(buffer: bytearray, start: int) -> tuple[bytes, int] | None:
    """Return a chunked body that is whole, and where it ends, after its trailers."""
    parts: list[bytes] = []
    while True:
        line = buffer.find(b"\r\n", start)
        if line < 0:
            return None
        size = int(buffer[start:line].split(b";")[0], 16)
        if size == 0:
            end = line if buffer.startswith(b"\r\n\r\n", line) else buffer.find(b"\r\n\r\n", line)
            return (b"".join(parts), end + 4) if end >= 0 else None
        start = line + 2 + size + 2
        if len(buffer) < start:
            return None
        parts.append(bytes(buffer[line + 2 : line + 2 + size]))
