"""What the cache has no part in goes through as if the proxy were not there."""

from __future__ import annotations

import asyncio
import gzip
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.openai_wire import MODEL, completion, encode
from tests.support.polling import eventually
from tests.support.proxy import QUESTION, answered, chat
from tests.support.rawhttp import Connection, request_bytes
from tests.support.upstream import CUT, RESET, Hold, Send, answer, head, stream

if TYPE_CHECKING:
    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

BINARY = bytes(range(256)) * 300
MULTIPART = (
    b'--b0undary\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n'
    b"content-type: audio/wav\r\n\r\n" + BINARY + b"\r\n--b0undary--\r\n"
)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "target",
    [
        "/v1/files",
        "/v1/files/file-abc/content",
        "/v1/fine_tuning/jobs?limit=2&after=x&metadata[a]=1&limit=3",
        "/v1/odd/%2Fslash/%e2%82%ac/a+b?q=%20+%2B&empty=&flag",
        "/v1/vector_stores/vs_1/files/?x=1",
        "/v1/responses/resp_1",
        "/v1/chat/completions/chatcmpl-1",
    ],
)
async def test_method_and_target_go_through(proxy: Proxy, upstream: ScriptedUpstream, method: str, target: str) -> None:
    body = None if method == "GET" else b'{ "spaced":  1 }'
    response = await proxy.call(method, target, {"content-type": "application/json"}, body)
    request = upstream.requests[0]
    assert (request.method, request.target, request.body) == (method, target, body or b"")
    assert (response.status, response.body, response.complete) == (200, body or b"", True)
    assert upstream.calls == 1


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
async def test_other_methods_of_a_cached_route_go_through(
    proxy: Proxy, upstream: ScriptedUpstream, method: str
) -> None:
    response = await proxy.call(method, "/v1/chat/completions?limit=1")
    assert response.status == 200
    assert (upstream.requests[0].method, upstream.requests[0].target) == (method, "/v1/chat/completions?limit=1")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data; boundary=b0undary", MULTIPART),
        ("application/octet-stream", BINARY),
        ("application/json", b'{"a": 1,   "a": 2, "n": 1e999, "u": "\xff"}'),
        ("application/json", gzip.compress(b"{}")),
        ("text/plain", b""),
    ],
    ids=["multipart", "binary", "odd json", "compressed", "empty"],
)
async def test_bodies_go_through_byte_for_byte(
    proxy: Proxy, upstream: ScriptedUpstream, content_type: str, body: bytes
) -> None:
    response = await proxy.call("POST", "/v1/audio/transcriptions", {"content-type": content_type}, body)
    assert upstream.requests[0].body == body
    assert upstream.requests[0].header("content-type") == content_type
    assert (response.body, response.get("content-type")) == (body, content_type)


