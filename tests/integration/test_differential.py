"""The same exchange direct and through the proxy, compared byte for byte, on both of its sides.

The drawn requests say `no-store`, so the cache has no part in them; others are asked as misses, too, whose answers may
be kept. What may differ: headers of one connection, the proxy's own headers, and `cache-control: private` where the
backend said nothing; for misses also `accept-encoding` and `stream_options` as the backend gets them.
"""

from __future__ import annotations

import asyncio
import gzip
import re
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from cacheproxy.ports import HOP_BY_HOP
from tests.support import openai_wire, responses_wire
from tests.support.openai_wire import completion, encode, events
from tests.support.polling import eventually, eventually_true
from tests.support.proxy import CHAT, chat
from tests.support.rawhttp import Connection, Response, Truncated, request_bytes
from tests.support.traffic import Draw, draw
from tests.support.upstream import CUT, RESET, Hold, Received, Send, Step, answer, head, stream

if TYPE_CHECKING:
    from tests.support.proxy import Answered, Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] if seed >= 100 else []) for seed in range(400)]
FRAMING = ("content-length", "transfer-encoding")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One exchange from both ends: what the caller got (None when no head came) and what the backend got."""

    answer: Response | None
    received: Received | None


async def exchanged(url: str, upstream: ScriptedUpstream, drawn: Draw) -> Seen:
    upstream.reset()
    upstream.always(drawn.steps)
    async with await Connection.open(url) as connection:
        connection.reads_all = url == upstream.url
        connection.send(drawn.request())
        try:
            answer: Response | None = await connection.read_response(drawn.method)
        except Truncated:
            answer = None
    # What changes nothing may be asked once more where the backend failed (row 34).
    assert upstream.calls <= 1 + (drawn.method in ("GET", "HEAD", "OPTIONS") and drawn.status >= 500)
    return Seen(answer=answer, received=upstream.requests[-1] if upstream.requests else None)


def end_to_end(headers: tuple[tuple[str, str], ...], *more: str) -> list[tuple[str, str]]:
    dropped = {*HOP_BY_HOP, *more}
    told = [(name.lower(), value) for name, value in headers]
    return [(name, value) for name, value in told if name not in dropped and not name.startswith("x-cacheproxy-")]


def answered_headers(direct: Response, proxied: Response) -> list[tuple[str, str]]:
    """The proxied answer's end-to-end headers, without what the proxy adds."""
    headers = end_to_end(proxied.headers)
    if proxied.all("x-cacheproxy-outcome"):
        own = [pair for pair in headers if pair[0] == "cache-status"][-1]
        assert own[1].startswith("cacheproxy;")
        headers.reverse()
        headers.remove(own)
        headers.reverse()
    if not direct.all("cache-control") and ("cache-control", "private") in headers:
        headers.remove(("cache-control", "private"))
    return headers


def assert_received_alike(direct: Received, proxied: Received, drawn: Draw) -> None:
    assert (proxied.method, proxied.target) == (direct.method, direct.target)
    assert proxied.body == direct.body
    # A body that was read first, to be understood, goes on with a length; an empty one may be told or not.
    loose = FRAMING if drawn.chunked or not direct.body else ()
    assert end_to_end(proxied.headers, "host", *loose) == end_to_end(direct.headers, "host", *loose)


def assert_answered_alike(direct: Response, proxied: Response, drawn: Draw) -> None:
    assert proxied.status == direct.status
    loose = ("content-length",) if drawn.status == 304 else ()
    assert [pair for pair in answered_headers(direct, proxied) if pair[0] not in loose] == end_to_end(
        direct.headers, *loose
    )
    if drawn.cut == CUT and drawn.framing == "close":
        assert proxied.body == direct.body  # whether that is the end, nobody can tell: see the tests of unmarked ends
    elif drawn.cut is None:
        assert (proxied.body, proxied.complete) == (direct.body, True)
    elif drawn.cut == CUT:
        assert (proxied.body, proxied.complete) == (direct.body, False)
    else:  # a reset may overtake bytes on either way
        assert not proxied.complete
        longer, shorter = sorted((direct.body, proxied.body), key=len, reverse=True)
        assert longer.startswith(shorter)


