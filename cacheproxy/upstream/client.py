"""A backend's HTTP client: no redirects, no cookies, no proxies from the environment, a deadline on every wait."""

from __future__ import annotations

import asyncio
import io
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
from yarl import URL

from cacheproxy.errors import (
    ConnectTimeout,
    InvalidRequest,
    UpstreamBroken,
    UpstreamClosed,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from cacheproxy.ports import HOP_BY_HOP, OWN_PREFIX
from cacheproxy.upstream.ending import ending_of
from cacheproxy.upstream.keys import Keys, check_key, keyed
from cacheproxy.upstream.origin import Resolver, base_url, leads_home
from cacheproxy.upstream.request import BARE_QUERY, CandidHandler, ExactRequest, SpoiledConnection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection
    from pathlib import Path

    from cacheproxy import settings
    from cacheproxy.ports import Answer, Call

_REDIRECTS = frozenset({300, 301, 302, 303, 305, 307, 308})
_READ_BYTES = 256 * 1024
_INFLATE_BYTES = 64 * 1024
_DEFLATED_BYTES = 16 * 1024  # taken at once, since each member copies what follows it
_GZIP_OR_ZLIB, _GZIP = 47, 31  # by its header; after one gzip member others may follow (RFC 1952 section 2.2)
_WRITE_BYTES = 256 * 1024
_HEADER_BYTES, _MOST_HEADERS = 64 * 1024, 512  # no client of a backend is stricter; aiohttp's own caps are


class HttpUpstream:
    """A backend behind a base URL, or behind a Unix socket when `socket_path` is given.

    The base URL's path takes the place of the `/v1` of a caller's target; without `keys`, it is sent `config.api_key`,
    or the caller's own. Use it as an async context manager. Raises ConfigError, naming the key under `section`, for a
    URL or an API key that cannot be used.
    """

    def __init__(
        self,
        config: settings.Upstream,
        *,
        socket_path: Path | None = None,
        section: str = "upstream",
        keys: Keys | None = None,
    ) -> None:
        self._config = config
        self.keys = keys or Keys(own=config.api_key, callers=True, assigned=True)
        check_key(self.keys.own, section)
        self._base = base_url("http://local/v1" if socket_path else config.url, section)
        self._origin = URL(self._base).origin()
        self._socket_path = socket_path
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> HttpUpstream:
        limit = self._config.max_connections
        connector = (
            aiohttp.UnixConnector(path=str(self._socket_path), limit=limit)
            if self._socket_path
            else aiohttp.TCPConnector(limit=limit, ttl_dns_cache=30, resolver=Resolver())
        )
        handlers: Any = partial(CandidHandler, loop=asyncio.get_running_loop())
        connector._factory = handlers  # aiohttp has no other way in
        self._session = aiohttp.ClientSession(
            connector=connector,
            request_class=ExactRequest,
            middlewares=(_once,),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=self._config.connect_timeout_s),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            read_bufsize=_READ_BYTES,
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
            max_headers=_MOST_HEADERS,
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._session is not None:
            await self._session.close()

    def leads_to(self, port: int, hosts: Collection[str] = ()) -> bool:
        """Whether the base URL is a port of this machine; `hosts` are names it has besides the usual ones."""
        return leads_home(URL(self._base), port, hosts)

    def url_of(self, target: str) -> URL:
        """Return the absolute URL of a caller's origin-form target, percent-encoding untouched.

        Raises InvalidRequest for a target that cannot be sent, or that would leave the configured origin.
        """
        try:
            bare = f"#{BARE_QUERY}" if target.find("?") == len(target) - 1 else ""
            url = URL(self._base + target.removeprefix("/v1") + bare, encoded=True)
            stays = url.origin() == self._origin and url.raw_user is None and url.raw_password is None
        except ValueError:
            stays = False
        if not stays:
            raise InvalidRequest("the request's target cannot be sent to the backend")
        return url

    async def send(self, call: Call) -> Answer:
        """Send and wait for the head, as `ports.Upstream` promises.

        Raises InvalidRequest, before anything is sent, for a target or a header that HTTP cannot carry.
        """
        # A streamed request body may take as long as its caller takes to send it.
        streamed = not isinstance(call.body, bytes)
        head_s = self._config.total_timeout_s if streamed else self._config.first_byte_timeout_s
        try:
            async with asyncio.timeout(head_s):
                response = await self._request(call)
        except TimeoutError as exc:
            if isinstance(exc, aiohttp.ConnectionTimeoutError):
                raise ConnectTimeout(
                    f"no connection to the backend within {self._config.connect_timeout_s:g} s"
                ) from exc
            raise UpstreamTimeout(f"the backend sent no first byte within {head_s:g} s") from exc
        except aiohttp.ClientError as exc:
            raise _translate(exc) from exc
        flaw = _flaw(response)
        if flaw:
            response.close()
            raise UpstreamBroken(f"the backend answered with {flaw}")
        return HttpAnswer(response, self._config, call)

    async def _request(self, call: Call) -> aiohttp.ClientResponse:
        if self._session is None:
            raise UpstreamUnreachable("the backend client is not open")
        headers, url = _headers(call, self.keys), self.url_of(call.target)
        while True:
            try:
                return await self._session.request(
                    call.method, url, headers=headers, data=_payload(call), allow_redirects=False
                )
            except SpoiledConnection:  # closed, and nothing was sent on it: the next one, or a new one
                continue
            except aiohttp.InvalidURL as exc:
                raise InvalidRequest("the request's target cannot be sent to the backend") from exc
            except aiohttp.ClientError:
                raise  # some are ValueErrors, too
            except ValueError as exc:  # aiohttp's word for a control character
                raise InvalidRequest("a header of the request cannot be sent to the backend") from exc


async def _once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Send once: aiohttp repeats idempotent requests by itself, which is for the retry budget to decide."""
    try:
        return await send(request)
    except (aiohttp.ClientConnectorError, aiohttp.ClientSSLError):
        raise
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as exc:
        raise _translate(exc) from exc


class HttpAnswer:
    """A backend's answer whose head has arrived."""

    def __init__(self, response: aiohttp.ClientResponse, config: settings.Upstream, call: Call) -> None:
        self._response = response
        self._config = config
        self._max_bytes = call.max_answer_bytes
        encoding = response.headers.get("content-encoding", "").strip().lower()
        self._inflate = self._max_bytes is not None and encoding in ("gzip", "x-gzip", "deflate")
        self.status: int = response.status
        self.headers = _end_to_end(response, decoded=self._inflate)
        marked = "content-length" in response.headers or "transfer-encoding" in response.headers
        self._ending = None if marked else ending_of(call, self.status, self.headers)

    async def __aenter__(self) -> HttpAnswer:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._response.content.is_eof() and self._response.content.exception() is None:
            self._response.release()
        else:
            self._response.close()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes, decoded and capped when the call asked for that."""
        ending = self._ending
        async for chunk in self._capped():
            if ending is not None:
                ending.feed(chunk)
            yield chunk
        if ending is not None and not ending.whole():
            raise UpstreamBroken("the backend's answer ended before its own end mark")

    async def _capped(self) -> AsyncIterator[bytes]:
        streams = self._response.headers.get("content-type", "").lower().startswith("text/event-stream")
        room = self._max_bytes
        async for chunk in self._decoded() if self._inflate else self._raw():
            if room is not None and (self._inflate or not streams):
                room -= len(chunk)
                if room < 0:
                    raise UpstreamBroken(f"the backend's answer is larger than {self._max_bytes} bytes")
            yield chunk

    async def _raw(self) -> AsyncIterator[bytes]:
        config, loop = self._config, asyncio.get_running_loop()
        deadline = loop.time() + config.total_timeout_s
        content = self._response.content
        while True:
            try:
                async with asyncio.timeout_at(min(loop.time() + config.idle_timeout_s, deadline)):
                    chunk = await content.readany()
            except TimeoutError as exc:
                raise UpstreamTimeout("the backend's answer stalled or took longer than its deadline") from exc
            except (aiohttp.ClientError, OSError) as exc:
                raise UpstreamBroken("the backend's answer ended early") from exc
            if not chunk:
                return
            yield chunk

    async def _decoded(self) -> AsyncIterator[bytes]:
        inflater = zlib.decompressobj(wbits=_GZIP_OR_ZLIB)
        async for chunk in self._raw():
            for start in range(0, len(chunk), _DEFLATED_BYTES):
                pending = chunk[start : start + _DEFLATED_BYTES]
                while pending:
                    if inflater.eof:
                        inflater = zlib.decompressobj(wbits=_GZIP)
                    try:
                        data = inflater.decompress(pending, _INFLATE_BYTES)
                    except zlib.error as exc:
                        raise UpstreamBroken("the backend's answer is not the gzip or deflate it claims to be") from exc
                    pending = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
                    if data:
                        yield data
        if not inflater.eof:
            raise UpstreamBroken("the backend's compressed answer ended early")


def _flaw(response: aiohttp.ClientResponse) -> str:
    """Return what of a head cannot be passed on, or ""."""
    if response.status in _REDIRECTS:
        return f"a redirect ({response.status}), which is never followed"
    if not 200 <= response.status < 600:
        return "a status that is none of a final answer"
    codings = response.headers.get("transfer-encoding", "chunked").strip().lower()
    return "" if codings in ("chunked", "identity") else "a transfer coding that nobody asked for"


def _payload(call: Call) -> Any:
    if isinstance(call.body, bytes) and len(call.body) > _WRITE_BYTES:
        return io.BytesIO(call.body)  # written piece by piece, so that a large body does not hold up the loop
    return call.body or None


def _headers(call: Call, keys: Keys) -> list[tuple[str, str]]:
    headers = keyed(call, keys)
    if call.max_answer_bytes is None:
        return headers
    return [*(pair for pair in headers if pair[0].lower() != "accept-encoding"), ("accept-encoding", "identity")]


def _end_to_end(response: aiohttp.ClientResponse, *, decoded: bool) -> tuple[tuple[str, str], ...]:
    named = {name.strip().lower() for name in response.headers.get("connection", "").split(",")}
    dropped = HOP_BY_HOP | named | ({"content-encoding", "content-length"} if decoded else set())
    pairs = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.raw_headers)
    return tuple(
        (name, value)
        for name, value in pairs
        if name.lower() not in dropped and not name.lower().startswith(OWN_PREFIX)
    )


def _translate(exc: aiohttp.ClientError) -> UpstreamError:
    if isinstance(exc, aiohttp.ClientConnectorError | aiohttp.ClientSSLError):
        return UpstreamUnreachable("no connection to the backend: refused, unknown host, or TLS failed")
    if isinstance(exc, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError):
        return UpstreamClosed("the backend closed the connection before answering")
    return UpstreamBroken("the backend did not answer in HTTP")
