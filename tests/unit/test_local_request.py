from __future__ import annotations

import json
from typing import Any

import pytest

from cacheproxy.errors import InvalidRequest
from cacheproxy.upstream.local.request import DEFAULT_MAX_TOKENS, parse

USER = {"role": "user", "content": "Hi"}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "any", "messages": [USER], **fields}).encode()


def test_the_smallest_request_is_greedy_and_has_a_limit() -> None:
    ask = parse(body())
    assert ask.messages == (("user", "Hi"),)
    assert ask.max_tokens == DEFAULT_MAX_TOKENS
    assert ask.sampling.temperature == 0
    assert not ask.stream


def test_every_supported_field_is_read() -> None:
    ask = parse(
        body(
            max_tokens=5,
            temperature=0.7,
            top_p=0.9,
            seed=-(2**63),
            stop=["a", "", "b"],
            frequency_penalty=1,
            presence_penalty=-1.5,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert (ask.max_tokens, ask.stops, ask.stream, ask.include_usage) == (5, ("a", "b"), True, True)
    rules = ask.sampling
    assert (rules.temperature, rules.top_p, rules.seed) == (0.7, 0.9, -(2**63))
    assert (rules.frequency_penalty, rules.presence_penalty) == (1.0, -1.5)


def test_the_newer_token_limit_wins() -> None:
    assert parse(body(max_tokens=5, max_completion_tokens=7)).max_tokens == 7


def test_null_unknown_and_empty_fields_are_ignored() -> None:
    ask = parse(body(stop=None, n=1, tools=[], tool_choice="none", user="me", response_format={"type": "text"}))
    assert ask.stops == ()


def test_text_parts_and_newer_role_names_are_read() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    ask = parse(body(messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]))
    assert ask.messages == (("system", "Be brief."), ("user", "Hello"))


IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [USER, IMAGE]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "42"}]}, "messages[0].role"),
        ({"model": 3}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"seed": "x"}, "seed"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": list("abcde")}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"n": 2}, "n"),
        ({"n": 0}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{}]}, "functions"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
    ],
)
def test_what_the_model_cannot_do_is_refused_naming_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(body(**fields))
    assert refused.value.status == 400
    # msgspec writes an array's index as [...] or its number, depending on where the fault is.
    assert (refused.value.param or "").replace("[...]", "[0]") == param


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_field_is_named(missing: str) -> None:
    request = {"model": "any", "messages": [USER]}
    del request[missing]
    with pytest.raises(InvalidRequest) as refused:
        parse(json.dumps(request).encode())
    assert refused.value.param == missing


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model": "\xff", "messages": []}',
        b'{"model": "\\ud800", "messages": []}',
        b'{"model": "x", "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"\xef\xbb\xbf{}",
        b'{"model": "x", "messages": NaN}',
        b'{"temperature": 1e999}',
    ],
)
def test_a_broken_body_is_a_refusal_and_never_a_failure(broken: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse(broken)


def test_a_refusal_repeats_nothing_of_the_prompt() -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(body(messages=[{"role": "secret-role", "content": "secret-text"}]))
    assert "secret" not in refused.value.message
