"""The edge and bodies: not JSON, too large, compressed, or of messages that two parsers read differently."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.support.edge import BODY, CHAT, LENGTH, START, assert_alive, assert_refused
from tests.support.openai_wire import encode
from tests.support.proxy import Proxy, chat, proxy_settings, started
from tests.support.rawhttp import Connection, Truncated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")
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
