from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cacheproxy.dialect import sse
from cacheproxy.dialect.bodies import BodyFold
from cacheproxy.dialect.chat import CHAT, ChatDialect
from cacheproxy.dialect.choices import fold_events, render_stream, stream_fold
from cacheproxy.dialect.merge import Texts, merge_message
from cacheproxy.dialect.streams import StreamFold
from cacheproxy.model import Reply, Wire
from tests.support.openai_wire import DONE, chunk, chunks, completion, delta, encode, event, events

STREAM = [("content-type", "text/event-stream; charset=utf-8")]


def folded(*chunks: Any) -> dict[str, Any]:
    reply = fold_events(CHAT, [*(event(one) for one in chunks), DONE])
    assert isinstance(reply, Reply), reply
    return dict(reply.body)


def refused(*raw: bytes) -> str:
    reply = fold_events(CHAT, raw)
    assert isinstance(reply, str)
    return reply


def say(fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return chunk([delta(fields, **more)])


def test_a_live_stream_folds_into_the_body_of_the_same_answer() -> None:
    live = chunks("one two three", include_usage=True)
    assert folded(*live) == completion("one two three")


def test_the_choices_of_a_stream_are_put_in_order() -> None:
    body = folded(say({"content": "b"}, index=1), say({"content": "a"}), say({"content": "c"}, index=1))
    assert [(one["index"], one["message"]["content"]) for one in body["choices"]] == [(0, "a"), (1, "bc")]


def test_the_last_value_that_is_not_null_counts() -> None:
    body = folded(
        {**say({"content": "x"}, stop_reason=None), "system_fingerprint": None},
        {**say({}, finish="stop", stop_reason=7), "system_fingerprint": "fp"},
        {**chunk([delta({}, finish=None, stop_reason=None)]), "system_fingerprint": None},
    )
    (choice,) = body["choices"]
    assert (choice["finish_reason"], choice["stop_reason"], body["system_fingerprint"]) == ("stop", 7, "fp")


def test_a_role_that_is_repeated_is_not_joined() -> None:
    body = folded(*(say({"role": "assistant", "content": word}) for word in ("one ", "two")))
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "one two"}


def test_tool_calls_are_merged_by_their_index() -> None:
    def call(index: int, arguments: str, **more: Any) -> dict[str, Any]:
        return say({"tool_calls": [{"index": index, "function": {"arguments": arguments}, **more}]})

    body = folded(call(0, "{", id="a", type="function"), call(0, "}", id="a"), call(1, "[]", id="b"))
    assert body["choices"][0]["message"]["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"arguments": "{}"}},
        {"id": "b", "function": {"arguments": "[]"}},
    ]


def test_two_calls_under_one_index_make_no_reply() -> None:
    def call(told: str) -> bytes:
        return event(say({"tool_calls": [{"index": 0, "id": told, "function": {"name": "f", "arguments": "{}"}}]}))

    assert refused(call("a"), call("b"), *events("x")) == "malformed_event"
    assert isinstance(fold_events(CHAT, [call("a"), call("a"), *events("x")]), Reply)


def test_verdicts_beside_a_delta_are_updated_and_not_joined() -> None:
    def verdict(**told: Any) -> dict[str, Any]:
        return {"content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}, "token_ids": [1], **told}

    body = folded(say({"content": "x"}, **verdict()), say({}, finish="stop", **verdict(stop_reason=None)))
    (choice,) = body["choices"]
    assert choice["content_filter_results"] == {"hate": {"filtered": False, "severity": "safe"}}
    assert choice["token_ids"] == [1, 1]


def test_a_call_is_streamed_as_a_live_one_name_first_and_arguments_in_pieces() -> None:
    arguments = encode({"city": "Wien", "text": "a " * 40}).decode()
    calls = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}},
        {"index": 7, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}},
    ]
    body = completion(None, finish="tool_calls")
    body["choices"][0]["message"]["tool_calls"] = calls
    stream = render_stream(CHAT, Reply(body=body, source="body"), "id", 1, Wire(stream=True))
    parts = [msgspec.json.decode(raw.removeprefix(b"data: "))["choices"][0] for raw in stream.split(b"\n\n")[:-2]]
    first, *called, last = (part["delta"] for part in parts)
    assert first == {"role": "assistant", "content": None, "refusal": None}
    deltas = [delta["tool_calls"][0] for delta in called]
    assert deltas[0] == {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
    assert all(set(delta) == {"index", "function"} and delta["index"] == 0 for delta in deltas[1:-1])
    assert len(deltas) > 5
    assert "".join(delta["function"]["arguments"] for delta in deltas[:-1]) == arguments
    assert deltas[-1] == {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}}
    assert (last, parts[-1]["finish_reason"]) == ({}, "tool_calls")


