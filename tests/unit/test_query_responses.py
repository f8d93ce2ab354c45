from __future__ import annotations

from typing import Any

import pytest

from cacheproxy.model import Controls, Query, Scope, Trait, Wire
from cacheproxy.query.responses import read_responses

TENANT = Scope(tenant="t" * 64)
TEXT = {"type": "input_text", "text": "Hi"}
IMAGE = {"type": "input_image", "image_url": "data:,", "detail": "auto"}
ASKED = {"role": "user", "content": "Hi"}
EXACT_ONLY = {Trait.LAST_MESSAGE, Trait.NO_TEXT}


def read(body: dict[str, Any], *, scope: Scope = TENANT, variant: bytes = b"") -> Query:
    return read_responses(body, scope, Controls(), variant)


def ask(given: object = "Hi", **fields: Any) -> Query:
    return read({"model": "m", "input": given, **fields})


def prints(query: Query) -> tuple[bytes, bytes]:
    return query.fingerprint, query.compatibility


def test_a_plain_question_has_no_trait_and_keeps_its_text() -> None:
    query = ask("Hi\r\n é\u0301", temperature=0.2)
    assert (query.traits, query.text, query.model) == (frozenset(), "Hi\r\n é\u0301", "m")
    assert (query.temperature, query.wire, query.dialect) == (0.2, Wire(), "responses")


@pytest.mark.parametrize("given", [[ASKED], [{"role": "user", "content": [TEXT]}]], ids=["message", "part"])
def test_a_plain_string_means_one_user_message(given: object) -> None:
    assert prints(ask("Hi")) == prints(ask(given))


TRAITS: dict[str, tuple[dict[str, Any], set[Trait]]] = {
    "a function": ({"tools": [{"type": "function", "name": "f"}]}, {Trait.TOOLS}),
    "a custom tool": ({"tools": [{"type": "custom", "name": "f"}]}, {Trait.TOOLS}),
    "a namespace": ({"tools": [{"type": "namespace", "tools": [{"type": "function"}]}]}, {Trait.TOOLS}),
    "no tools": ({"tools": []}, set()),
    "tools that are an object": ({"tools": {"type": "function"}}, {Trait.TOOLS}),
    "a free choice": ({"tool_choice": "auto", "parallel_tool_calls": True}, set()),
    "a forced choice": ({"tool_choice": "required"}, {Trait.TOOLS}),
    "a chosen function": ({"tool_choice": {"type": "function", "name": "f"}}, {Trait.TOOLS}),
    "logprobs": ({"top_logprobs": 2}, {Trait.LOGPROBS}),
    "logprobs included": ({"include": ["message.output_text.logprobs"]}, {Trait.LOGPROBS}),
    "reasoning included": ({"include": ["reasoning.encrypted_content"]}, set()),
    "a schema asked": ({"text": {"format": {"type": "json_schema", "schema": {}}}}, {Trait.RESPONSE_FORMAT}),
    "JSON asked": ({"text": {"format": {"type": "json_object"}}}, {Trait.RESPONSE_FORMAT}),
    "text asked": ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, set()),
    "text that is text": ({"text": "json"}, {Trait.RESPONSE_FORMAT}),
    "audio asked": ({"modalities": ["audio"]}, {Trait.AUDIO}),
    "parameters": ({"reasoning": {"effort": "low"}, "truncation": "auto", "metadata": {"a": "b"}}, set()),
    "stream is text": ({"stream": "true"}, {Trait.UNREADABLE}),
    "stream options are a list": ({"stream_options": [1]}, {Trait.UNREADABLE}),
    "temperature is text": ({"temperature": "1.5"}, {Trait.UNREADABLE}),
    "store is false": ({"store": False}, set()),
    "store is null": ({"store": None}, set()),
    "store is text": ({"store": "false"}, {Trait.UNREADABLE, Trait.STATEFUL}),
    "an unknown field": ({"vendor": {"x": 1}}, set()),
}


@pytest.mark.parametrize(("fields", "traits"), TRAITS.values(), ids=TRAITS)
def test_a_field_that_limits_caching_becomes_a_trait(fields: dict[str, Any], traits: set[Trait]) -> None:
    assert ask(**fields).traits == traits


STATE: dict[str, dict[str, Any]] = {
    "previous_response_id": {"previous_response_id": "resp_1"},
    "an empty previous_response_id": {"previous_response_id": ""},
    "conversation": {"conversation": "conv_1"},
    "conversation as an object": {"conversation": {"id": "conv_1"}},
    "store": {"store": True},
    "background": {"background": True},
    "prompt": {"prompt": {"id": "pmpt_1"}},
}


@pytest.mark.parametrize("fields", STATE.values(), ids=STATE)
def test_what_lives_at_the_backend_is_state(fields: dict[str, Any]) -> None:
    assert Trait.STATEFUL in ask(**fields).traits


