"""OpenAI's chat answers as a real backend writes them: bodies, stream events, and a deterministic default answer."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DONE = b"data: [DONE]\n\n"
MODEL = "gpt-4o-mini"


def encode(value: object) -> bytes:
    """Return compact JSON."""
    return msgspec.json.encode(value)


def event(payload: object) -> bytes:
    """Return one server-sent event."""
    return b"data: " + encode(payload) + b"\n\n"


def completion(
    content: str | None, *, finish: str | None = "stop", model: str = MODEL, **fields: Any
) -> dict[str, Any]:
    """Return a whole chat completion with one choice; `fields` replace or add top-level fields."""
    message = {"role": "assistant", "content": content, "refusal": None}
    return {
        "id": "chatcmpl-upstream",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": usage("", content or ""),
        "service_tier": "default",
        "system_fingerprint": "fp_scripted",
        **fields,
    }


def usage(prompt: str, content: str) -> dict[str, Any]:
    """Return token counts that depend on both texts."""
    asked, answered = len(prompt.split()) + 3, len(content.split()) + 1
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


def chunk(choices: list[dict[str, Any]], *, model: str = MODEL, **fields: Any) -> dict[str, Any]:
    """Return one stream chunk."""
    return {
        "id": "chatcmpl-upstream",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": model,
        "service_tier": "default",
        "system_fingerprint": "fp_scripted",
        "choices": choices,
        **fields,
    }


def delta(fields: Mapping[str, Any], *, finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    """Return one choice of a stream chunk."""
    return {"index": index, "delta": dict(fields), "logprobs": None, "finish_reason": finish, **more}


def chunks(
    content: str,
    *,
    finish: str | None = "stop",
    model: str = MODEL,
    include_usage: bool = False,
    tokens: Mapping[str, Any] | None = None,
    choices: int = 1,
) -> list[dict[str, Any]]:
    """Return the chunks of a streamed answer, a word each, with usage placed exactly as OpenAI places it."""
    more: dict[str, Any] = {"usage": None} if include_usage else {}
    words = content.split(" ")
    pieces = [word if position == 0 else f" {word}" for position, word in enumerate(words)]
    deltas: Iterable[dict[str, Any]] = chain.from_iterable(
        [
            delta({"role": "assistant", "content": "", "refusal": None}, index=index),
            *(delta({"content": piece}, index=index) for piece in pieces),
            delta({}, finish=finish, index=index),
        ]
        for index in range(choices)
    )
    whole = [chunk([one], model=model, **more) for one in deltas]
    if include_usage:
        whole.append(chunk([], model=model, usage=dict(tokens or usage("", content))))
    return whole


def events(content: str, *, finish: str | None = "stop", include_usage: bool = False) -> list[bytes]:
    """Return a streamed answer as events, `[DONE]` included."""
    return [*map(event, chunks(content, finish=finish, include_usage=include_usage)), DONE]


def last_user_text(body: Mapping[str, Any]) -> str:
    """Return the text of the last user message, "" when there is none."""
    messages = body.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str):
                return content
            parts = content if isinstance(content, list) else []
            return " ".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
    return ""


def default_answer(body: Mapping[str, Any], call: int) -> tuple[bytes | None, list[bytes]]:
    """Answer a chat request deterministically: the whole body, or (None, the events) when a stream was asked.

    The content tells the question and the number of the call: a second call to the backend can be told from a hit.
    """
    question = last_user_text(body)
    content = f"Answer {call} to: {question[:200]}"
    response_format = body.get("response_format")
    if isinstance(response_format, dict) and response_format.get("type", "text") != "text":
        content = encode({"answer": question[:200], "call": call}).decode()
    model, count = str(body.get("model") or MODEL), body.get("n")
    choices = count if isinstance(count, int) and 1 <= count <= 8 else 1
    tokens = usage(question, content)
    if body.get("stream") is True:
        options = body.get("stream_options")
        wanted = isinstance(options, dict) and options.get("include_usage") is True
        parts = chunks(content, model=model, include_usage=wanted, tokens=tokens, choices=choices)
        return None, [*map(event, parts), DONE]
    whole = completion(content, model=model, usage=tokens)
    first = whole["choices"][0]
    whole["choices"] = [{**first, "index": index} for index in range(choices)]
    return encode(whole), []