def test_token_probabilities_of_all_chunks_are_listed_once() -> None:
    told = [{"token": word, "logprob": -1.0} for word in ("one", "two")]
    parts = [delta({"content": one["token"]}) | {"logprobs": {"content": [one], "refusal": None}} for one in told]
    body = folded(*(chunk([part]) for part in parts), say({}, finish="stop"))
    assert body["choices"][0]["logprobs"] == {"content": told, "refusal": None}


def test_comments_and_padding_are_left_out() -> None:
    live = [event({**one, "obfuscation": "xxxx"}) for one in chunks("one")]
    reply = fold_events(CHAT, [b": ping\n\n", *live, b"id: 1\nretry: 5\n\n", DONE])
    assert isinstance(reply, Reply)
    assert "obfuscation" not in reply.body


def test_a_polite_last_chunk_after_the_finish_is_no_content() -> None:
    closing = {**say({"role": "assistant", "content": ""}), "usage": {"prompt_tokens": 1}}
    body = folded(*chunks("one"), closing)
    assert (body["choices"][0]["message"]["content"], body["usage"]) == ("one", {"prompt_tokens": 1})


WHOLE = events("one two")
MALFORMED = [
    b"data: {\n\n",
    b"data: []\n\n",
    b"data: \xff\n\n",
    b"data: " + b"[" * 100_000 + b"\n\n",
    event({"choices": None}),
    event({"choices": {}}),
    event({"choices": [None]}),
    event(chunk([{"index": "0", "delta": {}}])),
    event(chunk([{"index": -1, "delta": {}}])),
    event(chunk([{"index": 10**6, "delta": {}}])),
    event(chunk([{"index": 0, "delta": []}])),
    event(say({"content": 5})),
    event(say({"tool_calls": {}})),
    event(say({"tool_calls": [{"index": 10**6}]})),
]


@pytest.mark.parametrize("raw", MALFORMED, ids=lambda raw: repr(raw[:60]))
def test_an_event_that_makes_no_sense_makes_no_reply(raw: bytes) -> None:
    assert refused(WHOLE[0], raw, *WHOLE[1:]) == "malformed_event"


@pytest.mark.parametrize(
    "raw",
    [
        event({"error": {"message": "x"}}),
        event({**chunk([]), "error": "x"}),
        b"event: error\ndata: {}\n\n",
        b"data: {}\nevent: error\n\n",
        b": x\r\nevent: response.error\r\ndata: {}\r\n\r\n",
    ],
)
def test_an_error_event_makes_no_reply(raw: bytes) -> None:
    assert refused(*WHOLE[:-1], raw, WHOLE[-1]) == "error_event"


def test_a_stream_ends_with_done_and_nothing_after_it() -> None:
    assert refused(*WHOLE[:-1]) == "stream_not_finished"
    assert refused() == "stream_not_finished"
    assert refused(*WHOLE, WHOLE[1]) == "data_after_done"
    assert refused(*WHOLE, DONE) == "data_after_done"
    assert isinstance(fold_events(CHAT, [*WHOLE, b": bye\n\n"]), Reply)


def test_words_after_the_finish_make_no_reply() -> None:
    assert refused(*WHOLE[:-1], WHOLE[1], WHOLE[-1]) == "malformed_event"


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("text/event-stream", StreamFold),
        ("Text/Event-Stream ; charset=utf-8", StreamFold),
        ("application/json; charset=utf-8", BodyFold),
        ("text/plain", BodyFold),
    ],
)
def test_the_answers_type_says_how_it_is_read(content_type: str, kind: type) -> None:
    dialect = ChatDialect(max_reply_bytes=100, ask_stream_usage=True)
    assert type(dialect.fold(Wire(), [("Content-Type", content_type)])) is kind


