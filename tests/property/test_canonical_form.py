from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from cacheproxy.errors import InvalidRequest
from cacheproxy.model import Controls, Query, Scope
from cacheproxy.query.canonical import canonical, decode
from cacheproxy.query.chat import read_chat
from tests.support.jsonvalues import changed, objects, reference, scalars, spelled, values

if TYPE_CHECKING:
    from random import Random

DEPTH = 16

randoms = st.randoms(use_true_random=False)


def strictly_read(body: bytes) -> Any:
    """Read JSON with the standard library, refusing whatever two parsers may read differently. Raises ValueError."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in found}) != len(found):
            raise ValueError("a key twice")
        return dict(found)

    def constant(name: str) -> NoReturn:
        raise ValueError(name)

    value = json.loads(body.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    _check(value, 1)
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004 - every refusal here is one kind
    return value


def _check(value: object, depth: int) -> None:
    match value:
        case dict():
            _check([*value, *value.values()], depth)
        case list():
            if depth > DEPTH:
                raise ValueError("too deep")
            for item in value:
                _check(item, depth + 1)
        case float() if not math.isfinite(value):
            raise ValueError("out of range")
        case str():
            value.encode("utf-8")  # an unpaired surrogate has no UTF-8: a UnicodeEncodeError is a ValueError


def assert_agrees_with_the_reference(body: bytes) -> None:
    try:
        expected = strictly_read(body)
    except ValueError:
        with pytest.raises(InvalidRequest):
            decode(body, DEPTH)
    else:
        assert reference(decode(body, DEPTH)) == reference(expected)


@given(value=objects, one=randoms, other=randoms)
def test_key_order_blanks_and_escapes_never_change_the_canonical_form(
    value: dict[str, Any], one: Random, other: Random
) -> None:
    first, second = (decode(spelled(value, random).encode(), DEPTH) for random in (one, other))
    assert canonical(first) == canonical(second) == canonical(value)


@given(data=st.data(), value=objects)
@settings(max_examples=200)
def test_any_change_of_a_value_a_type_or_a_key_changes_the_canonical_form(
    data: st.DataObject, value: dict[str, Any]
) -> None:
    _, other = data.draw(changed(value))
    assume(reference(other) != reference(value))  # an item may have been put before its equal
    assert canonical(other) != canonical(value)


@given(one=values, other=values)
def test_two_values_share_a_canonical_form_only_when_they_are_the_same(one: object, other: object) -> None:
    assert (canonical(one) == canonical(other)) == (reference(one) == reference(other))


@given(value=objects.filter(bool), random=randoms)
@settings(max_examples=100)
def test_a_repeated_key_is_refused_however_it_is_spelled(value: dict[str, Any], random: Random) -> None:
    body = spelled(value, random, twice=True).encode()
    with pytest.raises(InvalidRequest, match="repeats a key"):
        decode(body, 64)


@given(kinds=st.lists(st.sampled_from("[{"), min_size=10, max_size=20), beside=st.lists(scalars, max_size=2))
def test_nesting_is_refused_exactly_beyond_the_limit(kinds: list[str], beside: list[Any]) -> None:
    value: Any = 1
    for kind in kinds:
        value = [*beside, value, []] if kind == "[" else {"beside": beside[:1], "in": value}
    assert_agrees_with_the_reference(json.dumps({"top": value}).encode())


@given(body=st.binary(max_size=200))
@settings(max_examples=200)
def test_random_bytes_are_an_object_or_refused(body: bytes) -> None:
    assert_agrees_with_the_reference(body)


@given(body=st.text(alphabet='{}[]":,\\u003aA0189.eE+-ntflrsu \n', max_size=60))
@settings(max_examples=250)
@example(body='{"a":"\\ud800"}')
@example(body='{"\\u0061":1,"a":":"}')
@example(body='{"":-0,"0":0E0}')
def test_json_shaped_noise_is_an_object_or_refused(body: str) -> None:
    assert_agrees_with_the_reference(body.encode())


@given(data=st.data(), value=objects.filter(bool), random=randoms)
@settings(max_examples=250)
def test_damaged_json_is_an_object_or_refused(data: st.DataObject, value: dict[str, Any], random: Random) -> None:
    body = spelled(value, random).encode()
    for _ in range(data.draw(st.integers(1, 3))):
        start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(body))] * 2)))
        patch = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"\\u003a", b'"', b"\\", b"\\ud83d", b"1e999", b"NaN"])
        )
        body = body[:start] + data.draw(st.sampled_from([patch, body[start:end] * 2, b""])) + body[end:]
    assert_agrees_with_the_reference(body)


# What is in a key

TENANT = Scope(tenant="t" * 64)

texts = st.text(min_size=1).filter(str.strip)
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant"]), "content": st.text()},
    optional={"name": st.text()},
)
KNOWN = [
    "model",
    "temperature",
    "top_p",
    "n",
    "seed",
    "stop",
    "max_tokens",
    "max_completion_tokens",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "response_format",
    "user",
    "reasoning_effort",
    "modalities",
    "audio",
    "prediction",
    "store",
    "metadata",
    "service_tier",
    "verbosity",
    "web_search_options",
]

fields = st.dictionaries(
    st.sampled_from(KNOWN) | st.text().filter(lambda name: name not in ("messages", "stream", "stream_options")),
    values,
    max_size=5,
)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    last = {"role": "user", "content": draw(texts)}
    return {**draw(fields), "messages": [*draw(st.lists(turns, max_size=3)), last]}


def read(body: dict[str, Any]) -> Query:
    return read_chat(body, TENANT, Controls())


def with_last(body: dict[str, Any], content: object) -> dict[str, Any]:
    return {**body, "messages": [*body["messages"][:-1], {**body["messages"][-1], "content": content}]}


@given(data=st.data(), body=requests())
@settings(max_examples=250)
def test_a_change_anywhere_but_in_what_was_said_changes_both_fingerprints(
    data: st.DataObject, body: dict[str, Any]
) -> None:
    where, other = data.draw(changed(body))
    assume(where != ("messages", len(body["messages"]) - 1, "content"))
    assume(isinstance(other, dict) and reference(other) != reference(body))
    rest = {key: value for key, value in other.items() if key not in ("stream", "stream_options")}
    assume(reference(rest) == reference(other))
    one, two = read(body), read(other)
    assert one.fingerprint != two.fingerprint
    if not (one.chain and two.chain and reference(without_earlier(body)) == reference(without_earlier(other))):
        assert one.compatibility != two.compatibility


def without_earlier(body: dict[str, Any]) -> dict[str, Any]:
    """Return a request without what user and assistant said before: of a chain that may be matched by its meaning."""
    *earlier, last = body["messages"]
    return {**body, "messages": [*({**turn, "content": ""} if spoken(turn) else turn for turn in earlier), last]}


def spoken(turn: dict[str, Any]) -> bool:
    return turn.get("role") in ("user", "assistant")


@given(body=requests(), field=st.sampled_from(KNOWN) | texts, one=values, other=values)
@settings(max_examples=200)
def test_every_field_known_or_not_is_part_of_both_fingerprints(
    body: dict[str, Any], field: str, one: object, other: object
) -> None:
    assume(reference(one) != reference(other) and field not in ("messages", "stream", "stream_options"))
    without = {key: value for key, value in body.items() if key != field}
    queries = [read(without), read({**without, field: one}), read({**without, field: other})]
    assert len({query.compatibility for query in queries}) == 3
    assert len({query.fingerprint for query in queries}) == 3


@given(body=requests(), text=texts)
def test_a_change_of_the_last_user_text_changes_only_the_exact_fingerprint(body: dict[str, Any], text: str) -> None:
    assume(text != body["messages"][-1]["content"])
    one, two = read(body), read(with_last(body, text))
    assert one.compatibility == two.compatibility
    assert one.fingerprint != two.fingerprint


@given(body=requests(), other=values.filter(lambda value: not isinstance(value, str)))
def test_content_of_another_type_changes_both_fingerprints(body: dict[str, Any], other: object) -> None:
    one, two = read(body), read(with_last(body, other))
    assert one.compatibility != two.compatibility
    assert one.fingerprint != two.fingerprint


@given(
    body=requests(),
    stream=st.sampled_from([None, True, False]),
    options=st.none() | st.dictionaries(st.sampled_from(["include_usage", "include_obfuscation"]), st.booleans()),
)
def test_the_wire_form_changes_no_fingerprint(body: dict[str, Any], stream: object, options: object) -> None:
    one, two = read(body), read({**body, "stream": stream, "stream_options": options})
    assert (one.fingerprint, one.compatibility) == (two.fingerprint, two.compatibility)


@given(body=requests())
def test_a_string_is_one_text_part(body: dict[str, Any]) -> None:
    text = body["messages"][-1]["content"]
    one, two = read(body), read(with_last(body, [{"type": "text", "text": text}]))
    assert one == two


@given(body=objects | st.fixed_dictionaries({"messages": values, "stream": values, "stream_options": values}))
@settings(max_examples=200)
def test_reading_a_request_never_fails(body: dict[str, Any]) -> None:
    assert len(read(body).fingerprint) == 32


@given(
    messages=st.lists(
        st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "audio", "name"]), values | st.just("user")),
        max_size=3,
    ),
    options=st.fixed_dictionaries({}, optional={"stream_options": values, "temperature": values, "modalities": values}),
)
def test_reading_odd_messages_never_fails(messages: list[dict[str, Any]], options: dict[str, Any]) -> None:
    assert len(read({"messages": messages, **options}).compatibility) == 32
