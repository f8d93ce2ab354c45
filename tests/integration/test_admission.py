"""Only a whole, ordinary answer is kept; every other one reaches its caller and is forgotten."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.openai_wire import DONE, chunk, chunks, completion, delta, encode, event, events
from tests.support.proxy import PARAPHRASE, chat
from tests.support.upstream import CUT, RESET, Send, Step, answer, head, stream

if TYPE_CHECKING:
    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

ERROR = {"error": {"message": "overloaded", "type": "server_error", "param": None, "code": None}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
TOLD = "Just so."


def choice(message: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    told = {"role": "assistant", "content": TOLD, "refusal": None, **(message or {})}
    return {"index": 0, "message": told, "logprobs": None, "finish_reason": "stop", **fields}


def body(*choices: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return completion(TOLD, choices=list(choices), **fields)


def without(source: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in source.items() if key != name}


UNFINISHED = ["length", "content_filter", "tool_calls", "function_call", "eos", "", None]

BODIES: dict[str, Any] = {
    **{f"finish {reason!r}": body(choice(finish_reason=reason)) for reason in UNFINISHED},
    "finish absent": body(without(choice(), "finish_reason")),
    "finish is a number": body(choice(finish_reason=1)),
    "second choice cut short": body(choice(), choice(index=1, finish_reason="length")),
    "no choices": body(),
    "choices null": completion(TOLD, choices=None),
    "choices absent": without(completion(TOLD), "choices"),
    "choices an object": completion(TOLD, choices={"0": choice()}),
    "choice null": completion(TOLD, choices=[None]),
    "message absent": body(without(choice(), "message")),
    "content null": body(choice({"content": None})),
    "content empty": body(choice({"content": ""})),
    "content absent": body(choice() | {"message": {"role": "assistant"}}),
    "content a number": body(choice({"content": 42})),
    "tool calls": body(choice({"tool_calls": [CALL]}, finish_reason="tool_calls")),
    "tool calls that claim to stop": body(choice({"tool_calls": [CALL]})),
    "function call that claims to stop": body(choice({"function_call": CALL["function"]})),
    "refusal": body(choice({"content": None, "refusal": "I cannot help with that."})),
    "error object": ERROR,
    "error beside choices": completion(TOLD, error=ERROR["error"]),
    "an array": [completion(TOLD)],
    "null": None,
    "empty object": {},
}

ODD_BODIES: dict[str, tuple[bytes, str]] = {
    "HTML": (b"<html><body>Bad Gateway</body></html>", "text/html"),
    "HTML said to be JSON": (b"<html></html>", "application/json"),
    "JSON said to be HTML": (encode(completion(TOLD)), "text/html"),
    "JSON said to be text": (encode(completion(TOLD)), "text/plain"),
    "empty": (b"", "application/json"),
    "half of it": (encode(completion(TOLD))[:-20], "application/json"),
    "two of it": (encode(completion(TOLD)) * 2, "application/json"),
    "not UTF-8": (encode(completion(TOLD)).replace(b"Just", b"J\xffst"), "application/json"),
    "NaN": (encode(completion(TOLD)).replace(b'"index":0', b'"index":NaN'), "application/json"),
    "deep": (b'{"choices":' * 2000 + b"1" + b"}" * 2000, "application/json"),
}


async def assert_forgotten(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    """Nothing may answer the question or its paraphrase: checked after a later answer has been kept."""
    upstream.always(None)
    await proxy.settled(key)
    assert not await proxy.cached(chat(), key=key)
    assert not await proxy.cached(chat(PARAPHRASE), key=key)


@pytest.mark.parametrize("told", BODIES.values(), ids=BODIES)
async def test_an_unusual_body_reaches_the_caller_and_is_forgotten(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, told: Any
) -> None:
    upstream.always(answer(told))
    live = await proxy.ask(chat(), key=key)
    assert (live.status, live.json(), live.complete) == (200, told, True)
    assert "stored" not in live.cache_status.parameters
    await assert_forgotten(proxy, upstream, key)


@pytest.mark.parametrize(("told", "content_type"), ODD_BODIES.values(), ids=ODD_BODIES)
async def test_a_body_that_is_no_completion_is_passed_on_and_forgotten(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, told: bytes, content_type: str
) -> None:
    upstream.always(answer(told, content_type=content_type))
    live = await proxy.ask(chat(), key=key)
    assert (live.status, live.body, live.get("content-type")) == (200, told, content_type)
    await assert_forgotten(proxy, upstream, key)


@pytest.mark.parametrize("status", [201, 202, 203, 206])
async def test_only_status_200_is_kept(proxy: Proxy, upstream: ScriptedUpstream, key: str, status: int) -> None:
    upstream.always(answer(completion(TOLD), status=status))
    assert (await proxy.ask(chat(), key=key)).status == status
    await assert_forgotten(proxy, upstream, key)


START, WORDS = chunks(TOLD)[0], chunks(TOLD)[1:-1]
HEAD = [event(START), *map(event, WORDS)]


def ended(**fields: Any) -> list[bytes]:
    return [*HEAD, event(chunk([{"index": 0, "delta": {}, "finish_reason": "stop", **fields}])), DONE]


STREAMS: dict[str, list[bytes]] = {
    **{f"finish {reason!r}": ended(finish_reason=reason) for reason in UNFINISHED},
    "no finish": [*HEAD, DONE],
    "no DONE": ended()[:-1],
    "only DONE": [DONE],
    "empty": [b""],
    "no content": [event(START), event(chunk([delta({}, finish="stop")])), DONE],
    "no choices at all": [event(chunk([])), DONE],
    "error event": [*HEAD, event(ERROR), DONE],
    "error event and a finish": [*HEAD, event(ERROR), *ended()[-2:]],
    "error named": [*HEAD, b"event: error\n" + event(ERROR), *ended()[-2:]],
    "tool calls": [
        event(START),
        event(chunk([delta({"tool_calls": [{"index": 0, **CALL}]})])),
        event(chunk([delta({}, finish="tool_calls")])),
        DONE,
    ],
    "tool calls that claim to stop": [
        event(START),
        event(chunk([delta({"content": "x", "tool_calls": [{"index": 0, **CALL}]})])),
        *ended()[-2:],
    ],
    "function call that claims to stop": [
        *HEAD,
        event(chunk([delta({"function_call": {"name": "f", "arguments": "{}"}})])),
        *ended()[-2:],
    ],
    "refusal": [event(START), event(chunk([delta({"refusal": "I cannot."})])), *ended()[-2:]],
    "second choice cut short": [
        *HEAD,
        event(chunk([delta({"content": "x"}, index=1)])),
        event(chunk([delta({}, finish="stop")])),
        event(chunk([delta({}, finish="length", index=1)])),
        DONE,
    ],
    "second choice unfinished": [*HEAD, event(chunk([delta({"content": "x"}, index=1)])), *ended()[-2:]],
    "content after the finish": [*ended()[:-1], event(chunk([delta({"content": " More."})])), DONE],
    "events after DONE": [*ended(), event(chunk([delta({"content": " More."})]))],
}


@pytest.mark.parametrize("told", STREAMS.values(), ids=STREAMS)
async def test_an_unusual_stream_reaches_the_caller_and_is_forgotten(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, told: list[bytes]
) -> None:
    upstream.always(stream(*told))
    live = await proxy.ask(chat(stream=True), key=key)
    assert (live.status, live.body, live.complete) == (200, b"".join(told), True)
    await assert_forgotten(proxy, upstream, key)


@pytest.mark.parametrize("content_type", ["text/plain", "application/json", "text/html", "application/x-ndjson"])
async def test_a_stream_under_another_name_is_passed_on_and_forgotten(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, content_type: str
) -> None:
    upstream.always(stream(*events(TOLD), content_type=content_type))
    live = await proxy.ask(chat(stream=True), key=key)
    assert (live.status, live.body, live.get("content-type")) == (200, b"".join(events(TOLD)), content_type)
    await assert_forgotten(proxy, upstream, key)


@pytest.mark.parametrize(
    "stream_asked", [True, False], ids=["asked a stream, got a body", "asked a body, got a stream"]
)
async def test_the_backend_may_answer_in_the_other_form(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, stream_asked: bool
) -> None:
    upstream.always(answer(completion(TOLD)) if stream_asked else stream(*events(TOLD)))
    live = await proxy.ask(chat(stream=stream_asked), key=key)
    assert (live.status, live.content) == (200, TOLD)
    upstream.always(None)
    await proxy.settled(key)
    for form in (True, False):
        again = await proxy.ask(chat(stream=form), key=key, headers={"cache-control": "no-store"})
        assert (again.status, again.streamed) == (200, form)
        assert again.content == TOLD or again.outcome == "miss"


BROKEN: dict[str, list[Step]] = {
    "shorter than its length": [*answer(completion(TOLD), length=5000), CUT],
    "cut by RST": [*answer(completion(TOLD), length=5000), RESET],
    "chunked and cut": stream(encode(completion(TOLD))[:40], CUT, content_type="application/json"),
    "chunked, whole, without its last chunk": stream(encode(completion(TOLD)), CUT, content_type="application/json"),
    "a bad chunk size": [
        Send(head(200, [("content-type", "application/json"), ("transfer-encoding", "chunked")]) + b"zz\r\n{}\r\n"),
        CUT,
    ],
    "not gzip at all": answer(completion(TOLD), headers=[("content-encoding", "gzip")]),
    "half of a gzip": answer(gzip.compress(encode(completion(TOLD)))[:-12], headers=[("content-encoding", "gzip")]),
    "two lengths": [
        Send(
            head(200, [("content-type", "application/json"), ("content-length", "2"), ("content-length", "3")]) + b"{}"
        )
    ],
}


@pytest.mark.parametrize("steps", BROKEN.values(), ids=BROKEN)
async def test_a_broken_body_is_never_passed_on_as_whole(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, steps: list[Step]
) -> None:
    upstream.always(steps)
    live = await proxy.ask(chat(), key=key)
    if live.status == 200:
        assert not live.complete
    else:
        live.assert_problem(502)
    await assert_forgotten(proxy, upstream, key)


async def test_bytes_after_the_end_of_a_body_belong_to_nobody(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, other_key: str
) -> None:
    forged = answer(completion("FORGED"))[0]
    assert isinstance(forged, Send)
    upstream.play([*answer(completion(TOLD)), forged])
    assert (await proxy.ask(chat(), key=key)).content == TOLD
    for _ in range(3):
        later = await proxy.ask(chat(), key=other_key, headers={"cache-control": "no-cache"})
        assert "FORGED" not in later.content


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["whole", "streamed"])
async def test_a_compressed_bomb_is_refused(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, form: dict[str, Any]
) -> None:
    bomb = gzip.compress(encode(completion("a" * (20 * 1024 * 1024))), compresslevel=1)
    content_type = "text/event-stream" if form else "application/json"
    upstream.always(answer(bomb, content_type=content_type, headers=[("content-encoding", "gzip")]))
    live = await proxy.ask(chat(**form), key=key)
    if form and live.status == 200:
        assert not live.complete
    else:
        live.assert_problem(502)
    await assert_forgotten(proxy, upstream, key)


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["whole", "streamed"])
async def test_an_answer_over_the_entry_cap_is_served_but_not_kept(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, form: dict[str, Any]
) -> None:
    long = "word " * 300_000
    streamed = stream(event(START), event(chunk([delta({"content": long})])), *ended()[-2:])
    upstream.always(streamed if form else answer(completion(long)))
    live = await proxy.ask(chat(**form), key=key)
    assert (live.complete, live.content) == (True, long)
    await assert_forgotten(proxy, upstream, key)
