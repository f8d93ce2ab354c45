from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheproxy.dialect import sse
from cacheproxy.dialect.choices import fold_events, render_body, render_stream, stream_fold
from cacheproxy.dialect.completions import COMPLETIONS, CompletionsDialect
from cacheproxy.model import Plan, Reply, Wire
from cacheproxy.policy.admit import Keep, admit
from cacheproxy.query.canonical import canonical
from tests.support.chunking import chunkings
from tests.support.jsonvalues import objects, values

if TYPE_CHECKING:
    from collections.abc import Iterable

UNLIMITED = 10**7
CREATED_S = 1_800_000_000
PLAN = Plan(category="c", exact=True, semantic=True, store=True, embed=True, threshold=0.8, ttl_s=60, candidates=1)

texts = st.one_of(
    st.text(),
    st.text(" \t\n\r\u3000\xa0", max_size=200),
    st.sampled_from(["", " ", " four.\n", "\U0001f600" * 100, "a" * 300, "data: [DONE]\n\n", "\u2028"]),
)


def vendor_fields(*taken: str) -> st.SearchStrategy[dict[str, Any]]:
    names = st.text(min_size=1).filter(lambda name: name not in taken)
    return st.dictionaries(names | st.sampled_from(["stop_reason", "provider"]), values, max_size=3)


tokens = st.fixed_dictionaries(
    {
        "tokens": st.lists(texts, max_size=3),
        "token_logprobs": st.lists(st.none() | st.floats(-50, 0), max_size=3),
        "top_logprobs": st.none() | st.lists(st.none() | st.dictionaries(texts, st.floats(-50, 0)), max_size=3),
        "text_offset": st.lists(st.integers(0), max_size=3),
    }
)
choices = st.builds(
    lambda vendor, choice: {**vendor, **choice},
    vendor_fields("index", "text", "logprobs", "finish_reason"),
    st.fixed_dictionaries({"text": texts, "finish_reason": st.just("stop")}, optional={"logprobs": st.none() | tokens}),
)
envelopes = st.builds(
    lambda vendor, envelope: {**vendor, **envelope},
    vendor_fields("id", "object", "created", "choices", "usage", "error", "obfuscation"),
    st.just({"id": "cmpl-live", "object": "text_completion", "created": 1, "model": "m"}),
)


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    """Return a whole, ordinary answer with everything that vendors add to it."""
    told = [{"index": at, **one} for at, one in enumerate(draw(st.lists(choices, min_size=1, max_size=3)))]
    return Reply(body={**draw(envelopes), "choices": told, "usage": {"prompt_tokens": 1}}, source="body")


def folded(chunks: Iterable[bytes], *, hide_usage: bool = False) -> tuple[Reply | str, bytes]:
    fold = stream_fold(COMPLETIONS, limit=UNLIMITED, hide_usage=hide_usage)
    passed = b"".join([fold.feed(chunk) for chunk in chunks]) + fold.flush()
    return fold.reply(), passed


def told(reply: Reply | str, *left_out: str) -> bytes:
    """Return the body as canonical bytes: types and order of lists count, the order of keys does not."""
    assert isinstance(reply, Reply), reply
    return canonical({key: value for key, value in reply.body.items() if key not in ("id", "created", *left_out)})


def replayed(reply: Reply, *, include_usage: bool) -> bytes:
    return render_stream(COMPLETIONS, reply, "cmpl-new", CREATED_S, Wire(stream=True, include_usage=include_usage))


@given(data=st.data(), reply=replies())
@settings(max_examples=200)
def test_a_replayed_stream_folds_back_into_the_same_reply(data: st.DataObject, reply: Reply) -> None:
    again, _ = folded(data.draw(chunkings(replayed(reply, include_usage=True))))
    assert told(again) == told(reply)


@given(data=st.data(), reply=replies())
def test_usage_that_only_the_cache_asked_for_is_kept_and_hidden(data: st.DataObject, reply: Reply) -> None:
    live = replayed(reply, include_usage=True)
    kept, passed = folded(data.draw(chunkings(live)), hide_usage=True)
    assert told(kept) == told(reply)
    assert canonical(msgspec.json.decode(b"[" + b",".join(payloads(passed)) + b"]")) == canonical(
        msgspec.json.decode(b"[" + b",".join(payloads(replayed(reply, include_usage=False))) + b"]")
    )


