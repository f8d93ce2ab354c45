from __future__ import annotations

from typing import Any

import pytest

from cacheproxy.model import Controls, Query, Scope, Trait, Wire
from cacheproxy.query.chat import read_chat

TENANT = Scope(tenant="t" * 64)
TEXT = {"type": "text", "text": "Hi"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


def read(body: dict[str, Any], *, scope: Scope = TENANT, variant: bytes = b"") -> Query:
    return read_chat(body, scope, Controls(), variant)


def ask(content: object = "Hi", **fields: Any) -> Query:
    return read({"model": "m", "messages": [{"role": "user", "content": content}], **fields})


def talk(*messages: Any, **fields: Any) -> Query:
    return read({"model": "m", "messages": list(messages), **fields})


def prints(query: Query) -> tuple[bytes, bytes]:
    return query.fingerprint, query.compatibility


def test_a_plain_question_has_no_trait_and_keeps_its_text() -> None:
    query = ask("Hi\r\n é\u0301", temperature=0.2)
    assert (query.traits, query.text, query.model) == (frozenset(), "Hi\r\n é\u0301", "m")
    assert (query.temperature, query.wire, query.dialect) == (0.2, Wire(), "chat")
    assert (len(query.fingerprint), len(query.compatibility)) == (32, 32)


TRAITS: dict[str, tuple[dict[str, Any], set[Trait]]] = {
    "tools": ({"tools": [{"type": "function"}]}, {Trait.TOOLS}),
    "no tools": ({"tools": []}, set()),
    "tool_choice none": ({"tool_choice": "none"}, {Trait.TOOLS}),
    "functions": ({"functions": [{}]}, {Trait.TOOLS}),
    "n of 2": ({"n": 2}, {Trait.MANY_CHOICES}),
    "n of 1": ({"n": 1}, set()),
    "n of null": ({"n": None}, set()),
    "n as text": ({"n": "1"}, {Trait.MANY_CHOICES}),
    "logprobs": ({"logprobs": True}, {Trait.LOGPROBS}),
    "top_logprobs": ({"top_logprobs": 3}, {Trait.LOGPROBS}),
    "no logprobs": ({"logprobs": False, "top_logprobs": 0}, set()),
    "audio": ({"audio": {"voice": "x"}}, {Trait.AUDIO}),
    "audio asked": ({"modalities": ["text", "audio"]}, {Trait.AUDIO}),
    "text asked": ({"modalities": ["text"]}, set()),
    "store": ({"store": True}, {Trait.STATEFUL}),
    "no store": ({"store": False}, set()),
    "conversation": ({"conversation": "c_1"}, {Trait.STATEFUL}),
    "web search": ({"web_search_options": {}}, {Trait.LIVE_SEARCH}),
    "JSON asked": ({"response_format": {"type": "json_object"}}, {Trait.RESPONSE_FORMAT}),
    "text format": ({"response_format": {"type": "text"}}, set()),
    "stream is text": ({"stream": "true"}, {Trait.UNREADABLE}),
    "stream is a number": ({"stream": 1}, {Trait.UNREADABLE}),
    "stream options are a list": ({"stream": True, "stream_options": [1]}, {Trait.UNREADABLE}),
    "stream options are text": ({"stream": True, "stream_options": "include_usage"}, {Trait.UNREADABLE}),
    "include_usage is text": ({"stream": True, "stream_options": {"include_usage": "yes"}}, {Trait.UNREADABLE}),
    "temperature is text": ({"temperature": "1.5"}, {Trait.UNREADABLE}),
    "temperature is true": ({"temperature": True}, {Trait.UNREADABLE}),
    "temperature is null": ({"temperature": None}, set()),
    "an unknown field": ({"vendor": {"x": 1}}, set()),
}


@pytest.mark.parametrize(("fields", "traits"), TRAITS.values(), ids=TRAITS)
def test_a_field_that_limits_caching_becomes_a_trait(fields: dict[str, Any], traits: set[Trait]) -> None:
    assert ask(**fields).traits == traits


CONTENTS: dict[str, tuple[Any, set[Trait]]] = {
    "text parts": ([TEXT, TEXT], set()),
    "an image": ([TEXT, IMAGE], {Trait.IMAGE}),
    "only an image": ([IMAGE], {Trait.IMAGE, Trait.NO_TEXT}),
    "audio": ([TEXT, {"type": "input_audio"}], {Trait.AUDIO}),
    "a file": ([TEXT, {"type": "file"}], {Trait.MIXED_CONTENT}),
    "a part without a type": ([TEXT, {"text": "x"}], {Trait.MIXED_CONTENT}),
    "a type that is no text": ([TEXT, {"type": ["text"]}], {Trait.MIXED_CONTENT}),
    "a part that is text": ([TEXT, "x"], {Trait.MIXED_CONTENT}),
    "nothing": (None, {Trait.NO_TEXT}),
    "empty": ("", {Trait.NO_TEXT}),
    "blank": (" \n\u3000", {Trait.NO_TEXT}),
    "no part": ([], {Trait.NO_TEXT}),
    "text that is null": ([{"type": "text", "text": None}], {Trait.NO_TEXT}),
    "a number": (5, {Trait.NO_TEXT}),
    "an object": ({"text": "x"}, {Trait.NO_TEXT}),
}


@pytest.mark.parametrize(("content", "traits"), CONTENTS.values(), ids=CONTENTS)
def test_content_that_is_not_all_text_becomes_a_trait(content: object, traits: set[Trait]) -> None:
    assert ask(content).traits == traits


MESSAGES: dict[str, tuple[list[Any], set[Trait]]] = {
    "after a system prompt": ([{"role": "system", "content": "x"}, {"role": "user", "content": "Hi"}], set()),
    "after an image": ([{"role": "user", "content": [IMAGE]}, {"role": "user", "content": "Hi"}], {Trait.IMAGE}),
    "after a tool": ([{"role": "tool", "content": "x"}, {"role": "user", "content": "Hi"}], {Trait.TOOLS}),
    "after a tool call": (
        [{"role": "assistant", "tool_calls": [{}]}, {"role": "user", "content": "Hi"}],
        {Trait.TOOLS},
    ),
    "after a spoken answer": (
        [{"role": "assistant", "audio": {"id": "a"}}, {"role": "user", "content": "Hi"}],
        {Trait.AUDIO},
    ),
    "an assistant's last word": ([{"role": "assistant", "content": "Hi"}], {Trait.LAST_MESSAGE, Trait.NO_TEXT}),
    "no role": ([{"content": "Hi"}], {Trait.LAST_MESSAGE, Trait.NO_TEXT}),
    "a role in another case": ([{"role": "User", "content": "Hi"}], {Trait.LAST_MESSAGE, Trait.NO_TEXT}),
    "a role that is a list": ([{"role": ["user"], "content": "Hi"}], {Trait.LAST_MESSAGE, Trait.NO_TEXT}),
    "none": ([], {Trait.UNREADABLE}),
    "text": (["Hi"], {Trait.UNREADABLE}),
    "one that is null": ([None, {"role": "user", "content": "Hi"}], {Trait.UNREADABLE}),
}


@pytest.mark.parametrize(("messages", "traits"), MESSAGES.values(), ids=MESSAGES)
def test_every_message_counts(messages: list[Any], traits: set[Trait]) -> None:
    assert talk(*messages).traits == traits


@pytest.mark.parametrize("messages", [None, "Hi", 5, {"role": "user", "content": "Hi"}, True])
def test_messages_of_another_type_are_the_backends_to_judge(messages: object) -> None:
    assert read({"model": "m", "messages": messages}).traits == {Trait.UNREADABLE}
    assert read({}).traits == {Trait.UNREADABLE}


def test_a_caller_without_a_credential_is_anonymous() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    assert read(body, scope=Scope(tenant="")).traits == {Trait.ANONYMOUS}


@pytest.mark.parametrize(
    ("fields", "wire"),
    [
        ({"stream": True}, Wire(stream=True)),
        ({"stream": False}, Wire()),
        ({"stream": None, "stream_options": None}, Wire()),
        ({"stream": True, "stream_options": {"include_usage": True}}, Wire(stream=True, include_usage=True)),
        ({"stream": True, "stream_options": {"include_usage": False}}, Wire(stream=True)),
        ({"stream": True, "stream_options": {"include_obfuscation": False}}, Wire(stream=True)),
    ],
)
def test_the_wire_form_is_part_of_no_fingerprint(fields: dict[str, Any], wire: Wire) -> None:
    assert ask(**fields).wire == wire
    assert prints(ask(**fields)) == prints(ask())


def test_an_unknown_stream_option_is_part_of_both_fingerprints() -> None:
    other = ask(stream=True, stream_options={"chunk_size": 5})
    assert not set(prints(other)) & set(prints(ask(stream=True)))


def test_a_string_is_one_text_part() -> None:
    assert prints(ask([TEXT])) == prints(ask("Hi"))
    assert ask([TEXT]).text == "Hi"


def test_texts_of_several_parts_are_matched_together_and_kept_apart() -> None:
    two = ask([TEXT, {"type": "text", "text": "there"}])
    assert two.text == "Hi\nthere"
    assert two.compatibility != ask("Hi\nthere").compatibility
    assert two.fingerprint != ask([TEXT, {"type": "text", "text": ""}, {"type": "text", "text": "there"}]).fingerprint


ODD_PARTS: list[list[Any]] = [
    [{"type": "text", "text": "a"}],
    [{"type": "text", "text": None}],
    [{"type": "text"}],
    [{"type": "text", "text": "a"}, {"type": "text", "text": None}],
    [{"type": "text", "text": None}, {"type": "text", "text": "a"}],
    [{"type": "text", "text": "a"}, {"type": "text"}],
    [["text", {"type": "text"}]],
    [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}],
    [],
]


