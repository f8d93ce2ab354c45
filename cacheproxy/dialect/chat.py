"""The chat completions dialect: messages told in deltas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cacheproxy.dialect.choices import ChoicesDialect, Shape
from cacheproxy.dialect.merge import SET_ONCE, Malformed, Texts, merge_message, update
from cacheproxy.dialect.pieces import pieces
from cacheproxy.query.chat import DIALECT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_REASONING = ("reasoning_content", "reasoning")
_SPOKEN = {"function": "arguments", "custom": "input"}  # where a tool call holds the text that a stream tells in pieces


class ChatDialect(ChoicesDialect):
    """`POST /v1/chat/completions`."""

    def __init__(self, *, max_reply_bytes: int, ask_stream_usage: bool) -> None:
        super().__init__(CHAT, max_reply_bytes=max_reply_bytes, ask_stream_usage=ask_stream_usage)


def _join(choice: dict[str, Any], part: Mapping[str, Any], texts: Texts) -> None:
    delta = part.get("delta")
    if not isinstance(delta, dict | None):
        raise Malformed
    delta = delta or {}
    if choice.get("finish_reason") is not None and any(told for key, told in delta.items() if key != "role"):
        raise Malformed  # words after the end
    if not isinstance(delta.get("content"), str | None):
        raise Malformed
    message = choice.setdefault("message", {})
    if not isinstance(message, dict):
        raise Malformed
    merge_message(message, delta, texts)
    update(choice, part, "index", "delta")


def _split(choice: Mapping[str, Any], index: int) -> Iterator[dict[str, Any]]:
    """Yield the parts of one choice: role, texts in pieces, tool calls, finish."""
    message, logprobs = choice["message"], choice.get("logprobs")
    closing = {key: value for key, value in choice.items() if key not in ("index", "message", "logprobs")}
    silent = {"logprobs": None} if "logprobs" in choice else {}
    first: dict[str, Any] = {"role": message.get("role", "assistant")}
    texts: dict[str, str] = {}
    called: list[dict[str, Any]] = []
    for key, value in message.items():
        if key == "tool_calls" and value and isinstance(value, list):
            called += [told for number, call in enumerate(value) for told in _call_deltas(call, number)]
        elif key == "function_call" and isinstance(value, dict):
            called += [{key: told} for told in _in_pieces(value, "arguments")]
        elif isinstance(value, str) and key not in SET_ONCE:
            texts[key] = value
            if key == "content" or not value:
                first[key] = ""
        else:
            first[key] = value

    def part(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"index": index, "delta": delta, **silent, "finish_reason": None, **more}

    yield part(first)
    for key in sorted(texts, key=lambda name: name not in _REASONING):
        if logprobs is not None and key == "content":
            yield part({key: texts[key]}, logprobs=logprobs)
        else:
            for piece in pieces(texts[key]):
                yield part({key: piece})
    for delta in called:
        yield part(delta)
    unsaid = {"logprobs": logprobs} if logprobs is not None and "content" not in texts else silent
    yield {"index": index, "delta": {}, **unsaid, **closing}


def _call_deltas(call: Mapping[str, Any], number: int) -> Iterator[dict[str, Any]]:
    """Yield the deltas of one tool call: id, type and name first, then its arguments in pieces."""
    told: dict[str, Any] = {key: value for key, value in call.items() if key != "index"}
    kind = next((kind for kind in _SPOKEN if isinstance(call.get(kind), dict)), None)
    if kind is None:
        yield {"tool_calls": [{"index": number, **told}]}
        return
    head, *rest = _in_pieces(call[kind], _SPOKEN[kind])
    yield {"tool_calls": [{"index": number, **told, kind: head}]}
    for piece in rest:
        yield {"tool_calls": [{"index": number, kind: piece}]}


def _in_pieces(fields: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    text = fields.get(name)
    if not isinstance(text, str):
        yield dict(fields)
        return
    yield {**fields, name: ""}
    for piece in pieces(text):
        yield {name: piece}


CHAT = Shape(
    name=DIALECT,
    whole="chat.completion",
    piece="chat.completion.chunk",
    id_prefix="chatcmpl-",
    join=_join,
    split=_split,
)
