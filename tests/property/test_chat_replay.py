from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheproxy.dialect import sse
from cacheproxy.dialect.bodies import BodyFold
from cacheproxy.dialect.chat import CHAT, ChatDialect
from cacheproxy.dialect.choices import fold_events, render_body, render_stream, stream_fold
from cacheproxy.model import Plan, Reply, Wire
from cacheproxy.policy.admit import Keep, admit
from cacheproxy.query.canonical import canonical
from tests.support.chunking import chunkings
from tests.support.jsonvalues import objects, values

if TYPE_CHECKING:
    from collections.abc import Iterable

UNLIMITED = 10**7
CREATED_S = 1_800_000_000
LEVELS = 128
PLAN = Plan(
    category="c",
    exact=True,
    semantic=True,
    store=True,
    embed=True,
    threshold=0.8,
    ttl_s=60,
    candidates=1,
    keep_tool_calls=True,
)

texts = st.one_of(
    st.text(),
    st.text(" \t\n\r\u3000\xa0", max_size=200),
    st.sampled_from(
        ["", " ", "Hello there.", "\U0001f600" * 100, "a" * 300, "a  b\n\n c ", "data: [DONE]\n\n", "\u2028"]
    ),
)


def vendor_fields(*taken: str) -> st.SearchStrategy[dict[str, Any]]:
    names = st.text(min_size=1).filter(lambda name: name not in taken)
    return st.dictionaries(names | st.sampled_from(["x_groq", "citations", "provider"]), values, max_size=3)


spoken = st.fixed_dictionaries({"name": st.text(min_size=1), "arguments": texts}, optional={"vendor": values})
calls = st.one_of(
    st.fixed_dictionaries(
        {"id": st.text(min_size=1), "function": spoken},
        optional={"type": st.just("function"), "vendor": values},
    ),
    st.fixed_dictionaries(
        {
            "id": st.text(min_size=1),
            "type": st.just("custom"),
            "custom": st.fixed_dictionaries({"name": st.text(min_size=1), "input": texts}),
        }
    ),
)
ROLES = {"role": st.just("assistant"), "content": texts}
MORE = {
    "refusal": st.none() | texts,
    "reasoning_content": st.none() | texts,
    "reasoning": texts,
    "annotations": st.lists(objects, max_size=2),
    "audio": st.none(),
    "tool_calls": st.none() | st.lists(calls, max_size=3),
    "function_call": st.none() | spoken,
    "name": texts,
}
messages = st.builds(
    lambda vendor, message: {**vendor, **message},
    vendor_fields(*ROLES, *MORE, "id", "type"),
    st.fixed_dictionaries(ROLES | {"content": st.none() | texts}, optional=MORE),
)
token = st.fixed_dictionaries(
    {"token": texts, "logprob": st.floats(-50, 0), "top_logprobs": st.lists(objects, max_size=1)}
)
logprobs = st.fixed_dictionaries({"content": st.none() | st.lists(token, max_size=3), "refusal": st.none()})
closings = st.builds(
    lambda vendor, closing: {**vendor, **closing},
    vendor_fields("index", "message", "delta", "logprobs", "finish_reason"),
    st.fixed_dictionaries({"finish_reason": st.just("stop")}, optional={"logprobs": st.none() | logprobs}),
)
envelopes = st.builds(
    lambda vendor, envelope: {**vendor, **envelope},
    vendor_fields("id", "object", "created", "choices", "usage", "error", "obfuscation"),
    st.fixed_dictionaries(
        {
            "id": st.just("chatcmpl-live"),
            "object": st.just("chat.completion"),
            "created": st.just(1),
            "model": st.text(),
        },
        optional={"system_fingerprint": st.none() | st.text(), "service_tier": st.none() | st.text()},
    ),
)
usages = st.fixed_dictionaries({"prompt_tokens": st.integers(0), "completion_tokens": st.integers(0)})


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    """Return a whole, ordinary answer with everything that vendors add to it."""
    told = draw(st.lists(st.tuples(messages, closings), min_size=1, max_size=3))
    choices = [{"index": at, "message": message, **closing} for at, (message, closing) in enumerate(told)]
    return Reply(body={**draw(envelopes), "choices": choices, "usage": draw(usages)}, source="body")


def folded(chunks: Iterable[bytes], *, hide_usage: bool = False) -> tuple[Reply | str, bytes]:
    fold = stream_fold(CHAT, limit=UNLIMITED, hide_usage=hide_usage)
    passed = b"".join([fold.feed(chunk) for chunk in chunks]) + fold.flush()
    return fold.reply(), passed


def told(reply: Reply | str, *left_out: str) -> bytes:
    """Return the body as canonical bytes: types and order of lists count, the order of keys does not."""
    assert isinstance(reply, Reply), reply
    return canonical({key: value for key, value in reply.body.items() if key not in ("id", "created", *left_out)})


