"""Any bytes at the front door: a refusal is an OpenAI-shaped 4xx, never a 5xx, and the next caller is served."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.support.openai_wire import encode
from tests.support.proxy import Answered, Proxy, answered, chat, openai_error, proxy_settings, started
from tests.support.rawhttp import Connection, Response, Truncated, request_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
JSON = ("content-type", "application/json")
MAX_BODY = 256 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def small(module_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    """A proxy that takes small bodies only."""
    settings = proxy_settings(
        module_upstream.url,
        tmp_path_factory.mktemp("data"),
        server={"max_body_bytes": MAX_BODY, "max_upload_bytes": 2 * MAX_BODY},
        store={"url": "memory://"},
    )
    async with started(settings) as live:
        yield live


async def assert_alive(proxy: Proxy, key: str) -> None:
    assert (await proxy.ask(chat("Are you still there?"), key=key)).status == 200


def assert_refused(response: Response, *statuses: int) -> dict[str, Any]:
    assert response.status in (statuses or (400,)), (response.status, response.body[:300])
    return openai_error(response)


async def exchange(proxy: Proxy, data: bytes, method: str = "POST") -> Answered:
    async with await Connection.open(proxy.url) as connection:
        connection.send(data)
        return answered(await connection.read_response(method))


# Row 1-4: bodies that are not JSON as RFC 8259 has it.

TEXT = encode(chat("MARK"))


def marked(replacement: bytes) -> bytes:
    return TEXT.replace(b"MARK", replacement)


def deep(levels: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    nested = opening * levels + b"1" + closing * levels
    return TEXT[:-1] + b',"vendor":' + nested + b"}"


BAD_JSON: dict[str, bytes] = {
    "invalid UTF-8": marked(b"\xff\xfe"),
    "UTF-8 cut short": marked(b"\xe2\x82"),
    "overlong UTF-8": marked(b"\xc0\xaf"),
    "UTF-8 of a surrogate": marked(b"\xed\xa0\x80"),
    "UTF-8 above Unicode": marked(b"\xf4\x90\x80\x80"),
    "invalid UTF-8 in a key": TEXT[:-1] + b',"\xff":1}',
    "65 arrays": deep(65),
    "1,000 arrays": deep(1000),
    "100,000 arrays": deep(100_000),
    "1,000 objects": deep(1000, b'{"a":', b"}"),
    "30,000 unclosed arrays": b"[" * 30_000,
    "lone high surrogate": marked(rb"\ud800"),
    "lone low surrogate": marked(rb"\udc00"),
    "swapped surrogates": marked(rb"\udc00\ud800"),
    "lone surrogate in a key": TEXT[:-1] + rb',"\ud800":1}',
    "NaN": TEXT[:-1] + b',"seed":NaN}',
    "Infinity": TEXT[:-1] + b',"seed":-Infinity}',
    "1e999": TEXT[:-1] + b',"top_p":1e999}',
    "-1e999": TEXT[:-1] + b',"vendor":[-1e999]}',
    "integer of 5,000 digits": TEXT[:-1] + b',"seed":' + b"7" * 5000 + b"}",
    "byte order mark": b"\xef\xbb\xbf" + TEXT,
    "UTF-16": TEXT.decode().encode("utf-16"),
    "single quotes": TEXT.replace(b'"', b"'"),
    "trailing comma": TEXT[:-1] + b",}",
    "comment": b"/* hi */" + TEXT,
    "two values": TEXT + TEXT,
    "cut short": TEXT[:-5],
    "control character": marked(b"\x01"),
    "leading zero": TEXT[:-1] + b',"seed":007}',
    "empty": b"",
    "space": b"   ",
    "word": b"hello",
    "array": b"[" + TEXT + b"]",
    "string": b'"hello"',
    "null": b"null",
    "number": b"1",
}


@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON)
async def test_a_body_that_is_not_a_json_object_is_a_400(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, body: bytes
) -> None:
    response = await proxy.ask(body, key=key)
    response.assert_problem(400)
    assert upstream.calls == 0
    await assert_alive(proxy, key)


async def test_a_lone_surrogate_is_named(proxy: Proxy, key: str) -> None:
    assert "surrogate" in (await proxy.ask(marked(rb"\ud800"), key=key)).assert_problem(400)["message"]


@pytest.mark.parametrize(
    "text",
    ["\x00", "\ufffe", "\u202eabc", "\U0001f5fc", "\u200b\u200d", "e\u0301", "\u00e9", "\u2028", "\x7f", "a\r\nb"],
    ids=ascii,
)
async def test_odd_but_legal_text_reaches_the_backend_as_it_is(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, text: str
) -> None:
    live = await proxy.ask(chat(f"say {text} please"), key=key)
    assert live.content.endswith(f"say {text} please")
    assert upstream.requests[0].json()["messages"][0]["content"] == f"say {text} please"


@pytest.mark.parametrize("levels", [1, 30, 60])
async def test_ordinary_nesting_is_served(proxy: Proxy, upstream: ScriptedUpstream, key: str, levels: int) -> None:
    assert (await proxy.ask(deep(levels), key=key)).status == 200
    assert upstream.requests[0].body.count(b"[") > levels


async def test_brackets_inside_text_are_not_nesting(proxy: Proxy, key: str) -> None:
    assert (await proxy.ask(chat('[{"' * 5000 + "\\"), key=key)).status == 200


async def test_a_repeated_key_means_the_same_to_cache_and_backend(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    twice = TEXT[:-1] + b',"messages":[{"role":"user","content":"What is the boiling point of lead?"}]}'
    live = await proxy.ask(twice, key=key)
    if live.status == 400:
        live.assert_problem(400)
        return
    await proxy.settled(key)
    body = upstream.requests[0].json()
    assert live.content.endswith(body["messages"][0]["content"])
    assert upstream.requests[0].body.count(b'"messages"') == 1
    again = await proxy.ask(body, key=key)
    assert (again.outcome, again.content) == ("hit", live.content)


# Row 5: size.


def chunked(pieces: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("target", [CHAT, "/v1/files"])
async def test_a_declared_body_over_the_limit_is_a_413(
    small: Proxy, upstream: ScriptedUpstream, key: str, target: str
) -> None:
    head = f"POST {target} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n"
    async with await Connection.open(small.url) as connection:
        connection.send(head.encode() + b'{"model":')
        assert_refused(await connection.read_response(), 413)
        await connection.wait_end()
    await assert_alive(small, key)


@pytest.mark.parametrize("target", [CHAT, "/v1/files"])
async def test_a_chunked_body_over_the_limit_is_a_413(
    small: Proxy, upstream: ScriptedUpstream, key: str, target: str
) -> None:
    head = f"POST {target} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    async with await Connection.open(small.url) as connection:
        connection.send(head.encode() + chunked([b"x" * 65536] * 12))
        assert_refused(await connection.read_response(), 413)
        await connection.wait_end()
    await assert_alive(small, key)


async def test_a_body_at_the_limit_is_read(small: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    empty = len(encode(chat("")))
    at, over = chat("a" * (MAX_BODY - empty)), chat("a" * (MAX_BODY - empty + 1))
    assert (await small.ask(at, key=key)).status == 200
    (await small.ask(over, key=key)).assert_problem(413, "request_too_large")


# Row 6: encodings.


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(TEXT)),
        ("x-gzip", gzip.compress(TEXT)),
        ("deflate", zlib.compress(TEXT)),
        ("br", b"\x0b\x02\x80{}\x03"),
        ("zstd", b"\x28\xb5\x2f\xfd"),
        ("GZIP", gzip.compress(TEXT)),
        ("gzip, gzip", gzip.compress(gzip.compress(TEXT))),
        ("gzip", gzip.compress(b"a" * 30_000_000, 1)),
        ("nonsense", TEXT),
    ],
    ids=["gzip", "x-gzip", "deflate", "br", "zstd", "upper case", "twice", "bomb", "unknown"],
)
async def test_a_compressed_request_is_a_415_that_says_what_is_read(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, coding: str, body: bytes
) -> None:
    response = await proxy.ask(body, key=key, headers={"content-encoding": coding})
    response.assert_problem(415, "unsupported_content_encoding")
    assert response.get("accept-encoding") == "identity"
    assert upstream.calls == 0


async def test_identity_is_no_compression(proxy: Proxy, key: str) -> None:
    assert (await proxy.ask(chat(), key=key, headers={"content-encoding": "identity"})).status == 200


# Row 7: messages that two HTTP parsers could read differently.

START = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = encode(chat())
LENGTH = b"content-length: %d\r\n" % len(BODY)
SMUGGLED: dict[str, bytes] = {
    "length and chunks": START + LENGTH + b"transfer-encoding: chunked\r\n\r\n" + chunked([BODY]),
    "chunks and length": START + b"transfer-encoding: chunked\r\n" + LENGTH + b"\r\n" + chunked([BODY]),
    "two different lengths": START + LENGTH + b"content-length: 3\r\n\r\n" + BODY,
    "two lengths in one": START + b"content-length: 3, 4\r\n\r\n" + BODY,
    "negative length": START + b"content-length: -1\r\n\r\n" + BODY,
    "signed length": START + b"content-length: +5\r\n\r\n" + BODY,
    "hexadecimal length": START + b"content-length: 0x10\r\n\r\n" + BODY,
    "length with a space": START + b"content-length: 1 0\r\n\r\n" + BODY,
    "length over 64 bits": START + b"content-length: 99999999999999999999999\r\n\r\n" + BODY,
    "bad chunk size": START + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "negative chunk size": START + b"transfer-encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    "chunk size over 64 bits": START + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\n{}\r\n0\r\n\r\n",
    "chunk without its end": START + b"transfer-encoding: chunked\r\n\r\n2\r\n{}0\r\n\r\n\r\n",
    "chunked twice": START + b"transfer-encoding: chunked, chunked\r\n\r\n" + chunked([BODY]),
    "chunked is not last": START + b"transfer-encoding: chunked, identity\r\n\r\n" + chunked([BODY]),
    "unknown coding": START + b"transfer-encoding: xchunked\r\n\r\n" + chunked([BODY]),
    "folded header": START + b"x-a: 1\r\n 2\r\n" + LENGTH + b"\r\n" + BODY,
    "control byte in a header": START + b"x-a: a\x01b\r\n" + LENGTH + b"\r\n" + BODY,
    "NUL in a header": START + b"x-a: a\x00b\r\n" + LENGTH + b"\r\n" + BODY,
    "CR in a header": START + b"x-a: a\rb\r\n" + LENGTH + b"\r\n" + BODY,
    "bare LF": (START + LENGTH).replace(b"\r\n", b"\n") + b"\n" + BODY,
    "bare LF once": START + b"x-a: 1\n" + LENGTH + b"\r\n" + BODY,
    "space before the colon": START + b"x-a : 1\r\n" + LENGTH + b"\r\n" + BODY,
    "space in a name": START + b"x a: 1\r\n" + LENGTH + b"\r\n" + BODY,
    "empty name": START + b": 1\r\n" + LENGTH + b"\r\n" + BODY,
    "no colon": START + b"nonsense\r\n" + LENGTH + b"\r\n" + BODY,
    "first header folded": START.replace(b"host", b" host") + LENGTH + b"\r\n" + BODY,
    "unknown version": START.replace(b"HTTP/1.1", b"HTTP/9.9") + LENGTH + b"\r\n" + BODY,
    "no version": b"POST /v1/chat/completions\r\n\r\n",
    "no target": b"POST HTTP/1.1\r\nhost: x\r\n\r\n",
    "space in the target": START.replace(b"chat/", b"chat /") + LENGTH + b"\r\n" + BODY,
    "control byte in the target": START.replace(b"chat/", b"chat\x01/") + LENGTH + b"\r\n" + BODY,
    "lower-case method": START.replace(b"POST", b"post") + LENGTH + b"\r\n" + BODY,
    "unknown method": START.replace(b"POST", b"FROBNICATE") + LENGTH + b"\r\n" + BODY,
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 60,
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "rubbish": b"\x00\xff\x10 rubbish \r\n\r\n",
    "spaces": b"    \r\n\r\n",
}


@pytest.mark.parametrize("data", SMUGGLED.values(), ids=SMUGGLED)
async def test_an_ambiguous_message_is_refused_and_the_connection_closed(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, data: bytes
) -> None:
    async with await Connection.open(proxy.url) as connection:
        connection.send(data)
        assert_refused(await connection.read_response(), 400, 405)
        await connection.wait_end()
        assert connection.ended, "the rest was answered as another request"
    assert upstream.calls == 0
    await assert_alive(proxy, key)


async def test_a_request_cut_short_leaves_nothing_behind(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    whole = START + LENGTH + b"\r\n" + BODY
    for length in range(1, len(whole), 5):
        async with await Connection.open(proxy.url) as connection:
            connection.send(whole[:length])
            connection.end_sending()
            try:
                response = await connection.read_response()
            except Truncated:
                continue
            assert 400 <= response.status < 500, length
    assert upstream.calls == 0
    await assert_alive(proxy, key)


# Row 8: too much of everything.

FLOODS: dict[str, tuple[bytes, int]] = {
    "5,000 headers": (START + b"".join(b"x-%d: 1\r\n" % n for n in range(5000)) + LENGTH + b"\r\n" + BODY, 431),
    "101 headers": (START + b"".join(b"x-%d: 1\r\n" % n for n in range(101)) + LENGTH + b"\r\n" + BODY, 431),
    "header of 1 MB": (START + b"x-a: " + b"a" * 1_000_000 + b"\r\n" + LENGTH + b"\r\n" + BODY, 431),
    "header of 33 KB": (START + b"x-a: " + b"a" * 33 * 1024 + b"\r\n" + LENGTH + b"\r\n" + BODY, 431),
    "header name of 40 KB": (START + b"x" * 40_000 + b": 1\r\n" + LENGTH + b"\r\n" + BODY, 431),
    "headers without end": (START + b"x-a: 1\r\n" * 100_000, 431),
    "URL of 64 KB": (START.replace(b"completions", b"completions?" + b"a" * 65536) + LENGTH + b"\r\n" + BODY, 414),
    "URL without end": (b"POST /" + b"a" * 2_000_000, 414),
}


@pytest.mark.parametrize(("data", "status"), FLOODS.values(), ids=FLOODS)
async def test_a_flood_before_the_body_is_refused(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, data: bytes, status: int
) -> None:
    async with await Connection.open(proxy.url) as connection:
        connection.send(data)
        assert_refused(await connection.read_response(), status)
        await connection.wait_end()
    assert upstream.calls == 0
    await assert_alive(proxy, key)


async def test_trailers_without_end_are_refused(proxy: Proxy, key: str) -> None:
    head = START + b"transfer-encoding: chunked\r\n\r\n" + chunked([BODY])[:-2]
    async with await Connection.open(proxy.url) as connection:
        connection.send(head + b"x-trailer: 1\r\n" * 100_000 + b"\r\n")
        assert (await connection.read_response()).status in (200, 400, 431)
    await assert_alive(proxy, key)


# Row 11: paths.

NOWHERE = [
    "/",
    "/v1",
    "/v1beta/models",
    "/V1/models",
    "/v2/chat/completions",
    "/chat/completions",
    "/admin/v1/stats",
    "/admin/v1/config",
    "/metrics",
    "//v1/models",
    "/%76%31/models",
    "/v1/../admin/v1/stats",
    "/v1/../metrics",
    "/v1/%2e%2e/metrics",
    "/v1/%2E%2e%2fmetrics",
    "/v1/..%2fmetrics",
    "/v1/files/../../metrics",
    "/v1/./../metrics",
    "/v1\\..\\metrics",
    "/docs",
    "/schema/openapi.json",
    "/favicon.ico",
    "*",
]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("target", NOWHERE)
async def test_there_is_no_other_route_and_no_way_round(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, target: str, method: str
) -> None:
    response = await proxy.call(method, target, {"authorization": f"Bearer {key}", **dict([JSON])}, b"{}")
    assert_refused(response, 400, 404)
    assert upstream.calls == 0


@pytest.mark.parametrize("target", ["/healthz", "/readyz"])
@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH"])
async def test_a_wrong_method_is_a_405(proxy: Proxy, upstream: ScriptedUpstream, target: str, method: str) -> None:
    response = await proxy.call(method, target, body=b"{}")
    response.assert_problem(405, "method_not_allowed")
    assert "GET" in (response.get("allow") or "")
    assert upstream.calls == 0


@pytest.mark.parametrize("target", ["/healthz", "/readyz"])
async def test_health_is_told_to_anyone(proxy: Proxy, target: str) -> None:
    assert [(await proxy.call(method, target)).status for method in ("GET", "HEAD")] == [200, 200]


@pytest.mark.parametrize("target", [f"{CHAT}/", "/v1//chat/completions", "/v1/chat/Completions"])
async def test_a_path_like_a_cached_one_is_another_route(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, target: str
) -> None:
    for _ in range(2):
        response = await proxy.ask(chat(), key=key, target=target)
        assert response.outcome in (None, "bypass")
        assert response.status in (200, 404)
    assert {request.target for request in upstream.requests} <= {target}


# Row 12: requests that are JSON but odd.

ODD: dict[str, Any] = {
    "empty object": {},
    "messages a string": {"model": "m", "messages": "hello"},
    "messages null": {"model": "m", "messages": None},
    "no messages": {"model": "m", "messages": []},
    "message a string": {"model": "m", "messages": ["hello"]},
    "message empty": {"model": "m", "messages": [{}]},
    "role a number": {"model": "m", "messages": [{"role": 1, "content": "x"}]},
    "role unknown": {"model": "m", "messages": [{"role": "wizard", "content": "x"}]},
    "content a number": {"model": "m", "messages": [{"role": "user", "content": 5}]},
    "content null": {"model": "m", "messages": [{"role": "user", "content": None}]},
    "content parts of strings": {"model": "m", "messages": [{"role": "user", "content": ["a", 1, None]}]},
    "content part without text": {"model": "m", "messages": [{"role": "user", "content": [{"type": "text"}]}]},
    "content part type a list": {"model": "m", "messages": [{"role": "user", "content": [{"type": ["text"]}]}]},
    "model a number": chat() | {"model": 5},
    "model absent": {"messages": [{"role": "user", "content": "x"}]},
    "model a list": chat() | {"model": ["m"]},
    "max_tokens zero": chat(max_tokens=0),
    "max_tokens negative": chat(max_tokens=-1),
    "temperature a string": chat(temperature="hot"),
    "temperature true": chat(temperature=True),
    "temperature huge": chat(temperature=1e308),
    "stream a string": chat(stream="yes"),
    "stream a number": chat(stream=1),
    "stream_options a list": chat(stream=True, stream_options=[]),
    "stream_options without stream": chat(stream_options={"include_usage": True}),
    "include_usage a string": chat(stream=True, stream_options={"include_usage": "yes"}),
    "n zero": chat(n=0),
    "n a string": chat(n="2"),
    "tools an object": chat(tools={}),
    "tools of numbers": chat(tools=[1, 2]),
    "functions a string": chat(functions="f"),
    "response_format a string": chat(response_format="json"),
    "modalities a string": chat(modalities="text"),
    "logprobs a string": chat(logprobs="yes"),
    "unknown fields": chat() | {"": 1, "x" * 1000: {}, "__proto__": None, "constructor": []},
    "10,000 messages": chat() | {"messages": [{"role": "user", "content": "x"}] * 10_000},
    "1,000 tools": chat(tools=[{"type": "function", "function": {"name": f"f{n}"}} for n in range(1000)]),
    "user an object": chat(user={"id": 1}),
    "metadata deep": chat(metadata={"a": {"b": {"c": [1, [2, [3]]]}}}),
}


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
async def test_an_odd_request_is_forwarded_as_it_is_or_refused(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, body: dict[str, Any]
) -> None:
    first = await proxy.ask(body, key=key)
    assert first.status in (200, 400)
    if upstream.calls == 0:
        first.assert_problem(400)
    else:
        sent = upstream.requests[0].json()
        assert {name: sent.get(name) for name in body if name != "stream_options"} == {
            name: value for name, value in body.items() if name != "stream_options"
        }
    again = await proxy.ask(body, key=key)
    assert again.status in (200, 400)
    await assert_alive(proxy, key)


# Row 13: HTTP's corners.


async def test_a_client_that_asks_first_is_told_to_go_on(proxy: Proxy, key: str) -> None:
    async with await Connection.open(proxy.url) as connection:
        connection.send(
            START + b"authorization: Bearer %b\r\nexpect: 100-continue\r\n" % key.encode() + LENGTH + b"\r\n"
        )
        assert (await connection.read_head()).status == 100
        connection.send(BODY)
        assert (await connection.read_response()).status == 200


async def test_pipelined_requests_are_answered_in_order(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    async with await Connection.open(proxy.url) as connection:
        asked = [f"Question number {number}?" for number in range(5)]
        headers = [JSON, ("authorization", f"Bearer {key}"), ("x-cacheproxy-tier", "exact")]
        connection.send(b"".join(request_bytes("POST", CHAT, headers, encode(chat(text))) for text in asked))
        answers = [answered(await connection.read_response()) for _ in asked]
    assert [one.content.partition(" to: ")[2] for one in answers] == asked


async def test_one_connection_serves_many_requests(proxy: Proxy, key: str) -> None:
    request = request_bytes("POST", CHAT, [JSON, ("authorization", f"Bearer {key}")], BODY)
    refused = request_bytes("POST", CHAT, [JSON], b"{")
    async with await Connection.open(proxy.url) as connection:
        statuses = []
        for data in (request, refused, request, refused, request):
            connection.send(data)
            statuses.append((await connection.read_response()).status)
    assert statuses == [200, 400, 200, 400, 200]


async def test_http_1_0_is_answered_and_closed(proxy: Proxy, key: str) -> None:
    async with await Connection.open(proxy.url) as connection:
        connection.send(START.replace(b"HTTP/1.1", b"HTTP/1.0") + LENGTH + b"\r\n" + BODY)
        response = await connection.read_response()
        assert (response.status, response.get("transfer-encoding")) == (200, None)
        await connection.wait_end()


async def test_connection_close_is_honoured(proxy: Proxy, key: str) -> None:
    async with await Connection.open(proxy.url) as connection:
        connection.send(START + b"connection: close\r\n" + LENGTH + b"\r\n" + BODY)
        assert (await connection.read_response()).status == 200
        await connection.wait_end()


UPGRADES = {
    "websocket": [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
    ],
    "h2c": [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AAMAAABk")],
}


@pytest.mark.parametrize("headers", UPGRADES.values(), ids=UPGRADES)
@pytest.mark.parametrize("target", [CHAT, "/v1/realtime", "/healthz"])
async def test_an_upgrade_is_declined(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, target: str, headers: list[tuple[str, str]]
) -> None:
    response = await exchange(proxy, request_bytes("GET", target, headers), "GET")
    assert response.status != 101
    assert response.status < 500
    if response.status >= 400:
        openai_error(response)
    for request in upstream.requests:
        assert request.header("upgrade") is None
    await assert_alive(proxy, key)


async def test_no_tunnel_is_opened(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    data = f"CONNECT 127.0.0.1:{upstream.port} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n"
    response = await exchange(proxy, data.encode(), "CONNECT")
    assert_refused(response, 400, 404, 405, 501)
    assert upstream.calls == 0


@pytest.mark.parametrize("target", ["/healthz", "/nowhere"])
async def test_head_and_options_never_fail(proxy: Proxy, target: str) -> None:
    for method in ("HEAD", "OPTIONS"):
        assert (await exchange(proxy, request_bytes(method, target), method)).status < 500


async def test_a_refused_head_request_has_no_body(proxy: Proxy) -> None:
    async with await Connection.open(proxy.url) as connection:
        connection.send(request_bytes("HEAD", "/nowhere") + request_bytes("GET", "/nowhere"))
        assert (await connection.read_response("HEAD")).status == 404
        assert_refused(await connection.read_response("GET"), 404)


# Row 16: what a caller names must not become a header.

INJECTED = [
    "x\r\nx-evil: 1",
    "x\nx-evil: 1",
    "x\rx-evil: 1",
    "x\x00y",
    "gpt\u2028x-evil",
    "模型",
    '"; hit; x="',
    "a,b;c",
]


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", INJECTED, ids=ascii)
async def test_a_model_name_cannot_inject_headers(proxy: Proxy, key: str, model: str, form: dict[str, Any]) -> None:
    for _ in range(2):
        live = await proxy.ask(chat(**form) | {"model": model}, key=key)
        assert live.status in (200, 400)
        assert live.get("x-evil") is None
        if live.status == 200:
            assert live.cache_status.cache == "cacheproxy"
            assert (live.get("x-cacheproxy-model") or "").isascii()
            assert live.whole["model"] == model
        await proxy.settled(key)


@pytest.mark.parametrize("name", ["namespace", "category", "tags", "nonsense"])
@pytest.mark.parametrize("value", ['"; hit; x="', "a;b", "caf\u00e9", "\t", "a" * 5000, "../../etc"])
async def test_a_control_cannot_inject_headers(proxy: Proxy, key: str, name: str, value: str) -> None:
    live = await proxy.ask(chat(), key=key, headers={f"x-cacheproxy-{name}": value})
    if live.status == 200:
        assert live.cache_status.cache == "cacheproxy"
    else:
        live.assert_problem(400)


async def test_a_refusal_shows_nothing_of_the_request(proxy: Proxy, key: str) -> None:
    canary = "canary-5f1c"
    broken = encode(chat(canary))[:-1]
    for body in (broken, encode([canary]), encode(chat(canary, cache={canary: 1})) + b"]"):
        live = await proxy.ask(body, key=key)
        live.assert_problem(400)
        shown = live.body + repr(live.headers).encode()
        assert canary.encode() not in shown
        assert key.encode() not in shown
