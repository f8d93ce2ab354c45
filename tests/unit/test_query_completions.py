from __future__ import annotations

from typing import Any

import pytest

from cacheproxy.model import Controls, Query, Scope, Trait, Wire
from cacheproxy.query.chat import read_chat
from cacheproxy.query.completions import read_completion

TENANT = Scope(tenant="t" * 64)


def ask(prompt: object = "Hi", *, scope: Scope = TENANT, variant: bytes = b"", **fields: Any) -> Query:
    return read_completion({"model": "m", "prompt": prompt, **fields}, scope, Controls(), variant)


def prints(query: Query) -> tuple[bytes, bytes]:
    return query.fingerprint, query.compatibility


def test_a_plain_prompt_has_no_trait_and_keeps_its_text() -> None:
    query = ask("Hi\r\n é\u0301", temperature=0.2)
    assert (query.traits, query.text, query.model) == (frozenset(), "Hi\r\n é\u0301", "m")
    assert (query.temperature, query.wire, query.dialect) == (0.2, Wire(), "completions")


PROMPTS: dict[str, tuple[object, set[Trait], str]] = {
    "one in a list": (["Hi"], set(), "Hi"),
    "blank": (" \n", {Trait.NO_TEXT}, " \n"),
    "empty": ("", {Trait.NO_TEXT}, ""),
    "null": (None, {Trait.NO_TEXT}, ""),
    "several": (["Hi", "there"], {Trait.MANY_PROMPTS}, ""),
    "token ids": ([1, 2], {Trait.NO_TEXT}, ""),
    "one list of token ids": ([[1, 2]], {Trait.NO_TEXT}, ""),
    "several lists of token ids": ([[1], [2]], {Trait.NO_TEXT, Trait.MANY_PROMPTS}, ""),
    "no prompt": ([], {Trait.UNREADABLE}, ""),
    "a number": (5, {Trait.UNREADABLE}, ""),
    "an object": ({"text": "Hi"}, {Trait.UNREADABLE}, ""),
    "texts and token ids": (["Hi", 5], {Trait.UNREADABLE}, ""),
    "token ids that are none": ([True, 1.5], {Trait.UNREADABLE}, ""),
    "an empty list of token ids": ([[]], {Trait.UNREADABLE}, ""),
}


@pytest.mark.parametrize(("prompt", "traits", "text"), PROMPTS.values(), ids=PROMPTS)
def test_only_a_prompt_of_one_text_may_be_matched_by_similarity(prompt: object, traits: set[Trait], text: str) -> None:
    query = ask(prompt)
    assert query.traits == traits
    assert query.text == text


def test_a_body_without_a_prompt_has_no_text() -> None:
    assert read_completion({"model": "m"}, TENANT, Controls()).traits == {Trait.NO_TEXT}


TRAITS: dict[str, tuple[dict[str, Any], set[Trait]]] = {
    "n of 2": ({"n": 2}, {Trait.MANY_CHOICES}),
    "n of 1": ({"n": 1}, set()),
    "best_of 2": ({"best_of": 2}, {Trait.BEST_OF}),
    "best_of 1": ({"best_of": 1}, set()),
    "logprobs of 0 are a value": ({"logprobs": 0}, {Trait.LOGPROBS}),
    "logprobs": ({"logprobs": 5}, {Trait.LOGPROBS}),
    "logprobs null": ({"logprobs": None}, set()),
    "logprobs false": ({"logprobs": False}, set()),
    "echo": ({"echo": True}, {Trait.ECHO}),
    "no echo": ({"echo": False}, set()),
    "suffix": ({"suffix": " end"}, {Trait.SUFFIX}),
    "no suffix": ({"suffix": None}, set()),
    "a schema": ({"response_format": {"type": "json_object"}}, {Trait.RESPONSE_FORMAT}),
    "store": ({"store": True}, {Trait.STATEFUL}),
    "stream is text": ({"stream": "true"}, {Trait.UNREADABLE}),
    "temperature is text": ({"temperature": "1.5"}, {Trait.UNREADABLE}),
    "an unknown field": ({"vendor": {"x": 1}}, set()),
}


@pytest.mark.parametrize(("fields", "traits"), TRAITS.values(), ids=TRAITS)
def test_a_field_that_limits_caching_becomes_a_trait(fields: dict[str, Any], traits: set[Trait]) -> None:
    assert ask(**fields).traits == traits


def test_a_caller_without_a_credential_is_anonymous() -> None:
    assert ask(scope=Scope(tenant="")).traits == {Trait.ANONYMOUS}


def test_a_prompt_alone_in_a_list_is_that_prompt() -> None:
    assert prints(ask(["Hi"])) == prints(ask("Hi"))


def test_the_text_of_a_prompt_changes_only_the_exact_fingerprint() -> None:
    one, other = ask("Hi"), ask("Hi ")
    assert one.compatibility == other.compatibility
    assert one.fingerprint != other.fingerprint


def test_prompts_that_only_look_alike_are_told_apart() -> None:
    shapes: list[Any] = [
        "Hi",
        ["Hi", "there"],
        ["Hi", "there", ""],
        [["Hi"]],
        ["text"],
        ["prompt", "Hi"],
        None,
        [],
        [1],
        [[1]],
        [1.0],
        ["1"],
    ]
    assert len({ask(shape).fingerprint for shape in shapes}) == len(shapes)


def test_a_chat_and_a_completion_never_share_a_key() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi"}
    keys = {*prints(read_chat(body, TENANT, Controls())), *prints(read_completion(body, TENANT, Controls()))}
    assert len(keys) == 4


def test_the_wire_form_is_part_of_no_fingerprint() -> None:
    streamed = ask(stream=True, stream_options={"include_usage": True})
    assert streamed.wire == Wire(stream=True, include_usage=True)
    assert prints(streamed) == prints(ask())
    assert prints(ask(stream=True, stream_options={"chunk_size": 5})) != prints(ask())


def test_the_query_string_is_part_of_both_fingerprints() -> None:
    assert len({*prints(ask(variant=b"?a=1")), *prints(ask(variant=b"?a=2")), *prints(ask())}) == 6
