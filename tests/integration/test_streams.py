"""A stream reaches its caller byte for byte, and a broken one never looks whole."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from cacheproxy.dialect.chat import ChatDialect
from tests.support.openai_wire import DONE, chunk, completion, delta, encode, event, events
from tests.support.proxy import Answered, chat, openai_error
from tests.support.upstream import CUT, RESET, Cut, Hold, Step, Wait, answer, stream

if TYPE_CHECKING:
    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "Voilà, c'est 東京 🗼."
EVENTS = events(TEXT, include_usage=True)
STREAM = b"".join(EVENTS)
ASK = chat(stream=True, stream_options={"include_usage": True})
AT_ONCE = 16
SHORT = b"".join(
    [
        event({"id": "x", "model": "m", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Où?"}}]}),
        b": a comment\n\n",
        event({"id": "x", "model": "m", "choices": [{"index": 0, "delta": {"content": " 🗼"}}]}),
        event({"id": "x", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
        event({"id": "x", "model": "m", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}),
        DONE,
    ]
)
"""A whole, storable stream, short enough to be cut at every byte."""


def assert_cut(answered: Answered, expected: bytes) -> None:
    """The caller got exactly the bytes before the cut and can tell that there should be more."""
    if not expected and answered.status == 502:
        openai_error(answered)
        return
    assert (answered.status, answered.body, answered.complete) == (200, expected, False)


@pytest.mark.parametrize("cut", [CUT, RESET], ids=["fin", "rst"])
async def test_a_cut_at_every_byte_is_seen_and_nothing_is_kept(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, cut: Cut
) -> None:
    upstream.always(lambda request: stream(SHORT[: int(request.header("x-cut") or 0)], cut))

    async def one(length: int) -> None:
        headers = {"x-cut": str(length), "x-cacheproxy-namespace": f"cut-{length % AT_ONCE}"}
        answered = await proxy.ask(ASK, key=key, headers=headers)
        assert answered.outcome in ("miss", None), length
        assert_cut(answered, SHORT[:length])

    for start in range(0, len(SHORT), AT_ONCE):
        await asyncio.gather(*map(one, range(start, min(start + AT_ONCE, len(SHORT)))))
    assert upstream.calls >= len(SHORT)
    upstream.always(None)
    await proxy.settled(key)
    for lane in range(AT_ONCE):
        assert not await proxy.cached(ASK, key=key, headers={"x-cacheproxy-namespace": f"cut-{lane}"})


async def test_the_stream_that_is_cut_would_be_kept_whole(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    upstream.always(stream(SHORT))
    assert (await proxy.fill(ASK, key=key)).body == SHORT


@pytest.mark.parametrize("cut", [CUT, RESET], ids=["fin", "rst"])
async def test_a_cut_body_is_seen_at_every_tenth_byte(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, cut: Cut
) -> None:
    whole = encode(completion(TEXT))
    for length in range(0, len(whole), 10):
        upstream.always([*answer(whole[:length], length=len(whole)), cut])
        live = await proxy.ask(chat(), key=key)
        if live.status == 200:
            assert (live.body, live.complete) == (whole[:length], False)
        else:
            live.assert_problem(502)
    upstream.always(None)
    await proxy.settled(key)
    assert not await proxy.cached(chat(), key=key)


def pieces(size: int) -> list[bytes | Step]:
    """The stream in pieces that arrive one by one, wherever that splits lines and characters."""
    parts: list[bytes | Step] = []
    for at in range(0, len(STREAM), size):
        parts += [STREAM[at : at + size], Wait(0)]
    return parts


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, len(STREAM)])
async def test_chunk_boundaries_mean_nothing(proxy: Proxy, upstream: ScriptedUpstream, key: str, size: int) -> None:
    upstream.always(stream(*pieces(size)))
    live = await proxy.fill(ASK, key=key)
    assert (live.body, live.complete) == (STREAM, True)
    hit = await proxy.ask(ASK, key=key)
    assert (hit.outcome, hit.content) == ("hit", TEXT)


async def test_an_event_is_passed_on_before_the_next_comes(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    holds = [asyncio.Event() for _ in EVENTS]
    steps: list[bytes | Step] = []
    for release, one in zip(holds, EVENTS, strict=True):
        steps += [Hold(release), one]
    upstream.always(stream(*steps))
    connection = await proxy.post(ASK, key=key)
    holds[0].set()
    exchange = await connection.exchange()
    for position, release in enumerate(holds[1:], start=1):
        assert await exchange.until(b"".join(EVENTS[:position])) == b"".join(EVENTS[:position])
        release.set()
    assert (await exchange.rest()).complete
    exchange.leave()


def joined(ending: str) -> bytes:
    return STREAM.replace(b"\n", ending.encode())


LEGAL: dict[str, bytes] = {
    "CRLF": joined("\r\n"),
    "CR only": joined("\r"),
    "comments": b": hello\n\n" + b": ping\n\n".join(EVENTS),
    "comments inside events": STREAM.replace(b"data: {", b": ping\ndata: {"),
    "event names": STREAM.replace(b"data: {", b"event: message\ndata: {"),
    "ids and retry": b"retry: 10\n\n" + STREAM.replace(b"data: {", b"id: 1\ndata: {"),
    "no space after the colon": STREAM.replace(b"data: ", b"data:"),
    "BOM": b"\xef\xbb\xbf" + STREAM,
    "more blank lines": STREAM.replace(b"\n\n", b"\n\n\n\n"),
    "spaced JSON": STREAM.replace(b'":', b'" : '),
}


@pytest.mark.parametrize("told", LEGAL.values(), ids=LEGAL)
async def test_an_unusual_but_legal_stream_is_passed_on_as_it_is(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, told: bytes
) -> None:
    upstream.always(stream(told))
    live = await proxy.ask(ASK, key=key)
    assert (live.status, live.body, live.complete) == (200, told, True)
    upstream.always(None)
    await proxy.settled(key)
    again = await proxy.ask(ASK, key=key)
    assert again.outcome == "miss" or again.content == TEXT


GARBAGE: dict[str, bytes] = {
    "bad JSON": STREAM.replace(b'"delta":{', b'"delta":', 1),
    "not JSON": b"data: hello\n\n" + STREAM,
    "no data field": STREAM.replace(b"data: {", b"datum: {"),
    "only text": b"Service temporarily unavailable",
    "not UTF-8": STREAM.replace(b"Voil", b"V\xffil"),
    "half a character": STREAM.replace("à".encode(), b"\xc3"),
    "lone surrogate": STREAM.replace(b"Voil", b"\\ud800"),
    "NaN": STREAM.replace(b'"index":0', b'"index":NaN'),
    "NUL": STREAM.replace(b"Voil", b"V\x00il"),
    "an array": STREAM.replace(DONE, b"data: []\n\n" + DONE),
    "a number": STREAM.replace(DONE, b"data: 1\n\n" + DONE),
    "index a string": STREAM.replace(b'"index":0', b'"index":"0"'),
    "index negative": STREAM.replace(b'"index":0', b'"index":-1'),
    "index huge": STREAM.replace(b'"index":0', b'"index":999999999'),
    "delta a string": event(chunk([{"index": 0, "delta": "x", "finish_reason": None}])) + STREAM,
    "content a number": event(chunk([delta({"content": 1})])) + STREAM,
    "unfinished last event": STREAM.removesuffix(b"\n\n"),
    "deep": event({"a": 1}).replace(b"1", b"[" * 2000 + b"]" * 2000) + STREAM,
}


@pytest.mark.parametrize("told", GARBAGE.values(), ids=GARBAGE)
async def test_a_garbled_stream_is_passed_on_and_forgotten(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, told: bytes
) -> None:
    upstream.always(stream(told))
    live = await proxy.ask(ASK, key=key)
    assert (live.status, live.body, live.complete) == (200, told, True)
    upstream.always(None)
    await proxy.settled(key)
    assert not await proxy.cached(ASK, key=key)


async def test_a_line_of_ten_megabytes_is_not_kept(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    line = event(chunk([delta({"content": "x" * (10 * 1024 * 1024)})]))
    upstream.always(stream(EVENTS[0], line, *EVENTS[1:]))
    live = await proxy.ask(ASK, key=key)
    if live.status == 200 and live.complete:
        assert live.body == EVENTS[0] + line + b"".join(EVENTS[1:])
    upstream.always(None)
    await proxy.settled(key)
    assert not await proxy.cached(ASK, key=key)


async def test_an_endless_line_is_cut_at_the_cap(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    upstream.always(stream(EVENTS[0], b"data: ", *[b"x" * 1_000_000] * 24, CUT))
    live = await proxy.ask(ASK, key=key)
    assert not live.complete
    assert (await proxy.call("GET", "/healthz")).status == 200


async def test_what_is_large_is_written_beside_the_event_loop_and_is_whole(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrote: list[tuple[str, bool]] = []

    def watched(name: str) -> None:
        written = getattr(ChatDialect, name)

        def write(*given: Any, **named: Any) -> Any:
            wrote.append((name, threading.current_thread() is threading.main_thread()))
            return written(*given, **named)

        monkeypatch.setattr(ChatDialect, name, write)

    watched("request")
    watched("render")
    text = "Voilà 東京. " * 20_000
    upstream.always(lambda request: answer(completion("Short." if b"short" in request.body else text)))
    for question in ("short", "long " * 40_000):
        await proxy.fill(chat(question), key=key)
        hit = await proxy.ask(chat(question, stream=True), key=key)
        assert (hit.outcome, hit.content) == ("hit", "Short." if question == "short" else text)
    assert list(dict.fromkeys(wrote)) == [("request", True), ("render", True), ("request", False), ("render", False)]
