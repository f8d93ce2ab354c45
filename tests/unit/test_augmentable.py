from __future__ import annotations

from typing import Any

import pytest

from cacheproxy.augment.augmentable import MOST_TURNS, answer_tokens, why_not
from tests.support import responses_wire as wire

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages) or [USER], **fields}


def completion(prompt: Any = "Once", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": prompt, **fields}


def response(given: Any = "Hi", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "input": given, "store": False, **fields}


def part(text: object = "Hi", kind: str = "text", **fields: Any) -> dict[str, Any]:
    return {"type": kind, "text": text, **fields}


CHAT: dict[str, tuple[dict[str, Any], str]] = {
    "a plain question": (chat(), ""),
    "every field that any model takes": (
        chat(
            temperature=0.2, top_p=0.9, seed=1, stop=["\n"], max_tokens=5, max_completion_tokens=5, stream=True,
            stream_options={"include_usage": True}, presence_penalty=0, frequency_penalty=0, user="u",
            metadata={"a": "b"},
            n=1, logprobs=False, top_logprobs=0, tools=[], tool_choice="none", parallel_tool_calls=True, store=False,
            response_format={"type": "text"}, modalities=["text"], logit_bias={}, service_tier="auto", verbosity="low",
            safety_identifier="s", prompt_cache_key="k", reasoning_effort=None, audio=None, vendor=None,
        ),
        "",
    ),
    "system, developer and talk": (
        chat({"role": "system", "content": "x"}, {"role": "developer", "content": [part()]}, USER, ASSISTANT, USER),
        "",
    ),
    "a name, and fields that clients send back empty": (
        chat(USER | {"name": "ann"}, ASSISTANT | {"refusal": None, "annotations": [], "tool_calls": None}, USER),
        "",
    ),
    "text parts": (chat({"role": "user", "content": [part(), part("and more")]}), ""),
    "tools": (chat(tools=[{"type": "function"}]), "tools"),
    "a tool forced": (chat(tool_choice="required"), "tools"),
    "functions": (chat(functions=[{}]), "tools"),
    "a tool's answer": (chat(USER, {"role": "tool", "content": "4", "tool_call_id": "c"}, USER), "tools"),
    "a call of a tool": (chat(USER, ASSISTANT | {"content": None, "tool_calls": [{}]}, USER), "tools"),
    "live search": (chat(web_search_options={}), "live_search"),
    "JSON asked": (chat(response_format={"type": "json_object"}), "response_format"),
    "n of 2": (chat(n=2), "n"),
    "n of true": (chat(n=True), "n"),
    "logprobs": (chat(logprobs=True), "logprobs"),
    "logit_bias": (chat(logit_bias={"1": 5}), "logit_bias"),
    "a prediction": (chat(prediction={"type": "content", "content": "x"}), "prediction"),
    "audio asked": (chat(modalities=["text", "audio"], audio={"voice": "x"}), "audio"),
    "audio given": (chat({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}), "audio"),
    "audio said": (chat(USER, ASSISTANT | {"audio": {"id": "a"}}, USER), "audio"),
    "an image": (chat({"role": "user", "content": [part(), IMAGE]}), "multimodal"),
    "a file": (chat({"role": "user", "content": [{"type": "file", "file": {}}]}), "multimodal"),
    "effort": (chat(reasoning_effort="high"), "reasoning"),
    "thinking": (chat(thinking={"type": "enabled"}), "reasoning"),
    "a template told to think": (chat(chat_template_kwargs={"enable_thinking": True}), "reasoning"),
    "thoughts sent back": (chat(USER, ASSISTANT | {"reasoning_content": "hm"}, USER), "reasoning"),
    "store": (chat(store=True), "stateful"),
    "a conversation kept by the backend": (chat(conversation_id="c"), "stateful"),
    "the assistant's words begun": (chat(USER, ASSISTANT), "prefill"),
    "the system last": (chat(USER, {"role": "system", "content": "x"}), "last_message_not_user"),
    "no text": (chat({"role": "user", "content": " \n"}), "no_text"),
    "no parts": (chat({"role": "user", "content": []}), "no_text"),
    "a long conversation": (chat(*[USER, ASSISTANT] * MOST_TURNS, USER), "long_conversation"),
    "a conversation that is not": (chat(*[USER, ASSISTANT] * (MOST_TURNS - 1), USER), ""),
    "a grammar for one backend": (chat(guided_choice=["a", "b"]), "unknown_field"),
    "an unknown field of a message": (chat(USER | {"prefix": True}), "unknown_field"),
    "an unknown field of a part": (chat({"role": "user", "content": [part(cache_control={"a": 1})]}), "unknown_field"),
    "a refusal": (chat(USER, ASSISTANT | {"refusal": "no"}, USER), "unknown_field"),
    "no messages": (chat() | {"messages": []}, "unrecognised_shape"),
    "messages of another shape": (chat() | {"messages": "Hi"}, "unrecognised_shape"),
    "a message that is none": (chat(USER, "Hi"), "unrecognised_shape"),
    "a message without content": (chat({"role": "user"}), "unrecognised_shape"),
    "an unknown role": (chat({"role": "critic", "content": "x"}, USER), "unrecognised_shape"),
    "a role of another shape": (chat({"role": ["user"], "content": "x"}), "unrecognised_shape"),
    "a part of another shape": (chat({"role": "user", "content": [7]}), "unrecognised_shape"),
    "a text of another shape": (chat({"role": "user", "content": [part(7)]}), "unrecognised_shape"),
    "no model": ({"messages": [USER]}, "unrecognised_shape"),
    "a stream of another shape": (chat(stream="yes"), "unrecognised_shape"),
}  # fmt: skip

COMPLETIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a prompt": (completion(max_tokens=9, n=1, best_of=1, echo=False, suffix=None, logprobs=None), ""),
    "a prompt in a list": (completion(["Once"]), ""),
    "several prompts": (completion(["Once", "Twice"]), "prompts"),
    "token ids": (completion([1, 2]), "token_ids"),
    "one token id": (completion([1]), "token_ids"),
    "lists of token ids": (completion([[1, 2]]), "token_ids"),
    "no prompt": (completion(None), "no_text"),
    "an empty prompt": (completion(""), "no_text"),
    "a prompt of another shape": (completion({"text": "Once"}), "unrecognised_shape"),
    "the chosen tokens' probabilities": (completion(logprobs=0), "logprobs"),
    "echo": (completion(echo=True), "echo"),
    "a suffix": (completion(suffix="end"), "suffix"),
    "best of 3": (completion(best_of=3), "best_of"),
    "a grammar": (completion(grammar="x"), "unknown_field"),
}

