from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheproxy.dialect.responses import ResponsesDialect, fresh, render_stream
from cacheproxy.dialect.responses_fold import StreamFold, fold_events
from cacheproxy.model import Controls, Plan, Reply, Scope, Wire
from cacheproxy.policy.admit import Keep, admit
from cacheproxy.query.canonical import canonical
from cacheproxy.query.responses import read_responses
from tests.support.chunking import chunkings
from tests.support.jsonvalues import changed, objects, values
from tests.support.openai_wire import DONE
from tests.support.responses_wire import events, response, typed

UNLIMITED = 10**7
CREATED_S = 1_800_000_000
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
    st.text(" \t\n\r\u3000\xa0", max_size=50),
    st.sampled_from(["Hello there.", "\U0001f600" * 50, "a" * 200, "a  b\n\n c ", "data: [DONE]\n\n", "\u2028"]),
)
visible = texts.filter(lambda text: bool(text.strip()))


def vendor_fields(*taken: str) -> st.SearchStrategy[dict[str, Any]]:
    names = st.text(min_size=1).filter(lambda name: name not in taken)
    return st.dictionaries(names | st.sampled_from(["x_groq", "citations", "provider"]), values, max_size=2)


def built(
    required: dict[str, st.SearchStrategy[Any]], optional: dict[str, st.SearchStrategy[Any]]
) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda vendor, told: {**vendor, **told},
        vendor_fields(*required, *optional),
        st.fixed_dictionaries(required, optional=optional),
    )


