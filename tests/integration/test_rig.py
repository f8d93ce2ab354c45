"""The rig itself: a test can only be as strict as its scripted backend and its readers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.support import openai_wire
from tests.support.cachestatus import parse_cache_status
from tests.support.polling import eventually
from tests.support.proxy import QUESTION, chat
from tests.support.rawhttp import Connection, ProtocolViolation, Truncated, request_bytes, send_raw
from tests.support.sse import BadStream, fold, read_events
from tests.support.upstream import CUT, RESET, Cut, Hold, ScriptedUpstream, Send, answer, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHAT = "/v1/chat/completions"


@pytest.fixture
async def backend() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as upstream:
        yield upstream


def ask(**fields: object) -> bytes:
    return request_bytes("POST", CHAT, [], openai_wire.encode(chat(QUESTION, **fields)))


async def test_default_answers_differ_by_call_and_agree_between_forms(backend: ScriptedUpstream) -> None:
    whole = (await send_raw(backend.url, ask())).json()
    streamed = await send_raw(backend.url, ask(stream=True, stream_options={"include_usage": True}))
    folded = fold(read_events(streamed.body))
    assert whole["choices"][0]["message"]["content"] == f"Answer 1 to: {QUESTION}"
    assert folded["choices"][0]["message"]["content"] == f"Answer 2 to: {QUESTION}"
    assert folded["usage"] == whole["usage"]
    assert backend.calls == 2


async def test_usage_is_in_a_stream_only_where_asked(backend: ScriptedUpstream) -> None:
    silent = read_events((await send_raw(backend.url, ask(stream=True))).body)
    told = read_events((await send_raw(backend.url, ask(stream=True, stream_options={"include_usage": True}))).body)
    assert not any("usage" in chunk for chunk in silent)
    assert [chunk["usage"] for chunk in told[:-1]] == [None] * (len(told) - 1)
    assert told[-1]["choices"] == []
    assert told[-1]["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("cut", [CUT, RESET], ids=["fin", "rst"])
async def test_a_cut_stream_gives_the_bytes_before_it_and_no_clean_end(backend: ScriptedUpstream, cut: Cut) -> None:
    backend.play(stream(b"data: one\n\n", b"data: tw", cut))
    response = await send_raw(backend.url, ask())
    assert (response.body, response.complete) == (b"data: one\n\ndata: tw", False)


async def test_a_client_that_leaves_is_noticed(backend: ScriptedUpstream) -> None:
    backend.play(stream(b"data: one\n\n", Hold(asyncio.Event())))
    async with await Connection.open(backend.url) as connection:
        connection.send(ask())
        exchange = await connection.exchange()
        await exchange.until(b"one")
    request = await backend.received(1)
    await eventually(lambda: request.client_left_s is not None, "the upstream sees its client leave")
    assert not request.answered


async def test_requests_on_one_connection_are_answered_in_order(backend: ScriptedUpstream) -> None:
    release = asyncio.Event()
    backend.play([Hold(release), *answer({"n": 1})], answer({"n": 2}))
    async with await Connection.open(backend.url) as connection:
        connection.send(ask() + ask())
        await backend.received(1)
        release.set()
        assert [(await connection.read_response()).json() for _ in range(2)] == [{"n": 1}, {"n": 2}]


async def test_chunked_requests_are_read_whole(backend: ScriptedUpstream) -> None:
    head = b"POST /v1/files HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    response = await send_raw(backend.url, head + b"3\r\nabc\r\n5\r\ndefgh\r\n0\r\n\r\n")
    assert response.body == b"abcdefgh"


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200\n\n\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: 1\r\n b\r\n\r\n",
    ],
    ids=["status line", "header name", "folded header"],
)
async def test_the_client_refuses_what_is_not_http(backend: ScriptedUpstream, raw: bytes) -> None:
    backend.play([Send(raw), CUT])
    with pytest.raises(ProtocolViolation):
        await send_raw(backend.url, ask())


async def test_the_client_reports_an_answer_without_a_head(backend: ScriptedUpstream) -> None:
    backend.play([Send(b"HTTP/1.1 200 OK\r\n"), CUT])
    with pytest.raises(Truncated):
        await send_raw(backend.url, ask())


@pytest.mark.parametrize(
    "body",
    [b"", b"data: {}\n\n", b"data: {}\n\ndata: [DONE]\n", b"data: 1\n\ndata: [DONE]\n\n", b": x\n\ndata: [DONE]\n\n"],
    ids=["empty", "no DONE", "unfinished", "not an object", "comment"],
)
def test_the_stream_reader_refuses(body: bytes) -> None:
    with pytest.raises(BadStream):
        read_events(body)


def test_cache_status_is_read_member_by_member() -> None:
    value = 'Origin; fwd=miss; stored, "edge"; hit;ttl=-4, cacheproxy; hit; ttl=30; detail="exact;\\"x\\""'
    origin, edge, ours = parse_cache_status(value)
    assert (origin.forwarded, origin.parameters["stored"]) == ("miss", True)
    assert (edge.cache, edge.hit, edge.parameters["ttl"]) == ("edge", True, -4)
    assert ours.parameters["detail"] == 'exact;"x"'


@pytest.mark.parametrize(
    "value",
    ["", "a; hit; fwd=miss", "a; fwd=maybe", "a; ttl=soon", "a; ttl", "a,", "a; hit=yes", 'a; detail="x', "a b"],
)
def test_cache_status_that_the_rfc_does_not_allow_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_cache_status(value)