@pytest.mark.parametrize("name", ["previous_response_id", "conversation", "store", "background", "prompt"])
def test_a_null_is_no_state(name: str) -> None:
    assert ask(**{name: None}).traits == frozenset()


LIVE: dict[str, Trait] = {
    "web_search": Trait.LIVE_SEARCH,
    "web_search_preview_2025_03_11": Trait.LIVE_SEARCH,
    "file_search": Trait.LIVE_SEARCH,
    "x_search": Trait.LIVE_SEARCH,
    "code_interpreter": Trait.STATEFUL,
    "computer_use_preview": Trait.STATEFUL,
    "mcp": Trait.STATEFUL,
    "image_generation": Trait.STATEFUL,
    "shell": Trait.STATEFUL,
    "some_vendors_own": Trait.STATEFUL,
}


@pytest.mark.parametrize(("kind", "trait"), LIVE.items(), ids=LIVE)
def test_a_tool_that_the_backend_runs_ties_the_answer_to_its_world(kind: str, trait: Trait) -> None:
    tool = {"type": kind}
    assert trait in ask(tools=[{"type": "function"}, tool]).traits
    assert trait in ask([{"type": "additional_tools", "tools": [tool]}, ASKED]).traits


ITEMS: dict[str, tuple[Any, set[Trait]]] = {
    "after instructions": ([{"role": "developer", "content": "x"}, ASKED], set()),
    "after an answer": (
        [
            {"type": "message", "role": "assistant", "id": "msg_1", "content": [{"type": "output_text", "text": "x"}]},
            {"type": "message", **ASKED},
        ],
        set(),
    ),
    "after a refusal": ([{"role": "assistant", "content": [{"type": "refusal", "refusal": "x"}]}, ASKED], set()),
    "after a call": (
        [
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "x"},
            ASKED,
        ],
        {Trait.TOOLS},
    ),
    "a call's result last": (
        [ASKED, {"type": "function_call_output", "call_id": "c", "output": "x"}],
        {Trait.TOOLS, *EXACT_ONLY},
    ),
    "after a search": ([{"type": "web_search_call", "id": "ws_1"}, ASKED], {Trait.TOOLS}),
    "after reasoning": ([{"type": "reasoning", "id": "rs_1", "summary": []}, ASKED], {Trait.MIXED_CONTENT}),
    "a reference": ([{"type": "item_reference", "id": "msg_1"}, ASKED], {Trait.MIXED_CONTENT, Trait.STATEFUL}),
    "a reference without a type": ([{"id": "msg_1"}, ASKED], {Trait.MIXED_CONTENT, Trait.STATEFUL}),
    "a reference last": ([{"id": "msg_1"}], {Trait.MIXED_CONTENT, Trait.STATEFUL, *EXACT_ONLY}),
    "an unknown item": ([{"type": "novelty"}, ASKED], {Trait.MIXED_CONTENT}),
    "a type that is no text": ([{"type": ["message"]}, ASKED], {Trait.MIXED_CONTENT}),
    "an image": ([{"role": "user", "content": [TEXT, IMAGE]}], {Trait.IMAGE}),
    "an image before": ([{"role": "user", "content": [IMAGE]}, ASKED], {Trait.IMAGE}),
    "a file": ([{"role": "user", "content": [TEXT, {"type": "input_file", "file_id": "f"}]}], {Trait.MIXED_CONTENT}),
    "audio": ([{"role": "user", "content": [TEXT, {"type": "input_audio"}]}], {Trait.AUDIO}),
    "a part without a type": ([{"role": "user", "content": [TEXT, {"text": "x"}]}], {Trait.MIXED_CONTENT}),
    "a part that is text": ([{"role": "user", "content": [TEXT, "x"]}], {Trait.MIXED_CONTENT}),
    "an assistant's last word": ([{"role": "assistant", "content": "Hi"}], EXACT_ONLY),
    "a user with the type of another item": ([{"type": "reasoning", **ASKED}], {Trait.MIXED_CONTENT, *EXACT_ONLY}),
    "blank": ([{"role": "user", "content": " \n"}], {Trait.NO_TEXT}),
    "no content": ([{"role": "user"}], {Trait.NO_TEXT}),
    "empty text": ("", {Trait.NO_TEXT}),
    "none": ([], {Trait.UNREADABLE}),
    "null": (None, {Trait.UNREADABLE}),
    "an object": (ASKED, {Trait.UNREADABLE}),
    "texts": (["Hi"], {Trait.UNREADABLE}),
}


@pytest.mark.parametrize(("given", "traits"), ITEMS.values(), ids=ITEMS)
def test_input_that_is_not_all_text_becomes_a_trait(given: object, traits: set[Trait]) -> None:
    assert ask(given).traits == traits