def payloads(stream: bytes) -> list[bytes]:
    *events, done, end = stream.split(b"\n\n")
    assert (done, end) == (b"data: [DONE]", b"")
    return [event.removeprefix(b"data: ") for event in events]


@given(reply=replies(), include_usage=st.booleans())
def test_a_replay_is_made_of_the_parts_that_a_live_stream_has(reply: Reply, include_usage: bool) -> None:
    chunks = [msgspec.json.decode(payload) for payload in payloads(replayed(reply, include_usage=include_usage))]
    assert {(chunk["id"], chunk["object"], chunk["created"]) for chunk in chunks} == {
        ("cmpl-new", "text_completion", CREATED_S)
    }
    assert all(("usage" in chunk) == include_usage for chunk in chunks)
    for source in reply.body["choices"]:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == source["index"]]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["stop"]
        assert "".join(part["text"] for part in parts) == source["text"]
        assert parts[-1]["text"] == ""


@given(reply=replies())
def test_a_replayed_body_is_the_live_body_under_a_new_name(reply: Reply) -> None:
    dialect = CompletionsDialect(max_reply_bytes=UNLIMITED, ask_stream_usage=True)
    kind, raw = dialect.render(reply, Wire(), tail="0" * 50, now_s=CREATED_S + 0.5)
    body = msgspec.json.decode(raw)
    assert (kind, body["id"], body["created"]) == (b"application/json", "cmpl-" + "0" * 50, CREATED_S)
    assert list(body) == list(reply.body)
    assert told(Reply(body=body, source="body")) == told(reply)


@given(data=st.data(), reply=replies())
def test_a_stream_cut_anywhere_before_its_end_makes_no_reply(data: st.DataObject, reply: Reply) -> None:
    live = replayed(reply, include_usage=True)
    end = data.draw(st.integers(0, len(live) - 1))
    kept, passed = folded(data.draw(chunkings(live[:end])))
    assert isinstance(kept, str)
    assert passed == live[:end]


# Nonsense

odd_parts = st.one_of(
    values,
    st.fixed_dictionaries(
        {},
        optional={
            "text": values | st.text(),
            "index": st.integers(-2, 3) | values,
            "finish_reason": values | st.just("stop"),
            "logprobs": values | objects,
        },
    ),
)
odd_chunks = st.fixed_dictionaries(
    {"choices": values | st.lists(odd_parts, max_size=3)}, optional={"usage": values, "error": values}
)


@given(told=st.lists(odd_chunks, max_size=4), done=st.booleans())
@settings(max_examples=300)
def test_folding_nonsense_never_fails(told: list[Any], done: bool) -> None:
    events = [*(sse.event(msgspec.json.encode(chunk)) for chunk in told), *([sse.DONE] if done else [])]
    check_that_what_is_admitted_can_be_replayed(fold_events(COMPLETIONS, events))


odd_choices = st.fixed_dictionaries(
    {"text": st.text(min_size=1), "finish_reason": st.just("stop")},
    optional={"index": values, "logprobs": values, "vendor": values},
)


@given(choices=st.lists(odd_choices | values, min_size=1, max_size=2), envelope=objects)
def test_whatever_is_admitted_can_be_replayed(choices: list[Any], envelope: dict[str, Any]) -> None:
    check_that_what_is_admitted_can_be_replayed(Reply(body={**envelope, "choices": choices}, source="body"))


def check_that_what_is_admitted_can_be_replayed(reply: Reply | str) -> None:
    verdict = admit("completions", 200, [], reply, PLAN)
    if isinstance(verdict, Keep):
        kept = verdict.reply
        assert msgspec.json.decode(render_body(kept, "x", CREATED_S))["choices"] == kept.body["choices"]
        for include_usage in (True, False):
            assert replayed(kept, include_usage=include_usage).endswith(sse.DONE)
