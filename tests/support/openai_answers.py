"""The generating routes: chat, completions, responses and embeddings, derived from each request's content alone."""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from tests.support import openai_wire, responses_wire
from tests.support.schema_sample import sample
from tests.support.upstream import answer, stream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.support.upstream import Step

_LIMITS = (
    ("openai-processing-ms", "7"),
    ("x-ratelimit-limit-requests", "5000"),
    ("x-ratelimit-remaining-requests", "4999"),
    ("x-ratelimit-reset-requests", "12ms"),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A JSON request: its body, the digest of all but its wire form, and its name."""

    body: dict[str, Any]
    digest: str
    step: str

    @property
    def streams(self) -> bool:
        """Whether a stream was asked for."""
        return self.body.get("stream") is True

    def text(self, question: object) -> str:
        """Return the answer to a question: several words, one of them the digest."""
        shown = " ".join(str(question).split())[:80]
        return f"Voilà {self.digest}: an answer 🗼 to {shown!r}"


def digest(*parts: object) -> str:
    """Return twelve characters that tell contents apart."""
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:12]


def whole_answer(value: object) -> list[Step]:
    """Return an object with the headers of a hosted backend."""
    return answer(value, headers=[("x-request-id", digest(value)), *_LIMITS])


def _events(parts: Sequence[bytes]) -> list[Step]:
    return stream(*parts, headers=[("cache-control", "no-cache"), *_LIMITS])


# Chat completions


def chat(asked: Asked) -> Sequence[Step]:
    """Answer a chat completion."""
    body = asked.body
    calls = _tool_calls(asked)
    content = None if calls else _content(asked, openai_wire.last_user_text(body), _chat_schema(body))
    finish = "tool_calls" if calls else "stop"
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None, "annotations": []}
    if calls:
        message["tool_calls"] = calls
    if asked.step == "reasoning":
        message["reasoning_content"] = f"Thinking of {asked.digest} first."
    logprobs = _logprobs(content or "", body.get("top_logprobs") or 0) if body.get("logprobs") else None
    choices = [
        {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}
        for index in range(body.get("n") or 1)
    ]
    model, usage = str(body.get("model")), openai_wire.usage(str(body.get("messages")), content or "")
    if not asked.streams:
        return whole_answer(openai_wire.completion(content, model=model, choices=choices, usage=usage))
    options = body.get("stream_options") or {}
    wanted: dict[str, Any] = {"usage": None} if options.get("include_usage") else {}
    chunks = [
        openai_wire.chunk([one], model=model, **wanted) for choice in choices for one in _deltas(choice, calls, content)
    ]
    if wanted:
        chunks.append(openai_wire.chunk([], model=model, usage=usage))
    return _events([*map(openai_wire.event, chunks), openai_wire.DONE])


def _deltas(choice: Mapping[str, Any], calls: Sequence[dict[str, Any]], content: str | None) -> list[dict[str, Any]]:
    index, logprobs = choice["index"], choice["logprobs"]
    more = {name: choice["message"][name] for name in ("reasoning_content",) if name in choice["message"]}
    first = {"role": "assistant", "content": None if calls else "", "refusal": None, **more}
    deltas = [openai_wire.delta(first, index=index)]
    for position, call in enumerate(calls):
        function = {**call["function"], "arguments": ""}
        started = {"index": position, **call, "function": function}
        deltas.append(openai_wire.delta({"tool_calls": [started]}, index=index))
        for piece in re.findall(".{1,7}", call["function"]["arguments"], re.DOTALL):
            grown = {"index": position, "function": {"arguments": piece}}
            deltas.append(openai_wire.delta({"tool_calls": [grown]}, index=index))
    for position, piece in enumerate(_tokens(content or "")):
        one = openai_wire.delta({"content": piece}, index=index)
        if logprobs is not None:
            one["logprobs"] = {"content": [logprobs["content"][position]], "refusal": None}
        deltas.append(one)
    return [*deltas, openai_wire.delta({}, index=index, finish=choice["finish_reason"])]


def _chat_schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    told = body.get("response_format") or {}
    if told.get("type") == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}, "sure": {"type": "boolean"}}}
    schema: Mapping[str, Any] | None = (told.get("json_schema") or {}).get("schema")
    return schema


def _content(asked: Asked, question: str, schema: Mapping[str, Any] | None) -> str:
    if schema is None:
        return asked.text(question)
    return openai_wire.encode(sample(schema, asked.digest)).decode()


def _tool_calls(asked: Asked) -> list[dict[str, Any]]:
    functions = [tool["function"] for tool in asked.body.get("tools") or [] if tool.get("type") == "function"]
    answered = asked.body["messages"][-1].get("role") == "tool"
    return [
        {
            "id": f"call_{digest(asked.digest, one['name'])}",
            "type": "function",
            "function": {"name": one["name"], "arguments": _arguments(one, asked.digest)},
        }
        for one in _chosen(functions, asked.body.get("tool_choice"), answered=answered)
    ]


def _chosen(functions: list[dict[str, Any]], choice: object, *, answered: bool) -> list[dict[str, Any]]:
    """Return the tools to call: the one that is demanded, else all but the final one, which ends a conversation."""
    final = [one for one in functions if one["name"] == "final_result"]
    if choice == "none" or not functions:
        return []
    if isinstance(choice, dict):
        name = choice.get("name") or (choice.get("function") or {}).get("name")
        return [one for one in functions if one["name"] == name]
    if answered:
        return final
    return [one for one in functions if one not in final] or final


def _arguments(function: Mapping[str, Any], seed: str) -> str:
    return openai_wire.encode(sample(function.get("parameters") or {"type": "object"}, seed)).decode()


def _tokens(text: str) -> list[str]:
    return re.findall(r"\s*\S+", text)


def _logprobs(text: str, top: int) -> dict[str, Any]:
    def one(token: str, place: int) -> dict[str, Any]:
        return {"token": token, "logprob": -0.125 * (place + 1), "bytes": list(token.encode())}

    content = [
        {**one(token, place), "top_logprobs": [one(token, place + at) for at in range(top)]}
        for place, token in enumerate(_tokens(text))
    ]
    return {"content": content, "refusal": None}


# Legacy completions


def completions(asked: Asked) -> Sequence[Step]:
    """Answer a legacy completion."""
    body = asked.body
    prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
    texts = [asked.text(prompt) for prompt in prompts for _ in range(body.get("n") or 1)]
    base = {"id": "cmpl-upstream", "object": "text_completion", "created": 1_700_000_000, "model": body["model"]}
    usage = openai_wire.usage(" ".join(map(str, prompts)), " ".join(texts))
    whole = [
        {"text": text, "index": index, "logprobs": None, "finish_reason": "stop"} for index, text in enumerate(texts)
    ]
    if not asked.streams:
        return whole_answer({**base, "choices": whole, "usage": usage})
    events: list[dict[str, Any]] = []
    for choice in whole:
        pieces = _tokens(str(choice["text"]))
        events += [{**base, "choices": [{**choice, "text": piece, "finish_reason": None}]} for piece in pieces]
        events.append({**base, "choices": [{**choice, "text": ""}]})
    if (body.get("stream_options") or {}).get("include_usage"):
        events = [{**event, "usage": None} for event in events]
        events.append({**base, "choices": [], "usage": usage})
    return _events([*map(openai_wire.event, events), openai_wire.DONE])


# Responses


def responses(asked: Asked) -> Sequence[Step]:
    """Answer a response."""
    body = asked.body
    given = body["input"]
    answered = isinstance(given, list) and given[-1].get("type") == "function_call_output"
    functions = [tool for tool in body.get("tools") or [] if tool.get("type") == "function"]
    calls = _chosen(functions, body.get("tool_choice"), answered=answered)
    output = [
        responses_wire.function_call(
            one["name"], _arguments(one, asked.digest), item_id=f"fc_{digest(asked.digest, one)}"
        )
        for one in calls
    ]
    content = ""
    if not calls:
        schema = ((body.get("text") or {}).get("format") or {}).get("schema")
        content = _content(asked, responses_wire.question_of(body), schema)
        output = [responses_wire.message(content, item_id=f"msg_{asked.digest}")]
    echoed = {
        name: body[name]
        for name in ("instructions", "metadata", "model", "previous_response_id", "temperature", "tools")
        if body.get(name) is not None
    }
    usage = responses_wire.usage(str(given), content)
    whole = responses_wire.response(*output, id=f"resp_{asked.digest}", usage=usage, **echoed)
    return _events(responses_wire.events(whole)) if asked.streams else whole_answer(whole)


# Embeddings


def embeddings(asked: Asked) -> Sequence[Step]:
    """Answer embeddings."""
    body = asked.body
    given = body["input"]
    items = given if isinstance(given, list) and not (given and isinstance(given[0], int)) else [given]
    dimensions = body.get("dimensions") or 16
    vectors = [vector(str(body["model"]), item, dimensions) for item in items]
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(struct.pack(f"<{dimensions}f", *values)).decode()
            if body.get("encoding_format") == "base64"
            else values,
        }
        for index, values in enumerate(vectors)
    ]
    count = sum(len(str(item).split()) for item in items)
    usage = {"prompt_tokens": count, "total_tokens": count}
    return whole_answer({"object": "list", "data": data, "model": body["model"], "usage": usage})


def vector(model: str, item: object, dimensions: int) -> list[float]:
    """Return the vector of one input; its values are the same as decimals and as 32-bit floats."""
    noise = hashlib.shake_256(msgspec.json.encode([model, item])).digest(dimensions)
    return [(byte - 127.5) / 256 for byte in noise]