RESPONSES: dict[str, tuple[dict[str, Any], str]] = {
    "a plain question": (response(), ""),
    "what a client sends back": (
        response(
            [USER, wire.message("Hello"), {"type": "message", "role": "user", "content": [part(kind="input_text")]}],
            instructions="Be brief.", text={"format": {"type": "text"}, "verbosity": "low"}, truncation="auto",
            reasoning={"effort": None, "summary": None}, tools=[], tool_choice="auto", include=[], max_output_tokens=9,
            previous_response_id=None, background=False, parallel_tool_calls=True, top_logprobs=0,
        ),
        "",
    ),
    "an answer that may be named later": ({"model": "m", "input": "Hi"}, "stored"),
    "an answer that is to be kept": (response(store=True), "stateful"),
    "an answer named": (response(previous_response_id="resp_1"), "stateful"),
    "a prompt kept by the backend": (response(prompt={"id": "p"}), "stateful"),
    "in the background": (response(background=True), "stateful"),
    "an item kept by the backend": (response([{"type": "item_reference", "id": "msg_1"}, USER]), "stateful"),
    "the same without a type": (response([{"id": "msg_1"}, USER]), "stateful"),
    "effort": (response(reasoning={"effort": "high"}), "reasoning"),
    "thoughts sent back": (response([USER, wire.reasoning("hm"), USER]), "reasoning"),
    "a call of a tool": (response([USER, wire.function_call("f", "{}"), USER]), "tools"),
    "tools": (response(tools=[{"type": "web_search"}]), "tools"),
    "more of the answer asked": (response(include=["message.output_text.logprobs"]), "include"),
    "JSON asked": (response(text={"format": {"type": "json_schema"}}), "response_format"),
    "text of another shape": (response(text="json"), "response_format"),
    "an image": (response([{"role": "user", "content": [part(kind="input_image")]}]), "multimodal"),
    "instructions of another shape": (response(instructions=[USER]), "unrecognised_shape"),
    "an unknown item": (response([{"type": "computer", "role": "user", "content": "x"}]), "unrecognised_shape"),
    "nothing": (response(None), "unrecognised_shape"),
    "the assistant last": (response([USER, wire.message("Hello")]), "prefill"),
    "an unknown field": (response(moderation="x"), "unknown_field"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "why"), CHAT.values(), ids=CHAT)
def test_why_a_chat_is_not_augmentable(body: dict[str, Any], why: str) -> None:
    assert why_not(body, "chat") == why


@pytest.mark.parametrize(("body", "why"), COMPLETIONS.values(), ids=COMPLETIONS)
def test_why_a_completion_is_not_augmentable(body: dict[str, Any], why: str) -> None:
    assert why_not(body, "completions") == why


@pytest.mark.parametrize(("body", "why"), RESPONSES.values(), ids=RESPONSES)
def test_why_a_response_is_not_augmentable(body: dict[str, Any], why: str) -> None:
    assert why_not(body, "responses") == why


def test_another_dialect_is_not_augmentable() -> None:
    assert why_not({"model": "m", "input": "Hi"}, "embeddings") == "dialect"


def test_how_long_a_conversation_may_be_is_the_callers_to_say() -> None:
    assert why_not(chat(USER, ASSISTANT, USER), "chat", most_turns=1) == "long_conversation"


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, None),
        ({"max_tokens": 7}, 7),
        ({"max_tokens": 7, "max_completion_tokens": 5}, 5),
        ({"max_output_tokens": 9}, 9),
        ({"max_tokens": None}, None),
        ({"max_tokens": 0}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": "7"}, None),
    ],
)
def test_how_long_an_answer_may_become(fields: dict[str, Any], tokens: int | None) -> None:
    assert answer_tokens(fields) == tokens
