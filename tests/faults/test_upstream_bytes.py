"""Bytes between proxy and backend: headers arrive as they were sent, and no answer reaches another's request."""

from __future__ import annotations

import asyncio
import gzip
from typing import TYPE_CHECKING

import pytest

from tests.support.openai_wire import completion, encode, events
from tests.support.polling import eventually
from tests.support.proxy import UNRELATED, chat
from tests.support.rawhttp import send_raw
from tests.support.upstream import CUT, Hold, Send, Wait, answer, head

if TYPE_CHECKING:
    from tests.support.proxy import Proxy
    from tests.support.upstream import Received, ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

TARGETS = pytest.mark.parametrize("target", ["/v1/files/x", "/v1/chat/completions"], ids=["passed through", "cached"])


def request(target: str, headers: list[bytes], body: bytes = b"{}") -> bytes:
    lines = [
        b"POST " + target.encode() + b" HTTP/1.1",
        b"host: proxy.test",
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        *headers,
    ]
    return b"\r\n".join([*lines, b"", body])


def values(received: Received, name: str) -> list[bytes]:
    return [value.encode("latin-1") for key, value in received.headers if key.lower() == name]


@TARGETS
@pytest.mark.parametrize("value", [b"caf\xe9", b"caf\xc3\xa9", b"\xff\xfe \x80", "日本".encode(), b"plain"])
async def test_header_bytes_reach_the_backend_as_they_were_sent(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, target: str, value: bytes
) -> None:
    body = encode(chat(target + repr(value)))
    headers = [b"authorization: Bearer " + key.encode(), b"x-odd: " + value, b"x-odd: second", b"x-more: \xe9"]
    response = await send_raw(proxy.url, request(target, headers, body))
    assert response.status == 200
    received = upstream.requests[-1]
    assert values(received, "x-odd") == [value, b"second"]
    assert values(received, "x-more") == [b"\xe9"]
    assert received.body == body


