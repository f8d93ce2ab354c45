"""What an audit with clients and backends of its own broke, once each."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.support.openai_wire import completion, events
from tests.support.proxy import QUESTION, answered, chat, openai_error
from tests.support.rawhttp import request_bytes, send_raw
from tests.support.upstream import CUT, Send, answer

if TYPE_CHECKING:
    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream

JSON = [("content-type", "application/json")]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
@pytest.mark.parametrize("target", ["/v1/chat/completions", "/v1/embeddings"])
async def test_an_offered_upgrade_is_ignored_and_the_request_served(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, protocol: str, target: str
) -> None:
    body = msgspec.json.encode(chat())
    headers = {
        "authorization": f"Bearer {key}",
        "connection": "Upgrade, HTTP2-Settings",
        "upgrade": protocol,
        "http2-settings": "AAMAAABkAAQCAAAAAAIAAAAA",
        "content-type": "application/json",
    }
    response = await send_raw(proxy.url, request_bytes("POST", target, headers.items(), body))
    assert response.status == 200
    assert upstream.requests[0].body == body


async def test_connect_is_refused(proxy: Proxy) -> None:
    response = await send_raw(proxy.url, b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\n\r\n")
    assert openai_error(response)["code"] == "method_not_allowed"
    assert response.status == 405


@pytest.mark.parametrize(
    ("head", "status"),
    {
        "two codings": (b"host: a\r\ntransfer-encoding: gzip, chunked\r\n", 400),
        "no host": (b"content-length: 0\r\n", 400),
        "two hosts": (b"host: a\r\nhost: b\r\ncontent-length: 0\r\n", 400),
    }.values(),
)
async def test_a_head_that_front_proxies_read_differently_is_refused(proxy: Proxy, head: bytes, status: int) -> None:
    response = await send_raw(proxy.url, b"POST /v1/embeddings HTTP/1.1\r\n" + head + b"\r\n")
    assert openai_error(response)
    assert response.status == status


@pytest.mark.parametrize(
    "body", [b'{"text":"\xff"}', b'{"text":"a","request":' + b"[" * 1200 + b"]" * 1200 + b"}", b'{"tekst":"a"}', b""]
)
async def test_the_admin_port_refuses_bad_bodies_in_shape(proxy: Proxy, body: bytes) -> None:
    data = request_bytes("POST", "/admin/v1/explain", JSON, body)
    response = await send_raw(proxy.admin_url, data)
    assert response.status == 400
    assert openai_error(response)


async def test_explain_takes_a_whole_request_under_the_contracts_name(proxy: Proxy, key: str) -> None:
    body = msgspec.json.encode({"request": chat(), "key": key})
    data = request_bytes("POST", "/admin/v1/explain", JSON, body)
    response = await send_raw(proxy.admin_url, data)
    assert (response.status, response.json()["outcome"]) == (200, "miss")


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["whole", "streamed"])
async def test_refusals_of_a_cached_route_say_what_the_cache_did(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, form: dict[str, Any]
) -> None:
    upstream.always([CUT])
    broken = await proxy.ask(chat(**form), key=key)
    wanted = await proxy.ask(chat(**form), key=key, headers={"cache-control": "only-if-cached"})
    malformed = answered(await proxy.call("POST", "/v1/chat/completions", {"authorization": f"Bearer {key}"}, b"{"))
    assert [one.status for one in (broken, wanted, malformed)] == [502, 504, 400]
    assert [one.outcome for one in (broken, wanted, malformed)] == ["miss", "miss", "bypass"]
    for one in (broken, wanted, malformed):
        assert one.cache_status.cache == "cacheproxy"
        assert "hit" not in one.cache_status.parameters
        assert one.get("x-cacheproxy-coalesced") == "false"


async def test_an_unmarked_end_without_the_streams_own_is_a_break(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    told = b"".join(events("Cut here."))
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    upstream.play([Send(head + told[:-20]), CUT], [Send(head + told), CUT])
    cut = await proxy.ask(chat(stream=True), key=key)
    whole = await proxy.ask(chat(stream=True), key=key)
    assert (cut.complete, cut.body) == (False, told[:-20])
    assert (whole.complete, whole.outcome, whole.content) == (True, "miss", "Cut here.")


async def test_a_near_question_that_is_not_near_enough_is_a_plain_miss(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    upstream.always(answer(completion("Yes.")))
    await proxy.fill(chat(), key=key)
    far = await proxy.ask(chat("How do I cancel my subscription?"), key=key)
    assert far.cache_status.parameters["fwd"] == "miss"


@pytest.mark.quiet
async def test_a_large_body_does_not_hold_up_the_others(proxy: Proxy, key: str) -> None:
    parts = [{"type": "text", "text": "x"}] * 50_000
    body = msgspec.json.encode({**chat(QUESTION), "messages": [{"role": "user", "content": parts}]})
    large = asyncio.create_task(proxy.call("POST", "/v1/chat/completions", {"authorization": f"Bearer {key}"}, body))
    slowest_s = 0.0
    while not large.done():
        began = time.perf_counter()
        await asyncio.sleep(0)
        slowest_s = max(slowest_s, time.perf_counter() - began)
    assert (await large).status == 200
    assert slowest_s < 1.0  # generous: the figure is in docs/benchmarks.md
