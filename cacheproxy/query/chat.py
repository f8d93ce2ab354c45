"""A chat completions body to a Query."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from cacheproxy.model import Query, Trait, Wire
from cacheproxy.query.canonical import canonical

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cacheproxy.model import Controls, Scope

DIALECT = "chat"

# Fields that shape only the wire. Everything else, known or not, is part of both fingerprints.
_WIRE_FIELDS = frozenset({"stream", "stream_options"})
_WIRE_OPTIONS = frozenset({"include_usage", "include_obfuscation"})
_TOOL_FIELDS = ("tools", "tool_choice", "functions", "function_call", "parallel_tool_calls")
_STATE_FIELDS = ("previous_response_id", "conversation", "conversation_id", "thread_id", "store")
_PART_TRAITS = {"text": None, "image_url": Trait.IMAGE, "input_image": Trait.IMAGE, "input_audio": Trait.AUDIO}


def read_chat(body: Mapping[str, Any], scope: Scope, controls: Controls, variant: bytes = b"") -> Query:
    """Understand a decoded body. Never raises: an unknown shape becomes a trait, and the backend judges the request.

    `variant` is what else of the HTTP request changes the answer (the query string, beta features). Both
    fingerprints are SHA-256 over canonical JSON; the exact one extends the compatibility one by the last user text.
    """
    messages = body.get("messages")
    traits = set(_body_traits(body))
    if not scope.tenant:
        traits.add(Trait.ANONYMOUS)
    texts: list[str] = []
    blanked = messages
    if isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages):
        for message in messages:
            traits.update(_message_traits(message))
        last, texts = _blank_text(messages[-1])
        blanked = [*messages[:-1], last]
        traits.update(_text_traits(messages[-1], texts))
    else:
        traits.add(Trait.UNREADABLE)
    if not _sound(body):
        traits.add(Trait.UNREADABLE)
    options = body.get("stream_options")
    wire_options = options if isinstance(options, dict) else {}
    rest = {key: value for key, value in body.items() if key not in _WIRE_FIELDS and key != "messages"}
    head = [DIALECT, scope.tenant, scope.namespace, variant.decode("latin-1")]
    extra = {key: value for key, value in wire_options.items() if key not in _WIRE_OPTIONS}
    compatibility = hashlib.sha256(canonical([head, rest, extra, blanked])).digest()
    model, temperature = body.get("model"), body.get("temperature")
    return Query(
        dialect=DIALECT,
        scope=scope,
        model=model if isinstance(model, str) else "",
        text="\n".join(texts),
        fingerprint=hashlib.sha256(compatibility + canonical(texts)).digest(),
        compatibility=compatibility,
        wire=Wire(stream=body.get("stream") is True, include_usage=wire_options.get("include_usage") is True),
        controls=controls,
        traits=frozenset(traits),
        temperature=temperature if isinstance(temperature, int | float) else None,
    )


def _sound(body: Mapping[str, Any]) -> bool:
    """Whether the fields this module reads have the types it reads them as (a backend may take "1.5" for a number)."""
    options, temperature = body.get("stream_options"), body.get("temperature")
    return (
        isinstance(body.get("stream"), bool | None)
        and isinstance(options, dict | None)
        and all(isinstance((options or {}).get(option), bool | None) for option in _WIRE_OPTIONS)
        and isinstance(temperature, int | float | None)
        and not isinstance(temperature, bool)
    )


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
    if any(body.get(field) for field in _STATE_FIELDS):
        yield Trait.STATEFUL
    if body.get("web_search_options") is not None:
        yield Trait.LIVE_SEARCH
    response_format = body.get("response_format")
    if response_format is not None and response_format != {"type": "text"}:
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
