from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cacheproxy.dialect.responses import ResponsesDialect, fresh
from cacheproxy.dialect.responses_fold import fold_events
from cacheproxy.model import Plan, Reply, Wire
from cacheproxy.policy.admit import Keep, admit
from tests.support.openai_wire import DONE, encode
from tests.support.responses_wire import (
    CREATED_S,
    events,
    function_call,
    message,
    payloads,
    reasoning,
    response,
    text_part,
    typed,
)

PLAN = Plan(category="c", exact=True, semantic=True, store=True, embed=True, threshold=0.8, ttl_s=60, candidates=1)
WITH_CALLS = Plan(
    category="c",
    exact=True,
    semantic=False,
    store=True,
    embed=False,
    threshold=0.8,
    ttl_s=60,
    candidates=1,
    keep_tool_calls=True,
)
STREAM = [("content-type", "text/event-stream; charset=utf-8")]
CITATION = {"type": "url_citation", "url": "https://x.test", "title": "X", "start_index": 0, "end_index": 3}
LOGPROBS = [{"token": "Two", "logprob": -0.1, "bytes": [84], "top_logprobs": []}]
RICH = response(
    reasoning("**Adding**\n\nTwo and two.", "Hence four.", encrypted_content="gAAAA=="),
    reasoning(item_id="rs_open", content=[{"type": "reasoning_text", "text": "2 + 2 = 4"}], status="completed"),
    message(text_part("It is 4 \u2028 東京 \U0001f5fc", annotations=[CITATION]), "And more.", phase="final_answer"),
    message("Second message.", item_id="msg_2", vendor={"deep": [1, None]}),
    function_call("look_up", '{"q": "four things"}'),
    {"id": "ctc_1", "type": "custom_tool_call", "call_id": "call_2", "name": "shell", "input": "ls -l"},
    vendor_top={"a": None, "b": []},
)


def folded(*payloads: dict[str, Any]) -> Reply | str:
    return fold_events(map(typed, payloads))


def told(whole: dict[str, Any] = RICH) -> list[dict[str, Any]]:
    return payloads(whole)


def at(kind: str, whole: dict[str, Any] = RICH) -> int:
    """Where the first event of a type stands in a live stream."""
    return next(number for number, payload in enumerate(told(whole)) if payload["type"] == kind)


def changed(kind: str, **fields: Any) -> list[dict[str, Any]]:
    """A live stream with other fields in the first event of a type."""
    stream = told()
    stream[at(kind)] |= fields
    return stream


def test_a_live_stream_folds_into_the_body_of_the_same_answer() -> None:
    reply = folded(*told())
    assert isinstance(reply, Reply), reply
    assert encode(reply.body) == encode(RICH)


UNTOUCHED: dict[str, list[bytes]] = {
    "obfuscated": events(RICH, obfuscated=True),
    "closed by [DONE]": [*events(RICH), DONE],
    "with comments": [b": ping\n\n", *events(RICH), b": bye\n\n"],
    "without numbers": [
        typed({key: value for key, value in one.items() if key != "sequence_number"}) for one in told()
    ],
    "without names": [event.partition(b"\n")[2] for event in events(RICH)],
    "with CRLF": [event.replace(b"\n", b"\r\n") for event in events(RICH)],
    "with unknown events": [*events(RICH)[:-1], typed({"type": "response.vendor"}), events(RICH)[-1]],
}


@pytest.mark.parametrize("stream", UNTOUCHED.values(), ids=UNTOUCHED)
def test_a_stream_passes_byte_for_byte_and_folds(stream: list[bytes]) -> None:
    fold = ResponsesDialect(max_reply_bytes=1 << 20).fold(Wire(stream=True), STREAM)
    raw = b"".join(stream)
    assert b"".join(fold.feed(raw[start : start + 7]) for start in range(0, len(raw), 7)) + fold.flush() == raw
    reply = fold.reply()
    assert isinstance(reply, Reply), reply
    assert reply.body == RICH