async def test_a_chunked_upload_goes_through(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    async with await Connection.open(proxy.url) as connection:
        connection.send(b"POST /v1/files HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for piece in (b"one ", b"two ", BINARY):
            connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            await asyncio.sleep(0)
        connection.send(b"0\r\n\r\n")
        response = await connection.read_response()
    assert response.body == upstream.requests[0].body == b"one two " + BINARY


async def test_a_large_upload_and_download_go_through(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    body = os.urandom(6 * 1024 * 1024)
    response = await proxy.call("POST", "/v1/files", {"content-type": "application/octet-stream"}, body)
    assert upstream.requests[0].body == body
    assert response.body == body


async def test_a_six_megabyte_chat_is_answered_and_cached(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    body = chat(f"{QUESTION} " * (6 * 1024 * 1024 // len(QUESTION)))
    live = await proxy.fill(body, key=key)
    hit = await proxy.ask(body, key=key)
    assert (hit.tier, hit.content) == ("exact", live.content)
    assert upstream.requests[0].json() == body


async def test_hop_by_hop_request_headers_stop_here(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    hops = {
        "connection": "keep-alive, x-private",
        "x-private": "1",
        "keep-alive": "timeout=5",
        "te": "trailers",
        "proxy-authorization": "Basic eDp5",
        "proxy-connection": "keep-alive",
    }
    ends = {"authorization": f"Bearer {key}", "x-custom": "kept", "openai-beta": "assistants=v2", "accept": "a/b"}
    for target in ("/v1/files", "/v1/chat/completions"):
        upstream.reset()
        await proxy.call("POST", target, {**hops, **ends, "content-type": "application/json"}, encode(chat()))
        request = upstream.requests[0]
        gone = ("x-private", "keep-alive", "te", "proxy-authorization", "proxy-connection")
        assert {name: request.header(name) for name in gone} == dict.fromkeys(gone)
        assert {name: request.header(name) for name in ends} == ends
        assert request.header("host") == f"127.0.0.1:{upstream.port}"


async def test_hop_by_hop_response_headers_stop_here(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    hops = [
        ("connection", "x-private"),
        ("x-private", "1"),
        ("keep-alive", "timeout=77"),
        ("proxy-authenticate", "Basic"),
    ]
    for target in ("/v1/files", "/v1/chat/completions"):
        upstream.play(answer(completion("Yes."), headers=[*hops, ("x-custom", "kept")]))
        response = await proxy.ask(chat(), key=key, target=target)
        assert response.get("x-custom") == "kept"
        assert response.get("x-private") is None
        assert response.get("proxy-authenticate") is None
        assert "77" not in (response.get("keep-alive") or "")


@pytest.mark.parametrize("target", ["/v1/files", "/v1/chat/completions"])
async def test_two_cookies_stay_two(proxy: Proxy, upstream: ScriptedUpstream, key: str, target: str) -> None:
    cookies = ["a=1; Expires=Wed, 09 Jun 2100 10:18:14 GMT; Path=/", "b=2; HttpOnly"]
    upstream.play(answer(completion("Yes."), headers=[("set-cookie", cookie) for cookie in cookies]))
    assert (await proxy.ask(chat(), key=key, target=target)).all("set-cookie") == cookies


async def test_no_cookie_of_one_caller_reaches_the_backend_for_another(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, other_key: str
) -> None:
    upstream.play(answer(completion("Yes."), headers=[("set-cookie", "session=mine; Path=/")]))
    await proxy.ask(chat(), key=key)
    await proxy.ask(chat(), key=other_key)
    assert upstream.requests[1].header("cookie") is None


@pytest.mark.parametrize("status", [200, 201, 202, 204, 301, 304, 400, 404, 409, 418, 429, 500, 503])
async def test_any_status_but_a_redirect_goes_through(proxy: Proxy, upstream: ScriptedUpstream, status: int) -> None:
    bodiless = status in (204, 304)
    whole = [Send(head(status, [("x-mark", "1")]))] if bodiless else answer(b"body", status=status)
    upstream.always(whole)
    response = await proxy.call("GET", "/v1/files/f")
    if status == 301:
        response.assert_problem(502)
    else:
        assert (response.status, response.body) == (status, b"" if bodiless else b"body")


async def test_another_routes_stream_goes_through_as_it_comes(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    release = asyncio.Event()
    first, second = b"event: thread.created\ndata: {}\n\n", b"event: done\r\ndata: [DONE]\r\n\r\n: bye"
    upstream.play(stream(first, Hold(release), second))
    async with await Connection.open(proxy.url) as connection:
        connection.send(request_bytes("POST", "/v1/threads/runs", [], b"{}"))
        exchange = await connection.exchange()
        assert await exchange.until(b"\n\n") == first
        release.set()
        response = await exchange.rest()
    assert (response.body, response.complete) == (first + second, True)
    assert response.get("content-type") == "text/event-stream; charset=utf-8"


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("begun", [True, False], ids=["answer begun", "no head yet"])
async def test_a_caller_who_leaves_another_route_cancels_the_backend(
    proxy: Proxy, upstream: ScriptedUpstream, begun: bool, reset: bool
) -> None:
    never, event = asyncio.Event(), b"data: 1\n\n"
    upstream.play(stream(event, Hold(never)) if begun else [Hold(never)])
    connection = await Connection.open(proxy.url)
    connection.send(request_bytes("POST", "/v1/responses", [], b"{}"))
    request = await upstream.received(1)
    if begun:
        await (await connection.exchange()).until(event)
    connection.leave(reset=reset)
    await eventually(lambda: request.client_left_s is not None, "the backend is cancelled", within_s=2.0)


async def test_another_routes_stream_that_breaks_does_not_end_cleanly(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    upstream.play(stream(b"data: 1\n\n", b"data: 2", CUT))
    response = await proxy.call("POST", "/v1/threads/runs", body=b"{}")
    assert (response.body, response.complete) == (b"data: 1\n\ndata: 2", False)


async def test_compressed_answers_reach_the_caller_readable(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    plain = b"the very same text " * 100
    upstream.play(answer(gzip.compress(plain), headers=[("content-encoding", "gzip")]))
    response = await proxy.call("GET", "/v1/files/f", {"accept-encoding": "gzip"})
    coded = response.get("content-encoding")
    assert coded in (None, "gzip")
    assert (gzip.decompress(response.body) if coded else response.body) == plain


async def test_a_compressed_chat_answer_is_cached_readable(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    body = gzip.compress(encode(completion("Like so.")))
    upstream.play(answer(body, headers=[("content-encoding", "gzip"), ("vary", "accept-encoding")]))
    live = await proxy.ask(chat(), key=key, headers={"accept-encoding": "gzip"})
    coded = live.get("content-encoding")
    plain = gzip.decompress(live.body) if coded else live.body
    assert plain == encode(completion("Like so."))
    await proxy.settled(key)
    hit = await proxy.ask(chat(), key=key)
    assert (hit.outcome, hit.get("content-encoding"), hit.content) == ("hit", None, "Like so.")


async def test_the_model_list_goes_through(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    response = await proxy.call("GET", "/v1/models", {"authorization": f"Bearer {key}"})
    assert [model["id"] for model in response.json()["data"]] == [MODEL]
    assert upstream.requests[0].header("authorization") == f"Bearer {key}"


async def test_head_has_no_body(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    async with await Connection.open(proxy.url) as connection:
        connection.send(request_bytes("HEAD", "/v1/models") + request_bytes("GET", "/v1/models"))
        first = await connection.read_response("HEAD")
        second = await connection.read_response("GET")
    assert (first.status, first.body, second.status) == (200, b"", 200)
    assert [request.method for request in upstream.requests] == ["HEAD", "GET"]


async def test_options_goes_through(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    upstream.play(answer(b"", headers=[("allow", "GET, HEAD, OPTIONS")]))
    response = await proxy.call("OPTIONS", "/v1/models")
    assert (response.status, response.get("allow")) == (200, "GET, HEAD, OPTIONS")


async def test_a_body_is_forwarded_as_it_came_when_nothing_is_kept(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    body = b'{\n  "model" : "gpt-4o-mini", "x_vendor": {"b":1, "a":[1.0, 1e2, null]},\n'
    body += b'  "messages": [{"role": "user", "content": "h\\u00e9llo \xe2\x82\xac"}], "stream": false }\n'
    assert (await proxy.ask(body, key=key, headers={"cache-control": "no-store"})).status == 200
    assert upstream.requests[0].body == body


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["whole", "streamed"])
async def test_unknown_fields_reach_the_backend_unchanged(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, form: dict[str, Any]
) -> None:
    odd: dict[str, Any] = {
        "top_k": 40,
        "vendor": {"deep": [{"er": 1.5}, None, True, "x"]},
        "big": 12345678901234567890,
        "tiny": 1e-300,
    }
    body = chat(metadata={"a": "b"}, **odd, **form)
    await proxy.ask(body, key=key)
    sent = upstream.requests[0].json()
    sent.pop("stream_options", None)
    assert sent == body


async def test_passed_through_routes_are_never_cached(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    for _ in range(2):
        response = await proxy.ask(chat(), key=key, target="/v1/moderations")
        assert response.status == 200
        assert response.outcome in (None, "bypass")
    assert upstream.calls == 2


async def test_an_odd_but_legal_answer_is_the_callers(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    upstream.play([Send(b"HTTP/1.1 200 Quite Fine\r\nx-empty:\r\nX-Case: Kept\r\ncontent-length: 2\r\n\r\nok")])
    response = await proxy.call("GET", "/v1/files/f")
    assert (response.status, response.body) == (200, b"ok")
    assert (response.get("x-empty"), response.get("x-case")) == ("", "Kept")


async def test_an_answer_that_ends_with_its_connection_goes_through(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    upstream.play([Send(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nuntil the end"), CUT])
    response = await proxy.call("GET", "/v1/files/f")
    assert answered(response).body == b"until the end"


@pytest.mark.parametrize("target", ["/v1/files?", "/v1/chat/completions?", "/v1/files?a=?", "/v1/odd/%3F?"])
async def test_an_empty_query_keeps_its_mark(proxy: Proxy, upstream: ScriptedUpstream, key: str, target: str) -> None:
    for value in ("plain", "caf\xe9"):
        headers = {"cache-control": "no-store", "x-value": value}
        connection = await Connection.open(proxy.url)
        lines = [f"POST {target} HTTP/1.1", "host: x", f"authorization: Bearer {key}", "content-length: 2"]
        lines += [f"{name}: {one}" for name, one in headers.items()]
        connection.send("\r\n".join([*lines, "", "{}"]).encode("latin-1"))
        await connection.read_response()
        connection.leave()
        assert (upstream.requests[-1].target, upstream.requests[-1].header("x-value")) == (target, value)


async def test_a_long_header_line_of_an_answer_goes_through(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    long = "y" * 60_000
    upstream.play(answer(b"ok", headers=[("x-long", long), *((f"x-{at}", "1") for at in range(200))]))
    response = await proxy.call("GET", "/v1/files/f")
    assert (response.status, response.get("x-long"), response.get("x-199")) == (200, long, "1")


@pytest.mark.parametrize("target", ["/v1/files/f", "/v1/chat/completions"])
async def test_a_reset_never_looks_like_an_unmarked_end(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, target: str
) -> None:
    begun = asyncio.Event()
    for kind in ("audio/mpeg", "application/json", "text/event-stream"):
        begun.clear()
        start = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n\r\n".encode()
        upstream.always([Send(start + b'{"half": 1}\n\n'), Hold(begun), RESET])
        headers = {"cache-control": "no-store"}
        exchange = await proxy.begin(chat(), key=key, headers=headers, target=target)
        await exchange.until(b"half")
        begun.set()
        assert not (await exchange.rest()).complete
        exchange.leave()