def part(kind: str, told: st.SearchStrategy[str], **optional: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return built({"type": st.just(kind), "text": told}, {"annotations": st.none(), "logprobs": st.none(), **optional})


lists = {"annotations": st.lists(objects, max_size=2), "logprobs": st.lists(objects, max_size=2)}
completed = {"status": st.just("completed")}
messages = built(
    {
        "id": st.text(),
        "type": st.just("message"),
        "role": st.just("assistant"),
        "content": st.lists(part("output_text", visible, **lists), min_size=1, max_size=2),
        **completed,
    },
    {"phase": st.text()},
)
reasonings = built(
    {
        "id": st.text(),
        "type": st.just("reasoning"),
        "summary": st.lists(built({"type": st.just("summary_text"), "text": texts}, {}) | values, max_size=2),
    },
    {
        "content": st.none() | st.lists(part("reasoning_text", texts) | values, max_size=2),
        "encrypted_content": st.none() | st.text(),
        "status": st.sampled_from([None, "completed"]),
    },
)
calls = st.one_of(
    *(
        built(
            {
                "type": st.just(kind),
                "call_id": st.text(min_size=1),
                "name": st.text(min_size=1),
                field: texts,
            },
            {"id": st.text(), **completed},
        )
        for kind, field in (("function_call", "arguments"), ("custom_tool_call", "input"))
    )
)
envelopes = built(
    {"id": st.just("resp_live"), "object": st.just("response"), "created_at": st.integers(0, 2**40)},
    {
        "status": st.just("completed"),
        "output": st.just([]),
        "error": st.none(),
        "incomplete_details": st.none(),
        "conversation": st.none(),
        "previous_response_id": st.none(),
        "completed_at": st.none() | st.floats(allow_nan=False) | st.integers(0, 2**41),
        "usage": st.none() | objects,
        "model": st.text(),
        "type": st.text(),
    },
)


@st.composite
def responses(draw: st.DrawFn) -> dict[str, Any]:
    """Return a whole, ordinary response with everything that vendors add to it."""
    output = [*draw(st.lists(reasonings | messages | calls, max_size=3)), draw(messages)]
    return {**draw(envelopes), "status": "completed", "output": output}


def folded(chunks: list[bytes]) -> tuple[Reply | str, bytes]:
    fold = StreamFold(limit=UNLIMITED)
    passed = b"".join([fold.feed(chunk) for chunk in chunks]) + fold.flush()
    return fold.reply(), passed


def told(reply: Reply | str) -> bytes:
    assert isinstance(reply, Reply), reply
    return canonical(reply.body)


@given(data=st.data(), body=responses())
@settings(max_examples=60)
def test_a_replayed_stream_folds_back_into_the_same_response(data: st.DataObject, body: dict[str, Any]) -> None:
    assert isinstance(admit("responses", 200, [], Reply(body=body, source="body"), PLAN), Keep)
    hit = fresh(body, "resp_new", CREATED_S)
    stream = render_stream(hit)
    again, passed = folded(data.draw(chunkings(stream)))
    assert passed == stream
    assert told(again) == canonical(hit)


@given(body=responses())
def test_a_replayed_body_is_the_live_body_under_a_new_name(body: dict[str, Any]) -> None:
    dialect = ResponsesDialect(max_reply_bytes=UNLIMITED)
    _, raw = dialect.render(Reply(body=body, source="stream"), Wire(), tail="0" * 50, now_s=CREATED_S + 0.5)
    hit = msgspec.json.decode(raw)
    assert list(hit) == list(body)
    assert (hit["id"], hit["created_at"]) == ("resp_" + "0" * 50, CREATED_S)
    assert hit.get("completed_at") is None or hit["completed_at"] >= CREATED_S
    renamed = ("id", "created_at", "completed_at")
    assert canonical({key: value for key, value in hit.items() if key not in renamed}) == canonical(
        {key: value for key, value in body.items() if key not in renamed}
    )


@given(data=st.data(), body=responses(), done=st.booleans())
def test_a_stream_cut_anywhere_before_its_end_makes_no_reply(
    data: st.DataObject, body: dict[str, Any], done: bool
) -> None:
    live = render_stream(body)
    end = data.draw(st.integers(0, len(live) - 1))
    kept, passed = folded(data.draw(chunkings(live[:end])))
    assert kept == "stream_not_finished"
    assert passed == live[:end]
    whole, _ = folded([live, DONE if done else b""])
    assert told(whole) == canonical(body)


@given(data=st.data(), body=responses())
def test_a_stream_that_lost_or_repeats_an_event_before_its_end_shows_it_or_does_not_matter(
    data: st.DataObject, body: dict[str, Any]
) -> None:
    stream = [event + b"\n\n" for event in render_stream(body).split(b"\n\n")[:-1]]
    at = data.draw(st.integers(0, len(stream) - 2))
    again = fold_events([*stream[: at + 1], stream[at], *stream[at + 1 :]], UNLIMITED)
    assert again == "inconsistent_stream"
    less = fold_events([*stream[:at], *stream[at + 1 :]], UNLIMITED)
    if b'"type":"response.output_text.delta"' in stream[at]:
        assert less == "inconsistent_stream"
    else:
        assert less == "inconsistent_stream" or told(less) == canonical(body)


# Nonsense

indexes = st.integers(-1, 2) | values
payloads = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            [
                "response.created",
                "response.completed",
                "response.failed",
                "response.output_item.added",
                "response.output_text.delta",
                "response.output_text.done",
                "response.reasoning_summary_text.delta",
                "response.function_call_arguments.delta",
                "response.vendor",
                "error",
            ]
        )
        | values
    },
    optional={
        "response": values | st.builds(lambda output: response(output=output), values | st.lists(objects, max_size=2)),
        "output_index": indexes,
        "content_index": indexes,
        "summary_index": indexes,
        "delta": texts | values,
        "text": texts | values,
        "item": values | objects,
        "sequence_number": indexes,
        "error": values,
    },
)
raw_events = st.one_of(
    payloads.map(lambda payload: typed({"type": "x", **payload}).partition(b"\n")[2]),
    st.binary(max_size=30).map(lambda data: b"data: " + data + b"\n\n"),
    st.sampled_from([DONE, b": ping\n\n", b"event: error\ndata: {}\n\n", *events(response(), obfuscated=True)]),
)


