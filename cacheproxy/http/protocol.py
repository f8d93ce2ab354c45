"""The HTTP/1.1 protocol of the data listener: httptools' strict parser, capped, refusing in OpenAI's shape.

httptools is pinned here on purpose: it refuses what other parsers read differently (both lengths, folded headers,
control bytes), which is how requests are smuggled past a front proxy.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cacheproxy.http.problems import problem_body

if TYPE_CHECKING:
    import asyncio

    from cacheproxy import settings


class _Refused(Exception):  # raised inside a parser callback to stop parsing
    pass


class _Corked:
    """A transport that hands over at once what one turn of the event loop wrote: head and body in one system call."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Hold the bytes until the turn ends."""
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)

    def close(self) -> None:
        """Hand over what is held, then close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held = self._held, []
        if held and not self._transport.is_closing():  # else the peer left within this turn, and uvloop would raise
            self._transport.write(b"".join(held))


class CappedProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol with caps on target, header count and header bytes."""

    limits: settings.Server

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refusal = (400, "the request is not valid HTTP/1.1", "invalid_http")
        self._head_bytes = 0
        self._in_head = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, its writes corked."""
        super().connection_made(cast("asyncio.Transport", _Corked(cast("asyncio.Transport", transport), self.loop)))

    def data_received(self, data: bytes) -> None:
        """Feed the parser, refusing a head that never ends before it fills memory."""
        if self._in_head:
            self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self.send_400_response("")
            return
        limits = self.limits
        ceiling = limits.max_header_bytes + limits.max_target_bytes + 65536
        if self._in_head and self._head_bytes > ceiling and not self.transport.is_closing():
            self._refuse(431, f"the request's head is larger than {limits.max_header_bytes} bytes", "headers_too_large")
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """Start counting a new head."""
        super().on_message_begin()
        self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Collect the target up to its cap."""
        super().on_url(url)
        if len(self.url) > self.limits.max_target_bytes:
            self._refuse(414, f"the request target is longer than {self.limits.max_target_bytes} bytes", "uri_too_long")
            raise _Refused

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect one header up to the caps."""
        super().on_header(name, value)
        self._header_bytes += len(name) + len(value)
        limits = self.limits
        if len(self.headers) > limits.max_headers or self._header_bytes > limits.max_header_bytes:
            text = f"more than {limits.max_headers} headers or {limits.max_header_bytes} bytes of them"
            self._refuse(431, text, "headers_too_large")
            raise _Refused

    def on_headers_complete(self) -> None:
        """Hand the request on; the target must be a path on this server."""
        if self.parser.should_upgrade():
            return
        self._in_head = False
        self._check_head()
        try:
            httptools.parse_url(self.url).path.decode("ascii")  # what the parent class is about to do
        except (httptools.HttpParserError, UnicodeDecodeError, AttributeError):
            self._refuse(400, "the request target must be an ASCII path such as /v1/models", "invalid_target")
            raise _Refused from None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Get ready for the next head on this connection."""
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._in_head, self._head_bytes = True, 0

    def send_400_response(self, msg: str) -> None:
        """Answer a request the parser refused, and close: what follows on this connection cannot be trusted."""
        status, text, code = self._refusal
        body = problem_body(text, "invalid_request_error", code)
        self.transport.write(
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
            + body
        )
        self.transport.close()

    def _check_head(self) -> None:
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings not in ([], [b"chunked"]):
            self._refuse(501, "the only transfer coding understood is chunked", "unsupported_transfer_encoding")
            raise _Refused
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            self._refuse(400, "an HTTP/1.1 request has exactly one host header", "invalid_host")
            raise _Refused

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Serve the request as if it had not offered another protocol (RFC 9110 section 7.8).

        The parser stops at an upgrade and never reads the body, so a new one gets the head again, without the offer.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(405, "CONNECT is not for this server: it is no forward proxy", "method_not_allowed")
            self.send_400_response("")
            return
        lines = [b"%s: %s\r\n" % (name, value) for name, value in self.headers if name != b"upgrade"]
        head = b"%s %s HTTP/1.1\r\n%s\r\n" % (method, self.url, b"".join(lines))
        self.parser = httptools.HttpRequestParser(self)
        self._head_bytes = 0
        self.data_received(head + rest)

    def _refuse(self, status: int, text: str, code: str) -> None:
        self._refusal = (status, text, code)


def capped(limits: settings.Server) -> type[CappedProtocol]:
    """Return the protocol class for these limits (uvicorn wants a class)."""
    return type("LimitedProtocol", (CappedProtocol,), {"limits": limits})