@pytest.mark.parametrize("seed", SEEDS)
async def test_an_exchange_is_the_same_direct_and_through_the_proxy(
    proxy: Proxy, upstream: ScriptedUpstream, seed: int
) -> None:
    drawn = draw(Random(seed))
    direct = await exchanged(upstream.url, upstream, drawn)
    proxied = await exchanged(proxy.url, upstream, drawn)
    assert direct.received is not None
    assert proxied.received is not None, proxied.answer
    assert_received_alike(direct.received, proxied.received, drawn)
    assert proxied.answer is not None
    if direct.answer is None:  # reset before its head could be read
        assert proxied.answer.status == 502 or not proxied.answer.complete
        return
    if drawn.cut == RESET and proxied.answer.status == 502 != drawn.status:
        return  # the reset overtook the head
    assert_answered_alike(direct.answer, proxied.answer, drawn)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way through the proxy: past the cache, or as a miss, by a key of its own each time."""

    target: str = CHAT
    misses: bool = False

    async def ask(self, proxy: Proxy, **fields: Any) -> Answered:
        headers = {} if self.misses else {"cache-control": "no-store"}
        return await proxy.ask(chat(**fields), key=f"sk-{uuid4().hex}", headers=headers, target=self.target)


WAYS = {"passed through": Way(target="/v1/files/f"), "not stored": Way(), "missed": Way(misses=True)}


def unmarked(kind: str, body: bytes) -> list[Step]:
    return [Send(head(200, [("content-type", kind)]) + body), CUT]


SSE = events("Voilà 🗼")
UNMARKED = {
    "events": ("text/event-stream", b"".join(SSE)),
    "CRLF events": ("text/event-stream", b"".join(SSE).replace(b"\n", b"\r\n")),
    "other events": ("text/event-stream; charset=utf-8", b"event: x\ndata: 1\n\ndata: 2\n\n"),
    "typed events": ("text/event-stream", b"".join(responses_wire.events(responses_wire.response()))),
    "JSON": ("application/json", encode(completion("Voilà 🗼"))),
}


@pytest.mark.parametrize(("kind", "body"), UNMARKED.values(), ids=UNMARKED)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_an_unmarked_end_that_came_too_early_does_not_look_like_one(
    proxy: Proxy, upstream: ScriptedUpstream, way: Way, kind: str, body: bytes
) -> None:
    boundaries = {found.end() for found in re.finditer(rb"(?:\n\n|\r\n\r\n)", body)}
    for length in {*range(1, len(body) - 1, 7), *boundaries, len(body)}:
        upstream.always(unmarked(kind, body[:length]))
        live = await way.ask(proxy)
        if way.misses and kind == "application/json" and length < len(body):
            live.assert_problem(502, "upstream_broken")  # awaited whole, so that nothing was sent yet
            continue
        assert (live.status, live.body) == (200, body[:length])
        # Between events of a stream without a closing one, nobody can tell.
        telling = kind == "application/json" or b"chat.completion" in body or b"response.created" in body
        closed = body[:length].rstrip().endswith(b"[DONE]") or b"response.completed" in body[:length]
        said_done = body[:length].rstrip().endswith(b"data: [DONE]")  # whether a blank line follows or not
        ends = said_done or length in boundaries or length == len(body)
        assert live.complete is (
            length == len(body) or (ends and kind != "application/json" and (closed or not telling))
        )


async def test_an_unmarked_end_of_anything_else_is_believed(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    for kind, body in (("audio/mpeg", b"\xff\xfb" * 9), ("application/json", b"not JSON at all"), ("text/plain", b"")):
        upstream.always(unmarked(kind, body))
        live = await proxy.ask(b"{}", key=key, target="/v1/audio/speech")
        assert (live.status, live.body, live.complete) == (200, body, True)


ERRORS = {
    "401 empty": (401, "application/json", b""),
    "500 text as JSON": (500, "application/json", b"Internal Server Error"),
    "503 HTML as JSON": (503, "application/json", b"<html>"),
    "502 HTML": (502, "text/html", b"<html><h1>Bad gateway</h1>"),
    "400 JSON": (400, "application/json", b'{"error":{"message":"no","type":"t","param":null,"code":null}}'),
    "429 JSON": (429, "application/json", b'{"error":{"message":"slow down"}}'),
    "404 of a stream": (404, "text/event-stream", b""),
    "200 text as JSON": (200, "application/json", b"not JSON at all"),
    "200 text": (200, "text/plain", b"well"),
    "403 nothing": (403, "", b""),
}


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize(("status", "kind", "body"), ERRORS.values(), ids=ERRORS)
async def test_what_is_not_an_answer_is_passed_on_as_it_came(
    proxy: Proxy, upstream: ScriptedUpstream, status: int, kind: str, body: bytes, framing: str
) -> None:
    sent = [("content-type", kind)] * bool(kind) + [("x-request-id", "req-1"), ("x-many", "a"), ("x-many", "b")]
    mark = {
        "length": ("content-length", str(len(body))),
        "chunked": ("transfer-encoding", "chunked"),
        "close": ("connection", "close"),
    }
    data = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n" if framing == "chunked" else body
    end = [CUT] if framing == "close" else []
    upstream.always([Send(head(status, [*sent, mark[framing]]) + data), *end])
    for way, form in product(WAYS.values(), ({}, {"stream": True})):
        live = await way.ask(proxy, **form)
        assert (live.status, live.body, live.complete) == (status, body, True), way
        told = answered_headers(live, live)
        expected = [*sent, ("content-length", str(len(body)))]
        assert [pair for pair in told if pair in expected] == [pair for pair in expected if pair in told]
        assert set(sent) <= set(told)


async def test_an_answer_in_a_coding_nobody_asked_for_is_passed_on(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    coded = [("content-type", "application/json"), ("content-encoding", "br")]
    upstream.always([Send(head(200, coded) + b"\x0b\x02\x80hi\x03"), CUT])
    for way in WAYS.values():
        live = await way.ask(proxy)
        assert (live.status, live.body, live.complete) == (200, b"\x0b\x02\x80hi\x03", True)
        assert live.get("content-encoding") == "br"


async def test_the_backend_gets_of_a_miss_what_its_caller_sent(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    sent = {"X-Custom": "Kept  as it is", "user-agent": "Rig/1.0", "x-stainless-lang": "python", "accept": "*/*;q=0.5"}
    loose = ("host", "accept-encoding", "content-length")
    forms: list[dict[str, Any]] = [{}, {"stream": True}, {"stream": True, "stream_options": {"x": 1}}]
    for form in forms:
        for url in (upstream.url, proxy.url):
            headers = {"authorization": f"Bearer {key}", "content-type": "application/json", **sent}
            headers["accept-encoding"] = "gzip, br"
            async with await Connection.open(url) as connection:
                connection.send(request_bytes("POST", CHAT, headers.items(), encode(chat(**form))))
                connection.reads_all = True
                assert (await connection.read_response()).status == 200
        direct, proxied = upstream.requests
        upstream.reset()
        assert end_to_end(proxied.headers, *loose) == end_to_end(direct.headers, *loose)
        assert proxied.header("accept-encoding") == "identity"
        asked = {"stream_options": {**form.get("stream_options", {}), "include_usage": True}} if form else {}
        assert proxied.json() == {**direct.json(), **asked}
        assert form or proxied.body == direct.body
        key += "x"


@pytest.mark.parametrize("framing", ["length", "close"])
@pytest.mark.parametrize("pieces", [1, 2, 40])
async def test_a_gzip_answer_of_several_members_is_passed_on_whole(
    proxy: Proxy, upstream: ScriptedUpstream, framing: str, pieces: int
) -> None:
    body = encode(completion("Voilà 🗼"))
    step = -(-len(body) // pieces)
    packed = b"".join(gzip.compress(body[at : at + step]) for at in range(0, len(body), step))
    coded = [("content-type", "application/json"), ("content-encoding", "gzip")]
    end = [CUT] if framing == "close" else []
    upstream.always(
        [Send(head(200, [*coded, *[("content-length", str(len(packed)))] * (framing == "length")]) + packed), *end]
    )
    for way in WAYS.values():
        live = await way.ask(proxy)
        plain = gzip.decompress(live.body) if live.get("content-encoding") else live.body
        assert (live.status, plain, live.complete) == (200, body, True)
    upstream.always(answer(packed + b"trash", headers=[("content-encoding", "gzip")]))
    (await WAYS["missed"].ask(proxy)).assert_problem(502, "upstream_broken")


async def test_an_unmarked_answer_without_a_word_is_a_cut_where_there_must_be_one(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    for kind, body in (("application/json", b""), ("text/event-stream", b""), ("text/event-stream", b": ping\n\n")):
        upstream.always(unmarked(kind, body))
        for way in (WAYS["not stored"], WAYS["missed"]):
            live = await way.ask(proxy)
            assert live.status == 502 or not live.complete
        assert (await WAYS["passed through"].ask(proxy)).complete


async def test_a_cut_after_words_that_look_like_the_end_is_seen(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    chunk = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "\ndata: [DONE]\n"}}]}
    upstream.always(unmarked("text/event-stream", b"data: " + encode(chunk) + b"\n\n"))
    for way in WAYS.values():
        assert not (await way.ask(proxy, stream=True)).complete


TRAILERS = b"x-trailer: late\r\nauthorization: Bearer sk-other\r\nx-cacheproxy-namespace: other\r\n"


@pytest.mark.parametrize("target", ["/v1/files", "/v1/chat/completions"])
async def test_trailers_are_no_headers(proxy: Proxy, upstream: ScriptedUpstream, key: str, target: str) -> None:
    """A trailer that became a header would make the request another caller's, after it was let in."""
    data = encode(chat())
    lines = [f"POST {target} HTTP/1.1", "host: x", f"authorization: Bearer {key}", "transfer-encoding: chunked"]
    whole = "\r\n".join([*lines, "", ""]).encode() + b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(data), data, TRAILERS)
    async with await Connection.open(proxy.url) as connection:
        for at in range(0, len(whole), 40):
            connection.send(whole[at : at + 40])
            await asyncio.sleep(0)
        assert (await connection.read_response()).status == 200
        connection.send(request_bytes("GET", "/v1/models", [("authorization", f"Bearer {key}")]))
        assert (await connection.read_response("GET")).status == 200
    first = upstream.requests[0]
    assert first.body == data
    assert first.header("authorization") == f"Bearer {key}"
    assert first.header("x-trailer") is None


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_the_one_answer_that_is_not_passed_on(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, status: int
) -> None:
    upstream.always([Send(head(status, [("location", "http://127.0.0.1:9/"), ("content-length", "0")]))])
    for target in ("/v1/files", "/v1/chat/completions"):
        live = await proxy.ask(chat(), key=key, headers={"cache-control": "no-store"}, target=target)
        live.assert_problem(502, "upstream_broken")