def test_content_that_only_looks_alike_is_told_apart() -> None:
    assert len({ask(parts).fingerprint for parts in ODD_PARTS}) == len(ODD_PARTS)
    assert len({ask(parts).compatibility for parts in ODD_PARTS}) == len(ODD_PARTS)


def test_unreadable_messages_are_told_from_readable_ones() -> None:
    message = {"role": "assistant", "content": "Hi"}
    shapes: list[Any] = [[message], message, [[message]], [message, None], None, []]
    assert len({read({"model": "m", "messages": shape}).fingerprint for shape in shapes}) == len(shapes)


def test_the_query_string_is_part_of_both_fingerprints() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    one, other = (prints(read(body, variant=variant)) for variant in (b"api-version=1", b"api-version=\xff"))
    assert len({*one, *other, *prints(read(body))}) == 6


def test_tenant_namespace_and_query_string_cannot_stand_in_for_each_other() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    seen = {
        read(body, scope=Scope(tenant=tenant, namespace=namespace), variant=variant).compatibility
        for tenant, namespace, variant in [("ab", "", b""), ("a", "b", b""), ("a", "", b"b"), ("", "ab", b"")]
    }
    assert len(seen) == 4


@pytest.mark.parametrize("temperature", [0, 10**400, -(10**400)])
def test_any_number_is_a_temperature(temperature: int) -> None:
    assert ask(temperature=temperature).temperature == temperature