def test_no_input_is_unreadable_and_no_key_is_anonymous() -> None:
    assert read({"model": "m"}).traits == {Trait.UNREADABLE}
    assert read({"model": "m", "input": "Hi"}, scope=Scope(tenant="")).traits == {Trait.ANONYMOUS}


BASE: dict[str, Any] = {
    "model": "m",
    "instructions": "Be brief.",
    "input": [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": [TEXT]},
    ],
    "tools": [{"type": "function", "name": "f", "parameters": {}}],
    "tool_choice": "auto",
    "text": {"format": {"type": "text"}},
    "reasoning": {"effort": "low"},
    "temperature": 0.1,
    "top_p": 1,
    "max_output_tokens": 100,
    "include": ["reasoning.encrypted_content"],
    "truncation": "auto",
    "metadata": {"team": "a"},
    "user": "u",
    "service_tier": "auto",
    "store": False,
}
CHANGES: dict[str, dict[str, Any]] = {
    "model": {"model": "m2"},
    "instructions": {"instructions": "Be long."},
    "tools": {"tools": [{"type": "function", "name": "g", "parameters": {}}]},
    "tool_choice": {"tool_choice": "required"},
    "text": {"text": {"format": {"type": "json_object"}}},
    "verbosity": {"text": {"format": {"type": "text"}, "verbosity": "low"}},
    "reasoning": {"reasoning": {"effort": "high"}},
    "temperature": {"temperature": 0.2},
    "top_p": {"top_p": 0.5},
    "max_output_tokens": {"max_output_tokens": 101},
    "include": {"include": []},
    "truncation": {"truncation": "disabled"},
    "metadata": {"metadata": {"team": "b"}},
    "user": {"user": "v"},
    "service_tier": {"service_tier": "flex"},
    "store": {"store": None},
    "an unknown field": {"vendor": 1},
    "an earlier role": {"input": [{"role": "system", "content": "One?"}, *BASE["input"][1:]]},
    "less history": {"input": BASE["input"][2:]},
    "a field of the last item": {"input": [*BASE["input"][:2], {**BASE["input"][2], "status": "completed"}]},
    "a field of the last part": {"input": [*BASE["input"][:2], {"role": "user", "content": [{**TEXT, "x": 1}]}]},
    "one more part": {"input": [*BASE["input"][:2], {"role": "user", "content": [TEXT, IMAGE]}]},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_other_field_is_in_both_keys(change: dict[str, Any]) -> None:
    one, other = read(BASE), read({**BASE, **change})
    assert one.compatibility != other.compatibility
    assert one.fingerprint != other.fingerprint


EARLIER: dict[str, list[Any]] = {
    "an earlier question": [{"role": "user", "content": "Two?"}, *BASE["input"][1:]],
    "an earlier answer": [BASE["input"][0], {"role": "assistant", "content": "2"}, BASE["input"][2]],
}


@pytest.mark.parametrize("given", EARLIER.values(), ids=EARLIER)
def test_what_was_said_before_is_in_the_exact_key_alone(given: list[Any]) -> None:
    one, other = read(BASE), read({**BASE, "input": given})
    assert one.compatibility == other.compatibility
    assert one.fingerprint != other.fingerprint
    assert one.chain != other.chain


@pytest.mark.parametrize("name", [name for name in BASE if name != "input"])
def test_a_field_left_out_is_another_request(name: str) -> None:
    assert read(BASE).compatibility != read({key: value for key, value in BASE.items() if key != name}).compatibility


def test_only_the_last_text_is_left_out_of_the_compatibility() -> None:
    last = {"role": "user", "content": [{"type": "input_text", "text": "Ho"}]}
    one, other = read(BASE), read({**BASE, "input": [*BASE["input"][:2], last]})
    assert one.compatibility == other.compatibility
    assert one.fingerprint != other.fingerprint


WIRE: dict[str, dict[str, Any]] = {
    "a stream": {"stream": True},
    "a stream without obfuscation": {"stream": True, "stream_options": {"include_obfuscation": False}},
    "no stream": {"stream": False, "stream_options": None},
}


@pytest.mark.parametrize("fields", WIRE.values(), ids=WIRE)
def test_the_wire_form_is_in_no_key(fields: dict[str, Any]) -> None:
    query = read({**BASE, **fields})
    assert prints(query) == prints(read(BASE))
    assert query.wire == Wire(stream=fields["stream"])


def test_tenant_namespace_variant_and_dialect_keep_keys_apart() -> None:
    namespaced = Scope(tenant="t" * 64, namespace="n")
    scopes = {prints(read(BASE, scope=scope)) for scope in (TENANT, namespaced, Scope(tenant="u" * 64))}
    assert len({*scopes, prints(read(BASE, variant=b"?a=1"))}) == 4