@pytest.mark.parametrize("options", ["include_usage", [1], 5, True])
def test_options_of_another_type_are_the_backends_to_judge(options: object) -> None:
    dialect = ChatDialect(max_reply_bytes=100, ask_stream_usage=True)
    assert dialect.request({"stream": True, "stream_options": options}, Wire(stream=True)) is None


def test_a_reply_beyond_the_limit_is_passed_on_whole_and_not_kept() -> None:
    live = b"".join(WHOLE)
    for hide in (True, False):
        fold = stream_fold(CHAT, limit=len(live) - 1, hide_usage=hide)
        assert b"".join(fold.feed(live[at : at + 7]) for at in range(0, len(live), 7)) + fold.flush() == live
        assert fold.reply() == "too_large"
    exact = stream_fold(CHAT, limit=len(live), hide_usage=False)
    exact.feed(live)
    assert isinstance(exact.reply(), Reply)


def test_a_body_that_is_not_said_to_be_json_is_not_kept() -> None:
    fold = BodyFold(limit=100, json=False)
    fold.feed(b"{}")
    assert fold.reply() == "not_json"


def test_usage_beside_the_last_words_is_left_where_the_backend_put_it() -> None:
    last = {**say({"content": "x"}), "usage": {"prompt_tokens": 1}}
    fold = stream_fold(CHAT, limit=10_000, hide_usage=True)
    assert fold.feed(event(last)) == event(last)


def test_choices_without_an_index_are_counted() -> None:
    body = completion("x")
    one = {key: value for key, value in body["choices"][0].items() if key != "index"}
    stream = render_stream(CHAT, Reply(body={**body, "choices": [one, one]}, source="body"), "id", 1, Wire(stream=True))
    parts = [msgspec.json.decode(sse.data_of(raw + b"\n\n") or b"") for raw in stream.split(b"\n\n")[:-2]]
    assert {part["choices"][0]["index"] for part in parts} == {0, 1}


def test_a_long_word_and_a_long_blank_are_cut_into_pieces_that_lose_nothing() -> None:
    content = "a" * 1000 + " " * 1000 + "b c\n" * 50
    stream = render_stream(CHAT, Reply(body=completion(content), source="body"), "id", 1, Wire(stream=True))
    reply = fold_events(CHAT, [raw + b"\n\n" for raw in stream.split(b"\n\n")[:-1]])
    assert isinstance(reply, Reply)
    assert reply.body["choices"][0]["message"]["content"] == content
    assert encode(content) not in stream


def test_calls_may_follow_where_there_were_none() -> None:
    none = {"role": "assistant", "content": None, "tool_calls": None}
    call: dict[str, Any] = {
        "tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    }
    reply = folded(*({"choices": [{"index": 0, "delta": delta}]} for delta in (none, call)))
    told = reply["choices"][0]["message"]["tool_calls"]
    assert told == [{key: value for key, value in call["tool_calls"][0].items() if key != "index"}]


@pytest.mark.parametrize("beside", ["x", {"tool_calls": ["x"]}, {"tool_calls": 1}], ids=repr)
def test_a_message_beside_a_delta_that_is_none_is_malformed(beside: object) -> None:
    one = {"choices": [{"index": 0, "delta": {}, "message": beside}]}
    two = {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "a"}]}}]}
    assert fold_events(CHAT, [event(one), event(two), DONE]) == "malformed_event"


def test_an_event_is_read_when_it_passes_and_each_text_is_joined_once() -> None:
    texts = Texts()
    message: dict[str, Any] = {}
    for _ in range(1000):
        merge_message(message, {"content": "word ", "vendor": {"thought": "so "}}, texts)
        assert not isinstance(message["content"], str) or len(message["content"]) == len("word ")
    texts.join()
    assert message == {"content": "word " * 1000, "vendor": {"thought": "so " * 1000}}


def test_a_text_that_gives_way_to_something_else_is_not_brought_back() -> None:
    texts = Texts()
    message: dict[str, Any] = {}
    for told in ("a", "b", ["c"], None, ["d"]):
        merge_message(message, {"content": told}, texts)
    texts.join()
    assert message == {"content": ["c", "d"]}
