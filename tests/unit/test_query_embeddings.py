"""An embeddings request has one key for each input, whatever the list it came in and the form it is wanted in."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from cacheproxy.model import Controls, Scope, Tier, Trait
from cacheproxy.query.embeddings import MAX_INPUTS, Asked, Encoding, read_embeddings

SCOPE = Scope(tenant="t")


def read(value: object = "hello", scope: Scope = SCOPE, variant: bytes = b"", **fields: Any) -> Asked:
    return read_embeddings({"model": "m", "input": value, **fields}, scope, Controls(), variant)


def keys(asked: Asked) -> list[bytes]:
    return [one.fingerprint for one in asked.inputs]


@pytest.mark.parametrize(
    ("value", "inputs", "listed", "weights"),
    [
        ("hello", ["hello"], False, [5]),
        ("zwölf", ["zwölf"], False, [6]),
        (["hello"], ["hello"], True, [5]),
        (["b", "a", "b"], ["b", "a", "b"], True, [1, 1, 1]),
        ([3, 1, 2], [[3, 1, 2]], False, [3]),
        ([0], [[0]], False, [1]),
        ([[3, 1], [2]], [[3, 1], [2]], True, [2, 1]),
        (["a"] * MAX_INPUTS, ["a"] * MAX_INPUTS, True, [1] * MAX_INPUTS),
    ],
)
def test_inputs_are_read_in_their_order(value: object, inputs: list[object], listed: bool, weights: list[int]) -> None:
    asked = read(value)
    assert [one.value for one in asked.inputs] == inputs
    assert [one.weight for one in asked.inputs] == weights
    assert asked.listed is listed
    assert Trait.UNREADABLE not in asked.query.traits


SHAPES: dict[str, dict[str, Any]] = {
    "absent": {"input": None},
    "number": {"input": 7},
    "object": {"input": {"text": "a"}},
    "empty text": {"input": ""},
    "empty list": {"input": []},
    "empty text in a list": {"input": ["a", ""]},
    "empty tokens in a list": {"input": [[1], []]},
    "mixed": {"input": ["a", [1]]},
    "mixed with a number": {"input": ["a", 1]},
    "null in a list": {"input": ["a", None]},
    "nested too deep": {"input": [[[1]]]},
    "texts nested": {"input": [["a"]]},
    "fractions": {"input": [1.5]},
    "booleans": {"input": [True, False]},
    "negative": {"input": [-1]},
    "objects": {"input": [{"text": "a"}]},
    "too many": {"input": ["a"] * (MAX_INPUTS + 1)},
    "unknown encoding": {"encoding_format": "int8"},
    "encoding of another type": {"encoding_format": ["float"]},
    "dimensions as text": {"dimensions": "8"},
    "no dimensions": {"dimensions": 0},
    "dimensions as a boolean": {"dimensions": True},
}


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_a_shape_that_is_not_understood_is_left_to_the_backend(fields: dict[str, Any]) -> None:
    asked = read_embeddings({"model": "m", "input": "a", **fields}, SCOPE, Controls())
    assert Trait.UNREADABLE in asked.query.traits
    assert asked.inputs == ()


def test_an_inputs_place_and_the_encoding_are_not_part_of_its_key() -> None:
    alone = keys(read("b"))
    assert keys(read(["b"])) == alone
    assert keys(read(["a", "b"]))[1:] == alone
    assert keys(read(["b", "a", "b"]))[::2] == alone * 2
    assert keys(read("b", encoding_format="base64")) == keys(read("b", encoding_format=None)) == alone
    assert keys(read([1, 2])) == keys(read([[1, 2]]))


APART: dict[str, Asked] = {
    "plain": read(),
    "other text": read("hello "),
    "other case": read("Hello"),
    "tokens": read([104, 101]),
    "tokens as text": read("[104,101]"),
    "other tokens": read([101, 104]),
    "tenant": read(scope=Scope(tenant="u")),
    "namespace": read(scope=Scope(tenant="t", namespace="n")),
    "query string": read(variant=b"?a=1"),
    "model": read(model="n"),
    "dimensions": read(dimensions=8),
    "user": read(user="u"),
    "unknown field": read(input_type="query"),
}


@pytest.mark.parametrize(("left", "right"), list(combinations(APART, 2)))
def test_whatever_else_differs_makes_another_key(left: str, right: str) -> None:
    assert keys(APART[left]) != keys(APART[right])


def test_one_call_is_shared_only_by_lists_of_one_form_and_order() -> None:
    def shared(asked: Asked) -> bytes:
        return asked.key(tuple(asked.distinct.values()))

    told = [read(["a", "b"]), read(["b", "a"]), read(["a", "b"], encoding_format="base64"), read("a"), read(["a"])]
    assert len({shared(asked) for asked in told}) == len(told)
    assert shared(read(["a", "b", "a"])) == shared(read(["a", "b"]))


def test_no_vector_is_ever_looked_for_by_similarity() -> None:
    assert read().query.controls.tiers == {Tier.EXACT}
    off = read_embeddings({"model": "m", "input": "a"}, SCOPE, Controls(tiers=frozenset()))
    assert off.query.controls.tiers == frozenset()
    assert read().query.text == ""


def test_the_encoding_is_float_unless_base64_is_asked_for() -> None:
    assert read().encoding is read(encoding_format="float").encoding is Encoding.FLOAT
    assert read(encoding_format="base64").encoding is Encoding.BASE64


def test_an_anonymous_request_has_its_trait() -> None:
    assert Trait.ANONYMOUS in read(scope=Scope(tenant="")).query.traits


def test_no_repr_shows_an_input() -> None:
    assert "hello" not in repr(read())