async def test_a_method_that_http_does_not_know_is_refused_cleanly(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    (await proxy.call("BREW", "/v1/files")).assert_problem(400, "invalid_http")
    assert upstream.calls == 0


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_a_cut_at_every_byte_breaks_the_callers_connection(
    proxy: Proxy, upstream: ScriptedUpstream, framing: str, way: Way
) -> None:
    body = b"".join(SSE)[:150]
    whole = body if framing == "length" else b"40\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (body[:64], 86, body[64:])
    mark = ("content-length", str(len(body))) if framing == "length" else ("transfer-encoding", "chunked")
    start = head(200, [("content-type", "text/event-stream"), mark])
    for length in range(len(whole)):
        upstream.always([Send(start + whole[:length]), CUT])
        live = await way.ask(proxy)
        assert (live.status, live.complete) == (200, False)
        assert body.startswith(live.body)
        assert len(live.body) >= min(length - 10, len(body))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_a_line_of_ten_megabytes_passes(proxy: Proxy, upstream: ScriptedUpstream, way: Way) -> None:
    body = b"data: " + b"x" * (10 * 1024 * 1024) + b"\n\ndata: [DONE]\n\n"
    for _ in range(2):
        upstream.always(stream(body[:70_001], body[70_001:]))
        live = await way.ask(proxy, stream=True)
        assert (live.body == body, live.complete) == (True, True)


COOKIES = [("set-cookie", "session=mine; Path=/"), ("Set-Cookie", "b=2")]


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["whole", "streamed"])
async def test_a_cookie_is_never_replayed(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, form: dict[str, Any]
) -> None:
    whole, parts = openai_wire.default_answer(chat(**form), 1)
    hold = asyncio.Event()
    if form:
        upstream.always(stream(parts[0], Hold(hold), *parts[1:], headers=COOKIES))
    else:
        upstream.always([Hold(hold), *answer(whole, headers=COOKIES)])
    leader = asyncio.create_task(proxy.ask(chat(**form), key=key))
    await upstream.received(1)
    follower = asyncio.create_task(proxy.ask(chat(**form), key=key))
    if not form:
        await asyncio.sleep(0.1)
    else:
        await eventually(lambda: upstream.calls == 1, "one call for both")
        await asyncio.sleep(0.1)
    hold.set()
    led, followed = await asyncio.gather(leader, follower)
    assert upstream.calls == 1
    assert led.all("set-cookie") == [value for _, value in COOKIES]
    assert (followed.get("x-cacheproxy-coalesced"), followed.all("set-cookie")) == ("true", [])
    await eventually_true(lambda: proxy.cached(chat(**form), key=key), "the answer is kept")
    hit = await proxy.ask(chat(**form), key=key)
    assert (hit.outcome, hit.all("set-cookie")) == ("hit", [])
    assert b"session=mine" not in hit.body + followed.body