def replayed(reply: Reply, *, include_usage: bool) -> bytes:
    return render_stream(CHAT, reply, "chatcmpl-new", CREATED_S, Wire(stream=True, include_usage=include_usage))


@given(data=st.data(), reply=replies())
@settings(max_examples=200)
def test_a_replayed_stream_folds_back_into_the_same_reply(data: st.DataObject, reply: Reply) -> None:
    again, _ = folded(data.draw(chunkings(replayed(reply, include_usage=True))))
    assert told(again) == told(reply)


@given(data=st.data(), reply=replies())
def test_a_replay_without_usage_leaves_out_nothing_else(data: st.DataObject, reply: Reply) -> None:
    stream = replayed(reply, include_usage=False)
    again, _ = folded(data.draw(chunkings(stream)))
    assert isinstance(again, Reply)
    assert "usage" not in again.body
    assert told(again) == told(reply, "usage")


@given(reply=replies())
def test_a_replayed_body_is_the_live_body_under_a_new_name(reply: Reply) -> None:
    body = msgspec.json.decode(render_body(reply, "chatcmpl-new", CREATED_S))
    assert (body["id"], body["created"]) == ("chatcmpl-new", CREATED_S)
    assert list(body) == list(reply.body)
    assert told(Reply(body=body, source="body")) == told(reply)


@given(reply=replies(), include_usage=st.booleans())
def test_a_replay_is_made_of_the_deltas_that_a_live_stream_has(reply: Reply, include_usage: bool) -> None:
    events = replayed(reply, include_usage=include_usage).split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    chunks = [msgspec.json.decode(event.removeprefix(b"data: ")) for event in events[:-2]]
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert {(chunk["object"], chunk["created"]) for chunk in chunks} == {("chat.completion.chunk", CREATED_S)}
    assert all(("usage" in chunk) == include_usage for chunk in chunks)
    if include_usage:
        assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], reply.body["usage"])
        assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    for source in reply.body["choices"]:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == source["index"]]
        assert parts[0]["delta"]["role"] == "assistant"
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["stop"]
        assert parts[-1]["delta"] == {}
        assert "".join(part["delta"].get("content") or "" for part in parts) == (source["message"]["content"] or "")
        check_calls([call for part in parts for call in part["delta"].get("tool_calls") or ()])


def check_calls(deltas: list[dict[str, Any]]) -> None:
    """Each call is announced once, in order and without its arguments; every later delta only adds to them."""
    announced = -1
    for delta in deltas:
        if "id" in delta:
            announced += 1
            assert delta.get("function", {}).get("arguments", "") == delta.get("custom", {}).get("input", "") == ""
        else:
            assert set(delta) in ({"index", "function"}, {"index", "custom"})
            assert set(delta.get("function") or delta["custom"]) in ({"arguments"}, {"input"})
        assert delta["index"] == announced


@given(data=st.data(), reply=replies())
def test_usage_that_only_the_cache_asked_for_is_kept_and_hidden(data: st.DataObject, reply: Reply) -> None:
    live = replayed(reply, include_usage=True)
    kept, passed = folded(data.draw(chunkings(live)), hide_usage=True)
    assert told(kept) == told(reply)
    seen, _ = folded([passed])
    assert isinstance(seen, Reply)
    assert "usage" not in seen.body
    assert told(seen) == told(reply, "usage")
    assert passed.endswith(sse.DONE)


@given(data=st.data(), reply=replies())
def test_a_stream_that_shows_usage_passes_untouched(data: st.DataObject, reply: Reply) -> None:
    live = replayed(reply, include_usage=True)
    kept, passed = folded(data.draw(chunkings(live)))
    assert passed == live
    assert told(kept) == told(reply)


@given(data=st.data(), reply=replies())
def test_a_stream_cut_anywhere_before_its_end_makes_no_reply(data: st.DataObject, reply: Reply) -> None:
    live = replayed(reply, include_usage=True)
    end = data.draw(st.integers(0, len(live) - 1))
    kept, passed = folded(data.draw(chunkings(live[:end])))
    assert isinstance(kept, str)
    assert passed == live[:end]


@given(data=st.data(), reply=replies())
def test_a_body_read_in_any_chunking_is_the_body(data: st.DataObject, reply: Reply) -> None:
    fold = BodyFold(limit=UNLIMITED, json=True)
    raw = msgspec.json.encode(reply.body)
    passed = b"".join(fold.feed(chunk) for chunk in data.draw(chunkings(raw)))
    assert passed + fold.flush() == raw
    assert told(fold.reply()) == told(reply)


# Nonsense

