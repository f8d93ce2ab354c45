"""A chat completions body to a Query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cacheproxy.model import Trait
from cacheproxy.query.keys import Reading, asks_for_format, chained, earlier_questions, query_of, told_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cacheproxy.model import Controls, Query, Scope

DIALECT = "chat"

_CONTENT = frozenset({"messages"})
_TOOL_FIELDS = ("tools", "tool_choice", "functions", "function_call", "parallel_tool_calls")
_PART_TRAITS = {"text": None, "image_url": Trait.IMAGE, "input_image": Trait.IMAGE, "input_audio": Trait.AUDIO}


def read_chat(body: Mapping[str, Any], scope: Scope, controls: Controls, variant: bytes = b"") -> Query:
    """Understand a decoded body. Never raises: an unknown shape becomes a trait, and the backend judges the request.

    `variant` is what else of the HTTP request changes the answer (the query string, beta features).
    """
    messages = body.get("messages")
    traits = set(_body_traits(body))
    texts: list[str] = []
    blanked, system = messages, ""
    earlier: tuple[str, ...] = ()
    chain: tuple[str, ...] = ()
    history: Sequence[object] = ()
    if isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages):
        for message in messages:
            traits.update(_message_traits(message))
        last, texts = _blank_text(messages[-1])
        blanked, chain, history = chained(messages, last)
        traits.update(_text_traits(messages[-1], texts))
        system = "\n".join(told_in(messages, "system", "developer"))
        earlier = earlier_questions(messages, last=bool(texts))
    else:
        traits.add(Trait.UNREADABLE)
    reading = Reading(
        dialect=DIALECT,
        content=_CONTENT,
        blanked=blanked,
        texts=texts,
        traits=frozenset(traits),
        system=system,
        earlier=earlier,
        chain=chain,
        history=history,
    )
    return query_of(reading, body, scope, controls, variant)


def _body_traits(body: Mapping[str, Any]) -> Iterator[Trait]:
    if any(body.get(field) for field in _TOOL_FIELDS):
        yield Trait.TOOLS
    if body.get("n") not in (None, 1):
        yield Trait.MANY_CHOICES
    if body.get("logprobs") or body.get("top_logprobs"):
        yield Trait.LOGPROBS
    modalities = body.get("modalities")
    if body.get("audio") or (isinstance(modalities, list) and "audio" in modalities):
        yield Trait.AUDIO
    if body.get("web_search_options") is not None:
        yield Trait.LIVE_SEARCH
    if asks_for_format(body.get("response_format")):
        yield Trait.RESPONSE_FORMAT


def _message_traits(message: Mapping[str, Any]) -> Iterator[Trait]:
    if message.get("role") in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
        yield Trait.TOOLS
    if message.get("audio"):
        yield Trait.AUDIO
    content = message.get("content")
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        trait = _PART_TRAITS.get(kind, Trait.MIXED_CONTENT) if isinstance(kind, str) else Trait.MIXED_CONTENT
        if trait is not None:
            yield trait


def _text_traits(last: Mapping[str, Any], texts: list[str]) -> Iterator[Trait]:
    if last.get("role") != "user":
        yield Trait.LAST_MESSAGE
    if not any(text.strip() for text in texts):
        yield Trait.NO_TEXT


def _blank_text(message: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the message with its texts taken out, and the texts. A plain string counts as one text part."""
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or message.get("role") != "user":
        return dict(message), []
    texts: list[str] = []
    blanked: list[Any] = []
    for part in parts:
        if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
            blanked.append(["text", {key: value for key, value in part.items() if key != "text"}])
        else:
            blanked.append(["part", part])
    return {**message, "content": blanked}, texts
