"""The edge and what callers ask for: paths, odd requests, HTTP's corners, names that would be headers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.edge import BODY, CHAT, LENGTH, START, assert_alive, assert_refused
from tests.support.openai_wire import encode
from tests.support.proxy import Answered, Proxy, answered, chat, openai_error
from tests.support.rawhttp import Connection, request_bytes

if TYPE_CHECKING:
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")
JSON = ("content-type", "application/json")


async def exchange(proxy: Proxy, data: bytes, method: str = "POST") -> Answered:
    async with await Connection.open(proxy.url) as connection:
        connection.send(data)
        return answered(await connection.read_response(method))


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