deltas = st.one_of(
    values,
    st.dictionaries(
        st.sampled_from(["role", "content", "tool_calls", "refusal", "audio", "id"]), values | objects, max_size=4
    ),
    st.fixed_dictionaries({"tool_calls": st.lists(st.fixed_dictionaries({"index": values}) | values, max_size=3)}),
)
parts = st.one_of(
    values,
    st.fixed_dictionaries(
        {"delta": deltas},
        optional={"index": st.integers(-2, 3) | values, "finish_reason": values, "logprobs": values | objects},
    ),
)
chunks = st.one_of(
    values,
    st.fixed_dictionaries(
        {"choices": values | st.lists(parts, max_size=3)}, optional={"usage": values, "error": values}
    ),
)
events = st.one_of(
    chunks.map(lambda chunk: sse.event(msgspec.json.encode(chunk))),
    st.binary(max_size=30).map(sse.event),
    st.sampled_from([sse.DONE, b": ping\n\n", b"event: error\ndata: {}\n\n", b"data: " + b'{"a":' * 5000 + b"\n\n"]),
)


@given(told=st.lists(events, max_size=6), done=st.booleans(), hide_usage=st.booleans())
@settings(max_examples=300)
def test_folding_nonsense_never_fails(told: list[bytes], done: bool, hide_usage: bool) -> None:
    stream = b"".join(told) + (sse.DONE if done else b"")
    reply, passed = folded([stream], hide_usage=hide_usage)
    assert isinstance(reply, Reply | str)
    assert hide_usage or passed == stream
    check_that_what_is_admitted_can_be_replayed(reply)


@given(raw=st.binary(max_size=100) | values.map(msgspec.json.encode), json=st.booleans())
def test_folding_a_nonsense_body_never_fails(raw: bytes, json: bool) -> None:
    fold = BodyFold(limit=80, json=json)
    assert fold.feed(raw) == raw
    reply = fold.reply()
    assert isinstance(reply, Reply | str)
    assert isinstance(reply, Reply) <= (json and len(raw) <= 80)


odd_choices = st.fixed_dictionaries(
    {
        "message": st.fixed_dictionaries(
            {"content": values | st.text(min_size=1)},
            optional={
                "role": values,
                "id": values,
                "refusal": values,
                "tool_calls": values | st.lists(calls | objects, min_size=1, max_size=2),
                "function_call": values | spoken,
                "audio": values,
                "vendor": values,
            },
        ),
        "finish_reason": st.sampled_from(["stop", "tool_calls", "function_call"]),
    },
    optional={"index": values, "logprobs": values, "delta": values, "vendor": values},
)


@given(choices=st.lists(odd_choices, min_size=1, max_size=2), envelope=objects)
@settings(max_examples=300)
def test_whatever_is_admitted_can_be_replayed(choices: list[dict[str, Any]], envelope: dict[str, Any]) -> None:
    check_that_what_is_admitted_can_be_replayed(Reply(body={**envelope, "choices": choices}, source="body"))


def check_that_what_is_admitted_can_be_replayed(reply: Reply | str) -> None:
    verdict = admit("chat", 200, [], reply, PLAN)
    if isinstance(verdict, Keep):
        kept = verdict.reply
        assert msgspec.json.decode(render_body(kept, "x", CREATED_S))["choices"] == kept.body["choices"]
        for include_usage in (True, False):
            assert replayed(kept, include_usage=include_usage).endswith(sse.DONE)


@given(depth=st.integers(1, 3000) | st.integers(120, 130), stream=st.booleans())
@settings(max_examples=50)
def test_nesting_that_could_not_be_replayed_makes_no_reply(depth: int, stream: bool) -> None:
    nest = b'{"a":' * depth + b"1" + b"}" * depth
    if stream:
        raw = sse.event(b'{"choices":[{"delta":{"content":"x","vendor":' + nest + b"}}]}")
        reply = fold_events(CHAT, [raw, raw, sse.DONE])
    else:
        fold = BodyFold(limit=UNLIMITED, json=True)
        fold.feed(b'{"vendor":' + nest + b"}")
        reply = fold.reply()
    assert isinstance(reply, Reply) == (depth + (4 if stream else 1) <= LEVELS)


bodies = st.fixed_dictionaries({"model": st.text()}, optional={"stream_options": values | objects, "vendor": values})


@given(body=bodies, wire=st.builds(Wire, stream=st.booleans(), include_usage=st.booleans()), asks=st.booleans())
def test_usage_is_asked_for_only_on_a_stream_that_did_not_ask(body: dict[str, Any], wire: Wire, asks: bool) -> None:
    sent = ChatDialect(max_reply_bytes=UNLIMITED, ask_stream_usage=asks).request(body, wire)
    options = body.get("stream_options")
    expected = asks and wire.stream and not wire.include_usage and isinstance(options, dict | None)
    assert (sent is not None) == expected
    if sent is not None:
        asked = {**body, "stream_options": {**(options or {}), "include_usage": True}}
        assert canonical(msgspec.json.decode(sent)) == canonical(asked)