REFUSED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "nothing": ([], "stream_not_finished"),
    "no terminal event": (told()[:-1], "stream_not_finished"),
    "incomplete": (told(response(message("x"), status="incomplete")), "response_incomplete"),
    "failed": (told(response(status="failed", error={"code": "server_error", "message": "x"})), "response_failed"),
    "cancelled": (told(response(status="cancelled")), "response_cancelled"),
    "an error event": ([*told()[:5], {"type": "error", "code": "x", "message": "y"}], "error_event"),
    "an error object": ([*told()[:5], {"type": "x", "error": {"message": "y"}}], "error_event"),
    "two ends": ([*told(), told()[-1]], "data_after_done"),
    "a delta that is missing": (
        [one for number, one in enumerate(told()) if number != at("response.output_text.delta")],
        "inconsistent_stream",
    ),
    "a text that no delta told": (
        [one for one in told() if one["type"] != "response.output_text.delta" or one["output_index"] != 3],
        "inconsistent_stream",
    ),
    "another delta": (changed("response.output_text.delta", delta="Not"), "inconsistent_stream"),
    "a delta of another part": (changed("response.output_text.delta", content_index=1), "inconsistent_stream"),
    "a delta of no item": (changed("response.output_text.delta", output_index=99), "inconsistent_stream"),
    "another whole text": (changed("response.output_text.done", text="No."), "inconsistent_stream"),
    "another summary": (changed("response.reasoning_summary_text.delta", delta="No."), "inconsistent_stream"),
    "other reasoning": (changed("response.reasoning_text.delta", delta="No."), "inconsistent_stream"),
    "other arguments": (changed("response.function_call_arguments.delta", delta="{"), "inconsistent_stream"),
    "other input": (changed("response.custom_tool_call_input.delta", delta="rm"), "inconsistent_stream"),
    "another item": (
        changed("response.output_item.added", item={"type": "message", "id": "x", "content": []}),
        "inconsistent_stream",
    ),
    "an item that the end lacks": (
        [*told()[:-1], {"type": "response.output_item.done", "output_index": 9, "item": reasoning()}, told()[-1]],
        "inconsistent_stream",
    ),
    "numbers that repeat": (changed("response.in_progress", sequence_number=0), "inconsistent_stream"),
    "numbers that fall": (changed("response.completed", sequence_number=1), "inconsistent_stream"),
    "a number that is text": (changed("response.in_progress", sequence_number="1"), "malformed_event"),
    "another response's end": (changed("response.completed", response={**RICH, "id": "resp_x"}), "inconsistent_stream"),
    "no response at the end": (changed("response.completed", response=None), "malformed_event"),
    "an end without output": (changed("response.completed", response={**RICH, "output": None}), "inconsistent_stream"),
    "an end with less output": (
        changed("response.completed", response={**RICH, "output": RICH["output"][:3]}),
        "inconsistent_stream",
    ),
    "no type": (changed("response.in_progress", type=None), "malformed_event"),
    "a delta that is no text": (changed("response.output_text.delta", delta=5), "malformed_event"),
    "a delta without a place": (changed("response.output_text.delta", content_index=None), "malformed_event"),
    "an item that is none": (changed("response.output_item.added", item=None), "malformed_event"),
}