async def test_a_large_body_behind_odd_headers_arrives_whole(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    body = b"\xe9\r\n\r\n" * 300_000
    raw = request("/v1/files/x", [b"x-odd: \xe9"], body).replace(b"application/json", b"application/octet-stream")
    assert (await send_raw(proxy.url, raw)).status == 200
    assert upstream.requests[-1].body == body
    assert values(upstream.requests[-1], "x-odd") == [b"\xe9"]
    assert (await proxy.call("GET", "/v1/files/y")).status == 200


async def test_a_query_in_latin_1_reaches_the_backend_as_it_was_sent(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    raw = b"GET /v1/files?name=caf\xe9&x=%C3%A9&x=2 HTTP/1.1\r\nhost: proxy.test\r\n\r\n"
    response = await send_raw(proxy.url, raw, "GET")
    if response.status == 200:
        assert upstream.requests[-1].target.encode("latin-1") == b"/v1/files?name=caf\xe9&x=%C3%A9&x=2"
    else:
        assert response.status == 400


@pytest.mark.parametrize("value", [b"caf\xe9", "日本".encode(), b"plain"])
async def test_header_bytes_reach_the_caller_as_the_backend_sent_them(
    proxy: Proxy, upstream: ScriptedUpstream, value: bytes
) -> None:
    first = head(200, [("content-length", "2")])[:-2]
    upstream.play([Send(first + b"x-odd: " + value + b"\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n\r\nok")])
    response = await send_raw(proxy.url, request("/v1/files/x", []))
    assert [one.encode("latin-1") for one in response.all("x-odd")] == [value]
    assert response.all("set-cookie") == ["a=1", "b=2"]


async def test_a_control_byte_in_a_header_is_refused_and_blames_no_backend(
    proxy: Proxy, upstream: ScriptedUpstream
) -> None:
    for byte in (b"\x01", b"\x7f", b"\x00"):
        assert (await send_raw(proxy.url, request("/v1/files/x", [b"x-odd: a" + byte + b"b"]))).status == 400
    assert upstream.calls == 0


@pytest.mark.parametrize("late", [False, True], ids=["at once", "while the connection is idle"])
async def test_an_answer_nobody_asked_for_reaches_nobody(proxy: Proxy, upstream: ScriptedUpstream, late: bool) -> None:
    later, forged = asyncio.Event(), answer(b"FORGED")[0]
    upstream.play([*answer(b"first"), *([Hold(later)] if late else []), forged])
    assert (await proxy.call("GET", "/v1/files/1")).body == b"first"
    later.set()
    await eventually(lambda: upstream.requests[0].answered, "the backend has sent what nobody asked for")
    await asyncio.sleep(0.05)  # it has no other sign
    upstream.always(answer(b"honest"))
    for number in range(3):
        assert (await proxy.call("GET", f"/v1/files/{number}")).body == b"honest"


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, br", "x-unknown"])
async def test_an_encoding_nobody_asked_for_goes_through_labelled_and_is_not_kept(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, coding: str
) -> None:
    whole = encode(completion("looks readable"))
    upstream.always(answer(whole, headers=[("content-encoding", coding)]))
    live = await proxy.ask(chat(), key=key, headers={"accept-encoding": "br, zstd"})
    assert upstream.requests[0].header("accept-encoding") == "identity"
    assert (live.status, live.body, live.get("content-encoding")) == (200, whole, coding)
    upstream.always(None)
    await proxy.settled(key)
    assert not await proxy.cached(chat(), key=key)


@pytest.mark.parametrize(
    "line", [b"HTTP/1.1 099 X", b"HTTP/1.1 101 Switching Protocols", b"HTTP/1.1 300 Choose", b"HTTP/1.1 600 X"]
)
@pytest.mark.parametrize("no_store", [True, False])
async def test_a_status_that_is_no_final_answer_is_a_502(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, line: bytes, no_store: bool
) -> None:
    upstream.always([Send(line + b"\r\ncontent-length: 0\r\n\r\n")])
    headers = {"cache-control": "no-store"} if no_store else {}
    (await proxy.ask(chat(), key=key, headers=headers)).assert_problem(502, "upstream_broken")


async def test_a_transfer_coding_nobody_asked_for_is_a_502(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    packed = gzip.compress(encode(completion("Hello.")))
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: gzip, chunked\r\n\r\n"
    upstream.always([Send(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(packed), packed))])
    (await proxy.ask(chat(), key=key)).assert_problem(502, "upstream_broken")


@pytest.mark.parametrize("streamed", [True, False])
async def test_broken_chunks_break_the_answer_at_once(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, streamed: bool
) -> None:
    first = events("Hello.")[0] if streamed else b'{"id":'
    kind = b"text/event-stream" if streamed else b"application/json"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % kind
    upstream.always([Send(head + b"%x\r\n%b\r\n" % (len(first), first)), Wait(0.05), Send(b"zz\r\nhello\r\n"), CUT])
    async with asyncio.timeout(5):
        answered = await proxy.ask(chat(stream=streamed), key=key)
    assert answered.status == 502 or not answered.complete
    assert not await proxy.cached(chat(), key=key)


@pytest.mark.parametrize("end", [b"data: [DONE]\n", b"data: [DONE]"])
async def test_an_unmarked_stream_that_said_done_is_whole(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, end: bytes
) -> None:
    body = b"".join(events("Hello."))[: -len(b"data: [DONE]\n\n")] + end
    upstream.always(
        [Send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + body), CUT]
    )
    answered = await proxy.ask(chat(stream=True), key=key)
    assert (answered.status, answered.complete, answered.body) == (200, True, body)


@pytest.mark.parametrize("by", [-5, 5])
async def test_a_wrong_length_is_never_taken_for_a_whole_answer(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, by: int
) -> None:
    whole = encode(completion("one two three"))
    upstream.always([*answer(whole, length=len(whole) + by), CUT])
    live = await proxy.ask(chat(), key=key)
    assert live.status == 502 or not live.complete or live.body == whole[:by]
    upstream.always(None)
    await proxy.settled(key)
    assert not await proxy.cached(chat(), key=key)
    assert (await proxy.ask(chat(UNRELATED), key=key)).status == 200


async def test_a_compressed_answer_that_was_cut_is_not_kept(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    packed = gzip.compress(encode(completion("one two three")))
    upstream.always(answer(packed[:-4], headers=[("content-encoding", "gzip")]))
    live = await proxy.ask(chat(), key=key)
    assert live.status == 502 or not live.complete
    upstream.always(None)
    await proxy.settled(key)
    assert not await proxy.cached(chat(), key=key)
