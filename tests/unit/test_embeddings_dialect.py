"""An answer is taken apart into single vectors, and put together again without losing anything."""

from __future__ import annotations

import base64
import math
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheproxy.dialect import usage, vectors
from cacheproxy.dialect.embeddings import EmbeddingsFold, Item, flaw, item_of, read_item, single, written
from cacheproxy.dialect.splitter import ArraySplitter
from cacheproxy.model import Reply
from cacheproxy.query.embeddings import Encoding

JSON = (("content-type", "application/json"),)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
DOUBLES = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(max_size=8) | st.sampled_from(['"data":[', "\\", '"', "]", "}", '{"data":[{', "data"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | DOUBLES | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=3)


def encode(value: object) -> bytes:
    return msgspec.json.encode(value)


def base64_of(*numbers: float) -> str:
    return base64.b64encode(np.array(numbers, dtype="<f4").tobytes()).decode()


# Taking apart


@given(
    before=OBJECTS,
    elements=st.lists(OBJECTS, max_size=4),
    after=OBJECTS,
    cuts=st.lists(st.integers(0, 400), max_size=6),
    spaced=st.booleans(),
)
def test_elements_and_rest_are_found_wherever_the_bytes_are_cut(
    before: dict[str, Any], elements: list[dict[str, Any]], after: dict[str, Any], cuts: list[int], spaced: bool
) -> None:
    body = {**before, "data": elements, **{key: value for key, value in after.items() if key != "data"}}
    body.pop("data")
    body = {**body, "data": elements}
    raw = msgspec.json.format(encode(body), indent=2) if spaced else encode(body)
    splitter = ArraySplitter("data")
    places = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    for start, end in pairwise(places):
        splitter.feed(raw[start:end])
    assert [msgspec.json.decode(element) for element in splitter.elements] == elements
    assert msgspec.json.decode(splitter.rest) == {**body, "data": [0] * len(elements)}
    assert not splitter.doubled


@pytest.mark.parametrize("unit", [b"{},", b"[],", b'"a",', b"[[[[", b'{"a":['])
def test_what_no_answer_holds_is_not_taken_apart(unit: bytes) -> None:
    splitter = ArraySplitter("data", most=2)
    splitter.feed(b'{"data":[')
    for _ in range(100):
        splitter.feed(unit * 1000)
    assert splitter.crowded
    assert len(splitter.elements) + len(splitter.rest) == 0


def test_an_answer_with_more_items_than_were_asked_for_is_not_read() -> None:
    made = EmbeddingsFold(JSON, most=1)
    made.feed(encode(answer([0.5], [0.25])))
    assert made.reply() == "malformed_body"


def fold(raw: bytes, headers: tuple[tuple[str, str], ...] = JSON) -> EmbeddingsFold:
    made = EmbeddingsFold(headers)
    assert made.feed(raw) == raw
    assert made.flush() == b""
    return made


def answer(*embeddings: object, **fields: Any) -> dict[str, Any]:
    data = [{"object": "embedding", "index": at, "embedding": one} for at, one in enumerate(embeddings)]
    return {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 3}, **fields}


def test_a_whole_answer_folds_into_its_envelope_and_elements() -> None:
    made = fold(encode(answer([0.5], [0.25])))
    reply = made.reply()
    assert isinstance(reply, Reply)
    assert reply.body == answer() | {"data": [0, 0]}
    assert len(made.elements) == 2


UNREAD: dict[str, tuple[bytes, str]] = {
    "cut in a number": (encode(answer([0.5]))[:60], "malformed_body"),
    "cut before the end": (encode(answer([0.5]))[:-1], "malformed_body"),
    "two of it": (encode(answer([0.5])) * 2, "malformed_body"),
    "array": (b"[" + encode(answer([0.5])) + b"]", "malformed_body"),
    "empty": (b"", "malformed_body"),
    "number among elements": (b'{"data":[{"index":0},0]}', "malformed_body"),
    "data twice": (b'{"data":[{"index":0}],"data":[{"index":0}]}', "malformed_body"),
    "comma missing": (b'{"data":[{"index":0}{"index":1}]}', "malformed_body"),
    "HTML": (b"<html>", "malformed_body"),
    "deep": (b'{"data":[],"a":' + b"[" * 500 + b"]" * 500 + b"}", "nested_too_deep"),
}


@pytest.mark.parametrize(("raw", "reason"), UNREAD.values(), ids=UNREAD)
def test_bytes_that_make_no_answer_say_why(raw: bytes, reason: str) -> None:
    assert fold(raw).reply() == reason


