"""One HTTP exchange over ASGI: read a capped body, send a whole or a growing answer, notice that the caller left."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from cacheproxy.errors import BodyTooLarge, CacheProxyError, InvalidRequest, Overloaded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from cacheproxy.access.gate import Caller
    from cacheproxy.http.door import Door
    from cacheproxy.http.headers import Headers

    # ASGI's own types differ from framework to framework; ours are the loosest.
    Message = Any
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

T = TypeVar("T")

BARE_QUERY = "cacheproxy.bare_query"
"""In a scope: the target ended in `?`, which `query_string` cannot tell."""
BREAK_OFF = "cacheproxy.break_off"
"""In a scope: a callable that ends the connection of an answer that was begun."""
AT_ONCE = "cacheproxy.at_once"
"""In a scope: a callable that sends a whole answer past the framework and returns True, or does nothing."""
_PIECE_BYTES = 64 * 1024
"""Most bytes handed over at once: before each piece the caller must have taken most of what went before."""


class CallerGone(Exception):
    """The caller closed the connection."""


class Exchange:
    """A request with its two ASGI channels. What it takes at the door it gives back in `leave`."""

    def __init__(self, scope: Any, receive: Receive, send: Send, door: Door) -> None:
        self.scope = scope
        self._door = door
        self._entered = False
        self._held_bytes = 0
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._receive = receive
        self._send = send
        self._body_read = asyncio.Event()
        self.started = False
        self._break_off: Callable[[], None] | None = scope.pop(BREAK_OFF, None)  # kept there, it would hold itself
        self._at_once: Callable[[int, Headers, bytes], bool] | None = scope.pop(AT_ONCE, None)
        self.caller: Caller | None = None
        """Whose virtual key the request carries; None where callers bring the backend's own key."""
        self.broken: CallerGone | CacheProxyError | None = None
        """What ended `body_chunks` early, however the reader of those chunks reported it."""

    @property
    def method(self) -> str:
        """HTTP method."""
        return str(self.scope["method"])

    @property
    def path(self) -> str:
        """Path as it was sent, percent-encoding untouched (the framework rewrites the scope's own)."""
        raw: bytes = self.scope["raw_path"]
        return raw.decode("latin-1")

    @property
    def target(self) -> str:
        """Origin-form target as it was sent, percent-encoding untouched."""
        query: bytes = self.scope["query_string"]
        raw: bytes = self.scope["raw_path"]
        return (raw + b"?" + query if query or BARE_QUERY in self.scope else raw).decode("latin-1")

    def header(self, name: bytes) -> bytes | None:
        """Return the first header of this lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    def enter(self) -> None:
        """Take one of the proxy's permits for this request, once. Raises Overloaded when none is left."""
        if not self._entered:
            self._door.enter()
            self._entered = True

    def leave(self) -> None:
        """Give back the permit and the memory of the body."""
        self._door.leave(entered=self._entered, held_bytes=self._held_bytes)
        self._entered, self._held_bytes = False, 0

    async def body(self, limit: int) -> bytes:
        """Return the whole body and take a permit: a caller who is slow to send holds none.

        Raises BodyTooLarge beyond `limit` bytes, declared or not, Overloaded, and CallerGone.
        """
        self.check_declared(limit)
        message = await self._next()
        whole: bytes = message.get("body", b"")
        self._hold(len(whole), limit)
        if message.get("more_body"):
            parts = bytearray(whole)  # not a list: a body may come in millions of pieces
            while message.get("more_body"):
                message = await self._next()
                piece: bytes = message.get("body", b"")
                self._hold(len(piece), limit)
                parts += piece
            whole = bytes(parts)
        self.enter()
        return whole

    def _hold(self, count: int, limit: int) -> None:
        if self._held_bytes + count > limit:
            raise _too_large(limit)
        self._door.hold(count)
        self._held_bytes += count

    async def body_chunks(self, limit: int) -> AsyncIterator[bytes]:
        """Yield the body as it comes. Raises as `body`, and leaves the error in `broken`."""
        try:
            async for chunk in self._chunks(limit):
                yield chunk
        except (CallerGone, CacheProxyError) as exc:
            self.broken = exc
            raise

    async def _chunks(self, limit: int) -> AsyncIterator[bytes]:
        self.check_declared(limit)
        room = limit
        while True:
            message = await self._next()
            chunk: bytes = message.get("body", b"")
            room -= len(chunk)
            if room < 0:
                raise _too_large(limit)
            if chunk:
                yield chunk
            if not message.get("more_body"):
                return

    async def send_whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a complete answer."""
        self.started = True
        if self.caller is not None:
            headers = self.caller.headers(headers)
        headers.append((b"content-length", b"%d" % len(body)))
        if self._at_once is not None and len(body) <= _PIECE_BYTES and self._at_once(status, headers, body):
            return
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send_piecewise(body, more=False)

    async def send_stream(self, status: int, headers: Headers, chunks: AsyncIterator[bytes]) -> None:
        """Send an answer as it grows. After an error of `chunks`, `break_off` is to be called."""
        self.started = True
        if self.caller is not None:
            headers = self.caller.headers(headers)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        async for chunk in chunks:
            await self._send_piecewise(chunk, more=True)
        await self._send({"type": "http.response.body", "body": b""})

    def break_off(self) -> None:
        """Leave the answer that was begun visibly unfinished: the connection ends."""
        if self._break_off is not None:  # else it is another server's, which does so when we return
            self._break_off()

    async def _send_piecewise(self, body: bytes, *, more: bool) -> None:
        """Send bytes no faster than the caller takes them."""
        if len(body) > _PIECE_BYTES:
            view = memoryview(body)
            last = (len(body) - 1) // _PIECE_BYTES * _PIECE_BYTES
            for start in range(0, last, _PIECE_BYTES):
                piece = view[start : start + _PIECE_BYTES]
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            body = body[last:]
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def while_caller_stays(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work`, cancelling it as soon as the caller leaves: then CallerGone.

        While `work` still reads the body, that reading is what notices. Raises Overloaded when no permit is left.
        """
        try:
            self.enter()
        except Overloaded:
            work.close()
            raise
        async with _Staying(self._wait_for_disconnect()):
            return await work

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise CallerGone
        if not message.get("more_body"):
            self._body_read.set()
        return message

    async def _wait_for_disconnect(self) -> None:
        await self._body_read.wait()  # before that, the messages belong to whoever reads the body
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def check_declared(self, limit: int) -> None:
        """Raise BodyTooLarge when the body is declared to be larger than `limit`."""
        declared = self.header(b"content-length")
        if declared is None:
            return
        if not declared.isdigit():
            raise InvalidRequest("content-length must be a number")
        if int(declared) > limit:
            raise _too_large(limit)


class _Staying:
    """A block that is cancelled once `leaving` ends, and then raises CallerGone, whatever it raised or returned itself.

    It does to the task around it what `asyncio.timeout` does, which costs a task less than waiting for two.
    """

    def __init__(self, leaving: Coroutine[Any, Any, None]) -> None:
        self._leaving = leaving
        self._left = self._over = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # coroutines of a request run in its task
        self._task, self._cancelling = task, task.cancelling()
        self._watch = asyncio.ensure_future(self._leaving)
        self._watch.add_done_callback(self._leave)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over = True
        self._watch.cancel()
        if self._left and (self._task.uncancel() <= self._cancelling or kind is not asyncio.CancelledError):
            raise CallerGone from None

    def _leave(self, watch: asyncio.Future[None]) -> None:
        if not self._over and not watch.cancelled():
            self._left = True
            self._task.cancel()


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is larger than the {limit} bytes that this route takes; send less")