@pytest.mark.parametrize(("stream", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_stream_that_is_not_whole_and_sound_makes_no_reply(stream: list[dict[str, Any]], reason: str) -> None:
    assert folded(*stream) == reason


RAW: dict[str, tuple[list[bytes], str]] = {
    "no JSON": ([b"data: {\n\n"], "malformed_event"),
    "no object": ([b"data: []\n\n"], "malformed_event"),
    "another name": ([b"event: response.created\n" + typed(told()[1]).partition(b"\n")[2]], "malformed_event"),
    "named error": ([b'event: error\ndata: {"type":"x"}\n\n'], "error_event"),
    "[DONE] instead of an end": ([*events(RICH)[:-1], DONE], "no_terminal_event"),
    "data after [DONE]": ([*events(RICH)[:-1], DONE, events(RICH)[-1]], "data_after_done"),
    "nested too deep": ([b'data: {"type":"x","y":' + b"[" * 200 + b"]" * 200 + b"}\n\n"], "nested_too_deep"),
}


@pytest.mark.parametrize(("stream", "reason"), RAW.values(), ids=RAW)
def test_events_that_no_client_could_read_make_no_reply(stream: list[bytes], reason: str) -> None:
    assert fold_events(stream) == reason


@pytest.mark.parametrize("kept", range(len(told())))
def test_a_stream_cut_after_any_event_is_unfinished(kept: int) -> None:
    fold = ResponsesDialect(max_reply_bytes=1 << 20).fold(Wire(stream=True), STREAM)
    for event in events(RICH)[:kept]:
        fold.feed(event)
    fold.feed(events(RICH)[kept][:-1])
    fold.flush()
    assert fold.reply() == "stream_not_finished"


@pytest.mark.parametrize("rest", [b"data", b"data: {}\n", b": ping\n"])
def test_an_unfinished_event_after_the_end_is_a_cut(rest: bytes) -> None:
    fold = ResponsesDialect(max_reply_bytes=1 << 20).fold(Wire(stream=True), STREAM)
    assert fold.feed(b"".join(events(RICH)) + rest) + fold.flush() == b"".join(events(RICH)) + rest
    assert fold.reply() == "stream_not_finished"


@pytest.mark.parametrize("limit", [100, 1000])
def test_a_stream_beyond_the_limit_passes_and_is_not_kept(limit: int) -> None:
    fold = ResponsesDialect(max_reply_bytes=limit).fold(Wire(stream=True), STREAM)
    raw = b"".join(events(RICH))
    assert fold.feed(raw[:50]) + fold.feed(raw[50:]) + fold.flush() == raw
    assert fold.reply() == "too_large"


def test_many_small_events_of_a_small_answer_are_kept() -> None:
    whole = response(message(" ".join("word" for _ in range(300))))
    raw = events(whole, obfuscated=True)
    limit = 4000
    assert len(b"".join(raw)) > 10 * limit
    assert max(map(len, raw)) < limit
    assert isinstance(fold_events(raw, limit), Reply)


@pytest.mark.parametrize("kind", ["response.output_text.delta", "response.output_item.added"])
def test_endless_empty_places_fill_no_memory(kind: str) -> None:
    endless = (
        typed({"type": kind, "output_index": number, "content_index": 0, "delta": "", "item": {}})
        for number in range(10_000)
    )
    assert fold_events(endless, 10_000) == "too_large"


def test_a_body_is_read_whole() -> None:
    fold = ResponsesDialect(max_reply_bytes=1 << 20).fold(Wire(), [("content-type", "application/json")])
    assert fold.feed(encode(RICH)) + fold.flush() == encode(RICH)
    reply = fold.reply()
    assert isinstance(reply, Reply)
    assert reply.body == RICH


# Whole


def verdict(body: dict[str, Any], plan: Plan = PLAN) -> str:
    found = admit("responses", 200, [], Reply(body=body, source="body"), plan)
    return "" if isinstance(found, Keep) else found.reason


NOT_WHOLE: dict[str, tuple[dict[str, Any], str]] = {
    "incomplete": (response(message("x"), status="incomplete"), "response_incomplete"),
    "in progress": (response(message("x"), status="in_progress"), "response_in_progress"),
    "queued": (response(status="queued"), "response_queued"),
    "failed": (response(message("x"), status="failed"), "response_failed"),
    "an unknown status": (response(message("x"), status="odd"), "response_unknown"),
    "no status": (response(message("x"), status=None), "response_missing"),
    "details of why": (
        response(message("x"), incomplete_details={"reason": "max_output_tokens"}),
        "response_incomplete",
    ),
    "an error": (response(message("x"), error={"code": "x", "message": "y"}), "error_object"),
    "no output": (response(), "no_output"),
    "output that is no list": (response(output="x"), "no_output"),
    "a message in progress": (response(message("x", status="in_progress")), "item_not_completed"),
    "one message in progress": (response(message("x"), message("y", status="incomplete")), "item_not_completed"),
    "reasoning in progress": (response(reasoning("x", status="incomplete"), message("x")), "item_not_completed"),
    "only reasoning": (response(reasoning("x")), "no_content"),
    "blank text": (response(message(" \n")), "no_content"),
    "no part": (response(message()), "no_content"),
    "no content": (response(message(content=None)), "no_content"),
    "a refusal": (response(message({"type": "refusal", "refusal": "No."})), "refusal"),
    "text, then a refusal": (response(message("x", {"type": "refusal", "refusal": "No."})), "refusal"),
    "an unknown part": (response(message("x", {"type": "novelty"})), "unknown_content"),
    "text that is none": (response(message({"type": "output_text", "text": None})), "unknown_content"),
    "a call": (response(function_call("f", "{}")), "tool_calls"),
    "text and a call": (response(message("x"), function_call("f", "{}")), "tool_calls"),
    "a search": (response({"type": "web_search_call", "id": "ws"}, message("x")), "tool_output"),
    "an unknown item": (response({"type": "novelty"}, message("x")), "tool_output"),
    "an item without a type": (response({"id": "x"}, message("x")), "unknown_item"),
    "a conversation": (response(message("x"), conversation={"id": "conv_1"}), "stateful"),
    "an earlier response": (response(message("x"), previous_response_id="resp_0"), "stateful"),
}


@pytest.mark.parametrize(("body", "reason"), NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_only_a_completed_ordinary_response_is_kept(body: dict[str, Any], reason: str) -> None:
    assert verdict(body) == reason


WHOLE: dict[str, dict[str, Any]] = {
    "text": response(message("x")),
    "reasoning and text": response(reasoning("x", encrypted_content="g=="), message("x")),
    "an empty text beside another": response(message("", "x")),
}


@pytest.mark.parametrize("body", WHOLE.values(), ids=WHOLE)
def test_a_completed_ordinary_response_is_kept(body: dict[str, Any]) -> None:
    assert verdict(body) == ""


CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "a call": (response(function_call("f", "{}")), ""),
    "a custom call": (RICH, ""),
    "a call without a name": (response(function_call("", "{}")), "tool_calls"),
    "a call without arguments": (response({**function_call("f", "{}"), "arguments": None}), "tool_calls"),
    "a call without an id": (response(function_call("f", "{}", call_id=None)), "tool_calls"),
    "a call in progress": (response(function_call("f", "{}", status="in_progress")), "tool_calls"),
}


@pytest.mark.parametrize(("body", "reason"), CALLS.values(), ids=CALLS)
def test_calls_are_kept_whole_where_policy_keeps_them(body: dict[str, Any], reason: str) -> None:
    assert verdict(body, WITH_CALLS) == reason


# Rendering


def rendered(whole: dict[str, Any], *, stream: bool) -> bytes:
    dialect = ResponsesDialect(max_reply_bytes=1 << 20)
    reply = Reply(body=whole, source="body")
    return dialect.render(reply, Wire(stream=stream), tail="0" * 50, now_s=1_800_000_000.7)[1]


def test_a_hit_is_the_live_body_with_a_new_id_and_new_times() -> None:
    body = msgspec.json.decode(rendered(RICH, stream=False))
    times = {"created_at": 1_800_000_000, "completed_at": 1_800_000_003}
    assert list(body) == list(RICH)
    assert body == {**RICH, "id": "resp_" + "0" * 50, **times}


TIMES: dict[str, tuple[dict[str, Any], Any]] = {
    "shifted alike": ({"created_at": 100, "completed_at": 107}, 1007),
    "shifted with its fraction": ({"created_at": 100.5, "completed_at": 102.0}, 1001.5),
    "never before creation": ({"created_at": 100, "completed_at": 90}, 1000),
    "nonsense": ({"created_at": 0, "completed_at": 2**63}, 1000),
    "without a creation": ({"completed_at": 90}, 1000),
    "null": ({"created_at": 100, "completed_at": None}, None),
}


@pytest.mark.parametrize(("body", "completed"), TIMES.values(), ids=TIMES)
def test_the_time_of_completion_moves_with_that_of_creation(body: dict[str, Any], completed: Any) -> None:
    made = fresh(body, "resp_1", 1000)
    assert (made["created_at"], made["completed_at"]) == (1000, completed)


def test_a_replay_tells_the_same_events_as_the_live_stream_but_for_the_cut_of_deltas() -> None:
    def outline(payloads: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        names = (
            "type",
            "output_index",
            "content_index",
            "summary_index",
            "annotation_index",
            "item_id",
            "part",
            "item",
        )
        found = [tuple(encode(one.get(name)) for name in (*names, "item")) for one in payloads]
        return [one for number, one in enumerate(found) if number == 0 or one != found[number - 1]]

    raw = rendered(RICH, stream=True).split(b"\n\n")
    assert raw.pop() == b""
    replayed = []
    for block in raw:
        name, data = block.split(b"\n")
        replayed.append(msgspec.json.decode(data.removeprefix(b"data: ")))
        assert name == b"event: " + replayed[-1]["type"].encode()
    assert outline(replayed) == outline(told())
    assert [one["sequence_number"] for one in replayed] == list(range(len(replayed)))
    assert all("obfuscation" not in one for one in replayed)
    assert replayed[0]["response"]["status"] == "in_progress"
    assert (replayed[0]["response"]["output"], replayed[0]["response"]["usage"]) == ([], None)
    assert replayed[-1]["response"] == msgspec.json.decode(rendered(RICH, stream=False))
    assert replayed[-1]["response"]["created_at"] != CREATED_S


def test_logprobs_come_with_the_whole_text() -> None:
    whole = response(message(text_part("Two words", logprobs=LOGPROBS)))
    raw = rendered(whole, stream=True)
    deltas = [block for block in raw.split(b"\n\n") if b"event: response.output_text.delta" in block]
    (delta,) = [msgspec.json.decode(block.partition(b"data: ")[2]) for block in deltas]
    assert (delta["delta"], delta["logprobs"]) == ("Two words", LOGPROBS)
    assert isinstance(fold_events(event + b"\n\n" for event in raw.split(b"\n\n")[:-1]), Reply)