def test_an_answer_that_is_not_said_to_be_json_is_not_read() -> None:
    assert fold(encode(answer([0.5])), (("content-type", "text/plain"),)).reply() == "not_json"


FLAWED: dict[str, tuple[bytes, str]] = {
    "NaN": (b'{"index":0,"embedding":[NaN]}', "malformed_item"),
    "infinity": (b'{"index":0,"embedding":[Infinity]}', "malformed_item"),
    "out of a double's range": (b'{"index":0,"embedding":[1e999]}', "malformed_item"),
    "null": (b'{"index":0,"embedding":[null]}', "malformed_item"),
    "boolean": (b'{"index":0,"embedding":[true]}', "malformed_item"),
    "text": (b'{"index":0,"embedding":["1"]}', "malformed_item"),
    "nested": (b'{"index":0,"embedding":[[1]]}', "malformed_item"),
    "no vector": (b'{"index":0}', "malformed_item"),
    "vector null": (b'{"index":0,"embedding":null}', "malformed_item"),
    "no index": (b'{"embedding":[1]}', "malformed_item"),
    "index as text": (b'{"index":"0","embedding":[1]}', "malformed_item"),
    "index as a boolean": (b'{"index":true,"embedding":[1]}', "malformed_item"),
    "a list": (b"[0,[1]]", "malformed_item"),
    "brackets crossed": (b'{"index":0,"embedding":[1}]', "malformed_item"),
    "empty": (b'{"index":0,"embedding":[]}', "vector_empty"),
    "base64 empty": (b'{"index":0,"embedding":""}', "vector_not_sound"),
    "base64 broken": (b'{"index":0,"embedding":"AAA"}', "vector_not_sound"),
    "base64 of other letters": (b'{"index":0,"embedding":"AA*AAA=="}', "vector_not_sound"),
    "base64 not of floats": (b'{"index":0,"embedding":"AAAAAAA="}', "vector_not_sound"),
    "base64 of NaN": (encode({"index": 0, "embedding": base64_of(math.nan)}), "vector_not_sound"),
    "base64 of infinity": (encode({"index": 0, "embedding": base64_of(1.0, math.inf)}), "vector_not_sound"),
    "deep": (b'{"index":0,"embedding":[1],"x":' + b"[" * 500 + b"]" * 500 + b"}", "nested_too_deep"),
}


@pytest.mark.parametrize(("element", "reason"), FLAWED.values(), ids=FLAWED)
def test_an_item_that_is_not_sound_says_why(element: bytes, reason: str) -> None:
    assert read_item(element) == reason


def item(index: int, length: int = 2) -> Item:
    made = read_item(encode({"index": index, "embedding": [0.5] * length}))
    assert isinstance(made, Item)
    return made


@pytest.mark.parametrize(
    ("items", "expected", "dimensions", "reason"),
    [
        ([item(0), item(1)], 2, None, ""),
        ([item(1), item(0)], 2, 2, ""),
        ([item(0)], 2, None, "wrong_indexes"),
        ([item(0), item(1), item(2)], 2, None, "wrong_indexes"),
        ([item(0), item(0)], 2, None, "wrong_indexes"),
        ([item(1), item(2)], 2, None, "wrong_indexes"),
        ([item(-1), item(0)], 2, None, "wrong_indexes"),
        ([], 1, None, "wrong_indexes"),
        ([item(0), item(1, 3)], 2, None, "wrong_dimensions"),
        ([item(0), item(1)], 2, 3, "wrong_dimensions"),
    ],
)
def test_only_one_item_for_each_input_is_an_answer(
    items: list[Item], expected: int, dimensions: int | None, reason: str
) -> None:
    assert flaw(items, expected, dimensions) == reason


# Putting together


