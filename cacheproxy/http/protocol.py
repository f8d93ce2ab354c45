"""The HTTP/1.1 protocol of our listeners: httptools' strict parser, capped, refusing in OpenAI's shape, on deadlines.

httptools is pinned here on purpose: it refuses what other parsers read differently (both lengths, folded headers,
control bytes), which is how requests are smuggled past a front proxy.
"""

from __future__ import annotations

import asyncio
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from cacheproxy.http import problems
from cacheproxy.http.cork import Corked
from cacheproxy.http.exchange import AT_ONCE, BARE_QUERY, BREAK_OFF
from cacheproxy.http.patience import Awaited, Patience
from cacheproxy.http.problems import problem_body
from cacheproxy.http.unframed import ends_with_connection, unframed
from cacheproxy.pressure import refused

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from cacheproxy import settings
    from cacheproxy.http.door import Door
    from cacheproxy.http.headers import Headers

_CLOSE = (b"connection", b"close")
_PLAIN = bytes((9, *range(32, 127)))
"""What a header that we write ourselves is made of."""
_MOST_AHEAD = 64
"""Requests a caller may send ahead of their answers on one connection."""


class _Answered:
    """In the place of a request that was answered before its body came, which goes nowhere."""

    response_started = response_complete = True
    waiting_for_100_continue = disconnected = False
    keep_alive = True
    message_event = asyncio.Event()


class _Refused(Exception):  # raised inside a parser callback to stop parsing
    pass


class CappedProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol with caps, and deadlines that the door's sweep looks after.

    Nothing on a request's way reads a clock: it counts turns and bytes, and the sweep sees whether they changed.
    """

    limits: settings.Server
    door: Door

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refusal = (400, "the request is not valid HTTP/1.1", "invalid_http")
        self._head_bytes = 0
        self._in_head = True
        self._in_message = False
        self._over = False
        self._running: RequestResponseCycle | None = None
        self._turn = 0
        self._received = 0
        self._trailers = 0
        self._patience = Patience(self.limits)

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, its writes corked, or refuse it when it is one too many."""
        corked = Corked(cast("asyncio.Transport", transport), self.loop, self._part_gently)
        super().connection_made(cast("asyncio.Transport", corked))
        if not self.door.open(self, self._address()):
            corked.write(refusal(503, "too many connections; try again in a moment", "overloaded"))
            corked.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody who still works for this connection."""
        running, self._running = self._running, None
        self._over = True
        super().connection_lost(exc)
        self.door.closed(self, self._address())
        self.pipeline.clear()
        if running is not None:  # the parent class tells only the newest of pipelined requests
            _disconnect(running)

    def resume_writing(self) -> None:
        """Let answers go on: the caller took some."""
        self._turn += 1
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, refusing a head that never ends before it fills memory."""
        if self._over:
            return
        self._received += len(data)
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse_message()
            return
        limits = self.limits
        ceiling = limits.max_header_bytes + limits.max_target_bytes + 65536
        if self._in_head and self._head_bytes > ceiling and not self.transport.is_closing():
            self._because(
                431, f"the request's head is larger than {limits.max_header_bytes} bytes", "headers_too_large"
            )
            self._refuse_message()

    # The parser

    def on_message_begin(self) -> None:
        """Start counting a new head."""
        super().on_message_begin()
        self._header_bytes = self._trailers = 0
        self._in_message = True
        self._turn += 1

    def on_url(self, url: bytes) -> None:
        """Collect the target up to its cap."""
        super().on_url(url)
        if len(self.url) > self.limits.max_target_bytes:
            text = f"the request target is longer than {self.limits.max_target_bytes} bytes"
            self._because(414, text, "uri_too_long")
            raise _Refused

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect one header up to the caps. Trailers count too, and are dropped.

        Merged into the headers, a trailer could name another caller (RFC 9110 section 6.5.1).
        """
        if self._in_head:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))
        else:
            self._trailers += 1
        self._header_bytes += len(name) + len(value)
        limits = self.limits
        if len(self.headers) + self._trailers > limits.max_headers or self._header_bytes > limits.max_header_bytes:
            text = f"more than {limits.max_headers} headers or {limits.max_header_bytes} bytes of them"
            self._because(431, text, "headers_too_large")
            raise _Refused

    def on_headers_complete(self) -> None:
        """Hand the request on; the target must be a path on this server."""
        if self.parser.should_upgrade():
            return
        self._check_head()
        try:
            httptools.parse_url(self.url).path.decode("ascii")  # what the parent class is about to do
        except (httptools.HttpParserError, UnicodeDecodeError, AttributeError):
            self._because(400, "the request target must be an ASCII path such as /v1/models", "invalid_target")
            raise _Refused from None
        if self.url.endswith(b"?"):
            cast("dict[str, Any]", self.scope)[BARE_QUERY] = True
        self._in_head = False
        if self._may_be_turned_away() and not self.door.opens():
            self.cycle = cast("RequestResponseCycle", _Answered)
            self.transport.write(OVERLOADED)
            return
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Get ready for the next head on this connection."""
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._in_head, self._head_bytes, self._in_message = True, 0, False

    def _may_be_turned_away(self) -> bool:
        """Whether this is a request that costs much, and no earlier one of this connection waits for its answer."""
        return (
            self.parser.get_method() == b"POST"
            and self.url.startswith(b"/v1/")
            and self._running is None
            and not self.pipeline
            and not self.expect_100_continue
            and bool(self.parser.should_keep_alive())
        )

    # Answers, in the order of their requests

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        scope = cast("dict[str, Any]", cycle.scope)
        scope[BREAK_OFF] = self._break_off
        if scope["http_version"] == "1.0":
            app = unframed(app, cycle)
        elif scope["method"] != "HEAD":
            scope[AT_ONCE] = partial(self._answer_at_once, cycle)
        super()._start_asgi_task(cycle, app)

    def _answer_at_once(self, cycle: RequestResponseCycle, status: int, headers: Headers, body: bytes) -> bool:
        """Send a whole answer as uvicorn would, without asking it for each header; its length is one of them.

        Return False where nothing was done, since there is more to it than that.
        """
        begin = STATUS_LINE.get(status)
        if begin is None or cycle.response_started or cycle.disconnected or self.flow.write_paused:
            return False
        head = b"".join([b"%b: %b\r\n" % (name.lower(), value) for name, value in headers])
        if head.translate(None, _PLAIN) != b"\r\n" * len(headers):
            return False
        if _CLOSE in headers or _CLOSE in cycle.scope["headers"]:
            return False
        answer = b"".join((begin, head, b"\r\n", body))
        cycle.waiting_for_100_continue = False
        cycle.response_started = cycle.response_complete = True
        self.transport.write(answer)
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()
        return True

    def on_response_complete(self) -> None:
        """Go on with the next request that waits, or part. This makes no timer, as the parent does: the sweep looks."""
        self.server_state.total_requests += 1
        self._turn += 1
        running, self._running = self._running, None
        if running is not None:
            cast("dict[str, Any]", running.scope).pop(AT_ONCE, None)  # kept there, it would hold itself
        if self.transport.is_closing():
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._over:
            self._send_refusal()
            return
        self.flow.resume_reading()

    def _break_off(self) -> None:
        """End the connection under the answer that is being sent, in a way that its caller cannot take for its end."""
        running = self._running
        if running is None or running.response_complete:
            return
        _disconnect(running)  # or uvicorn would log an error of the application
        if ends_with_connection(running):
            cast("Corked", self.transport).reset()
        else:
            self.transport.close()

    def _refuse_message(self) -> None:
        """Refuse the message being read in its turn, and part: what follows it cannot be trusted."""
        self.door.cut[self._refusal[2]] += 1
        self._over = True
        if self._in_message and not self._in_head:  # its body broke off: its request is with the application, or waits
            broken = self.cycle
            if self.pipeline and self.pipeline[0][0] is broken:
                self.pipeline.popleft()
            else:
                self._running = None
                if broken.response_started:
                    self.transport.close()
                    _disconnect(broken)
                    return
                _disconnect(broken)
        if self._running is None:
            self._send_refusal()

    def _send_refusal(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(refusal(*self._refusal))
            self.transport.close()

    def _part_gently(self) -> bool:
        """Whether to close our side only: a caller who still sends would get a reset, and never read the answer."""
        gently = self._in_message or self._over
        self._over = True
        self._turn += 1
        return gently

    # Deadlines

    def sweep(self, now_s: float) -> str | None:
        """End the connection if its caller has kept it waiting too long; return which deadline was missed."""
        awaited = self._awaited()
        if not self._patience.ends(awaited, turn=self._turn, received=self._received, now_s=now_s):
            return None
        match awaited:
            case Awaited.READER | Awaited.END:
                self.transport.abort()
            case Awaited.BODY:
                self._late("body")
            case Awaited.HEAD if self._in_message:
                self._late("head")
            case _:
                self.transport.close()
        return awaited.value

    def _awaited(self) -> Awaited:
        corked = cast("Corked", self.transport)
        if corked.parting:
            return Awaited.END
        if self.flow.write_paused or self.transport.is_closing():
            return Awaited.READER
        if self._in_message and not self._in_head:
            if self.cycle.response_complete:
                return Awaited.LEFTOVER
            ours = self.flow.read_paused or self.cycle.waiting_for_100_continue  # we have not asked for it yet
            return Awaited.NOTHING if ours else Awaited.BODY
        if self._running is not None or self._over:
            return Awaited.NOTHING
        return Awaited.HEAD if self._in_message or self.cycle is None else Awaited.REQUEST

    def _late(self, part: str) -> None:
        self._because(408, f"the request's {part} did not come in time", "request_timeout")
        self._refuse_message()

    def _address(self) -> str:
        return str(self.client[0]) if self.client else ""

    # Heads

    def _check_head(self) -> None:
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            self._because(400, "the request is not valid HTTP/1.1", "invalid_http")
            raise _Refused
        names = [name for name, _ in self.headers]
        if b"transfer-encoding" in names:
            self._check_coding(version)
        hosts = names.count(b"host")
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            self._because(400, "an HTTP/1.1 request has exactly one host header", "invalid_host")
            raise _Refused
        if len(self.pipeline) >= _MOST_AHEAD:
            self._because(400, f"more than {_MOST_AHEAD} requests came ahead of their answers", "too_many_pipelined")
            raise _Refused

    def _check_coding(self, version: str) -> None:
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings != [b"chunked"] or version == "1.0":
            # RFC 9112 suggests 501, but what a caller sends is never this server's failure: its monitors count 5xx.
            self._because(400, "the only transfer coding understood is chunked", "unsupported_transfer_encoding")
            raise _Refused

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Serve the request as if it had not offered another protocol (RFC 9110 section 7.8).

        The parser stops at an upgrade and never reads the body, so a new one gets the head again, without the offer.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._because(405, "CONNECT is not for this server: it is no forward proxy", "method_not_allowed")
            self._refuse_message()
            return
        lines = [b"%s: %s\r\n" % (name, value) for name, value in self.headers if name != b"upgrade"]
        head = b"%s %s HTTP/1.1\r\n%s\r\n" % (method, self.url, b"".join(lines))
        self.parser = httptools.HttpRequestParser(self)
        self._head_bytes = 0
        self.data_received(head + rest)

    def _because(self, status: int, text: str, code: str) -> None:
        self._refusal = (status, text, code)


def _overloaded() -> bytes:
    """Return the whole answer to a request that there is no time for; its connection goes on."""
    error = refused()
    headers = [
        problems.JSON,
        *problems.retry_after(error.retry_after_s or 1.0),
        (b"cache-status", b'cacheproxy; detail="overloaded"'),
        (b"x-cacheproxy-outcome", b"bypass"),
        (b"x-cacheproxy-reason", error.code.encode()),
        (b"x-cacheproxy-coalesced", b"false"),
    ]
    body = problems.body_of(error)
    head = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"HTTP/1.1 503 Service Unavailable\r\n%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)


OVERLOADED = _overloaded()


def refusal(status: int, text: str, code: str) -> bytes:
    """Return a whole answer in OpenAI's shape that ends its connection."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = problem_body(text, kind, code)
    again = "retry-after: 1\r\n" if status == 503 else ""
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n{again}connection: close\r\n\r\n".encode()
        + body
    )


def _disconnect(cycle: RequestResponseCycle) -> None:
    if not cycle.response_complete:
        cycle.disconnected = True
        cycle.message_event.set()


def capped(limits: settings.Server, door: Door) -> type[CappedProtocol]:
    """Return the protocol class of one port (uvicorn wants a class)."""
    return type("LimitedProtocol", (CappedProtocol,), {"limits": limits, "door": door})