@given(told=st.lists(raw_events, max_size=6))
@settings(max_examples=200)
def test_folding_nonsense_never_fails(told: list[bytes]) -> None:
    stream = b"".join(told)
    reply, passed = folded([stream])
    assert isinstance(reply, Reply | str)
    assert passed == stream
    check_that_what_is_admitted_can_be_replayed(reply)


odd_parts = st.fixed_dictionaries(
    {"type": st.just("output_text"), "text": st.text(min_size=1)},
    optional={"annotations": values, "logprobs": values, "vendor": values},
)
odd_items = st.one_of(
    st.fixed_dictionaries(
        {"type": st.just("message"), "status": st.just("completed"), "content": st.lists(odd_parts, max_size=2)},
        optional={"id": values, "role": values, "summary": values | st.lists(values, max_size=2), "arguments": values},
    ),
    st.fixed_dictionaries(
        {"type": st.just("reasoning")}, optional={"summary": values, "content": values, "id": values, "input": values}
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("function_call"),
            "name": st.text(min_size=1),
            "arguments": st.text(),
            "call_id": st.text(min_size=1),
        },
        optional={"id": values, "content": st.lists(values, max_size=2), "summary": values},
    ),
    values,
)


@given(output=st.lists(odd_items, min_size=1, max_size=3), envelope=objects)
@settings(max_examples=200)
def test_whatever_is_admitted_can_be_replayed(output: list[Any], envelope: dict[str, Any]) -> None:
    body = {**envelope, "status": "completed", "output": output}
    check_that_what_is_admitted_can_be_replayed(Reply(body=body, source="body"))


def check_that_what_is_admitted_can_be_replayed(reply: Reply | str) -> None:
    verdict = admit("responses", 200, [], reply, PLAN)
    if isinstance(verdict, Keep):
        dialect = ResponsesDialect(max_reply_bytes=UNLIMITED)
        for stream in (True, False):
            _, raw = dialect.render(verdict.reply, Wire(stream=stream), tail="0" * 50, now_s=CREATED_S)
            last = raw.split(b"\n\n")[-2].partition(b"data: ")[2] if stream else raw
            made = msgspec.json.decode(last)
            assert (made["response"] if stream else made)["output"] == verdict.reply.body["output"]


# Requests

bodies = st.fixed_dictionaries(
    {"model": st.text(), "input": st.text() | values},
    optional={
        name: values
        for name in (
            "instructions",
            "tools",
            "tool_choice",
            "text",
            "store",
            "background",
            "prompt",
            "previous_response_id",
            "conversation",
            "include",
            "modalities",
            "stream",
            "stream_options",
            "temperature",
            "top_logprobs",
            "vendor",
        )
    },
)
items = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["message", "reasoning"]) | values,
        "role": st.just("user") | values,
        "content": st.lists(st.fixed_dictionaries({"type": st.just("input_text"), "text": values}) | values),
        "tools": values,
    },
)


@given(body=bodies, given_items=st.none() | st.lists(items, max_size=3))
@settings(max_examples=200)
def test_reading_any_body_never_fails(body: dict[str, Any], given_items: list[Any] | None) -> None:
    asked = body if given_items is None else {**body, "input": given_items}
    query = read_responses(asked, Scope(tenant="t" * 64), Controls())
    assert (len(query.fingerprint), len(query.compatibility)) == (32, 32)


@given(data=st.data(), body=bodies)
def test_a_changed_body_is_another_request(data: st.DataObject, body: dict[str, Any]) -> None:
    where, other = data.draw(changed(body))
    if not isinstance(other, dict) or (where and where[0] in ("stream", "stream_options")):
        return
    wire = ("stream", "stream_options")
    stripped = [{key: value for key, value in one.items() if key not in wire} for one in (body, other)]
    one, two = (read_responses(each, Scope(tenant="t" * 64), Controls()).fingerprint for each in stripped)
    assert (one == two) == (canonical(stripped[0]) == canonical(stripped[1]))