@given(
    envelope=OBJECTS.filter(lambda body: "data" not in body and "usage" not in body),
    fields=OBJECTS.filter(lambda body: not body.keys() & {"index", "embedding"}),
    vector=st.lists(FLOATS, min_size=1, max_size=5),
    kept=st.sampled_from(Encoding),
    told=VALUES,
)
def test_a_kept_input_is_what_the_backend_would_have_said_to_it_alone(
    envelope: dict[str, Any], fields: dict[str, Any], vector: list[float], kept: Encoding, told: object
) -> None:
    stored: object = vector if kept is Encoding.FLOAT else base64_of(*vector)
    element = read_item(encode({**fields, "index": 7, "embedding": stored}))
    assert isinstance(element, Item)
    body = single({**envelope, "data": [0], "usage": 1}, element, told)
    kept_as = stored if isinstance(stored, str) else encode(stored).decode()
    alone = {**envelope, "data": [{**fields, "index": 0, "embedding": kept_as}], "usage": told}
    assert encode(body) == encode(alone)
    for encoding, wanted in ((Encoding.FLOAT, vector), (Encoding.BASE64, base64_of(*vector))):
        shown = item_of(body, encoding)
        assert shown is not None
        assert shown.length == len(vector)
        parts = list(written(body, [shown, shown], None, 1))
        shown_now = msgspec.json.decode(b"".join(parts))
        if kept is Encoding.BASE64 and encoding is Encoding.FLOAT:  # the shortest decimals of the same float32
            for one in shown_now["data"]:
                one["embedding"] = np.array(one["embedding"], dtype=np.float32).tolist()
        assert shown_now == {
            **alone,
            "data": [{**fields, "index": at, "embedding": wanted} for at in range(2)],
        }


@given(st.lists(FLOATS, min_size=1))
def test_a_float32_survives_both_ways(vector: list[float]) -> None:
    encoded = base64_of(*vector)
    numbers = msgspec.json.decode(vectors.to_numbers(encoded) or b"")
    assert np.array(numbers, dtype=np.float32).tolist() == vector
    assert vectors.to_base64(vector) == encoded
    assert vectors.length_of(vector) == vectors.length_of(encoded) == len(vector)


@given(st.lists(DOUBLES, min_size=1))
def test_numbers_are_the_same_doubles_again(vector: list[float]) -> None:
    element = read_item(encode({"index": 0, "embedding": vector}))
    assert isinstance(element, Item)
    shown = item_of(single({"data": []}, element, None), Encoding.FLOAT)
    assert shown is not None
    assert msgspec.json.decode(shown.fields["embedding"]) == vector


@pytest.mark.parametrize("number", ["1e39", "-1E+39", "1" + "0" * 40])
def test_what_float32_cannot_hold_has_no_base64(number: str) -> None:
    element = read_item(b'{"index":0,"embedding":[ %b, 1]}' % number.encode())
    assert isinstance(element, Item)
    body = single({"data": []}, element, None)
    assert item_of(body, Encoding.BASE64) is None
    shown = item_of(body, Encoding.FLOAT)
    assert shown is not None
    assert bytes(shown.fields["embedding"]) == b"[ %b, 1]" % number.encode()
    assert shown.length == 2


def test_numbers_are_written_as_their_shortest_decimals() -> None:
    encoded = base64_of(0.1, -0.6277736, 1e-8, 3.4e38, 1.0, -0.0)
    assert vectors.to_numbers(encoded) == b"[0.1,-0.6277736,1e-08,3.4e+38,1.0,-0.0]"
    assert vectors.to_numbers("AAAA") is None


# Usage


@given(total=st.integers(0, 10**6), weights=st.lists(st.integers(1, 10**5), min_size=1, max_size=50))
def test_shares_add_up_to_the_whole_and_none_is_off_by_one(total: int, weights: list[int]) -> None:
    shares = usage.apportion(total, weights)
    assert sum(shares) == total
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - total * weight / sum(weights)) < 1


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=50))
def test_tokens_count_for_themselves(weights: list[int]) -> None:
    assert usage.apportion(sum(weights), weights) == weights


def test_usage_is_shared_and_added_at_any_depth() -> None:
    told = {"prompt_tokens": 10, "details": {"cached": 3, "note": "n"}, "cost": 0.5, "flag": True, "none": None}
    shares = usage.shares(told, [1, 3])
    assert [share["prompt_tokens"] for share in shares] == [3, 7]
    assert [share["details"]["cached"] for share in shares] == [1, 2]
    assert usage.added(shares) == told
    assert usage.shares(told, [4]) == [told]


@pytest.mark.parametrize(
    ("usages", "total"),
    [
        ([], None),
        ([None, None], None),
        ([None, {"a": 1}], {"a": 1}),
        ([{"a": 1}, {"a": 2, "b": 1}], {"a": 3, "b": 1}),
        ([{"a": None}, {"a": 2}], {"a": 2}),
        ([{"a": "x"}, {"a": "y"}], {"a": "y"}),
        ([{"a": True}, {"a": True}], {"a": True}),
    ],
)
def test_usages_are_added_as_far_as_they_are_told(usages: list[object], total: object) -> None:
    assert usage.added(usages) == total
