"""Augmentable: whether the small model may be asked in the large one's place, and why not. Pure.

Only what is known to mean the same to any model passes: a field that is not known here may ask for something that a
small backend silently leaves out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cacheproxy.query.keys import asks_for_format

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MOST_TURNS = 4
"""Questions of a conversation, the last one included: a small model loses the thread of a longer one."""

UNREADABLE = "unrecognised_shape"
UNKNOWN = "unknown_field"

_TOLD = frozenset(
    {
        *("model", "stream", "stream_options", "seed", "stop", "truncation", "verbosity", "parallel_tool_calls"),
        *("max_tokens", "max_completion_tokens", "max_output_tokens"),
        *("temperature", "top_p", "top_k", "min_p"),
        *("frequency_penalty", "presence_penalty", "repetition_penalty"),
        *("user", "metadata", "safety_identifier", "service_tier", "prompt_cache_key", "prompt_cache_retention"),
    }
)
"""Fields that any model takes alike, whatever they hold, and those that only say who asks."""


def _nothing(value: object) -> bool:
    return not value


def _one(value: object) -> bool:
    return value is None or (type(value) is int and value == 1)


def _no_logprobs(value: object) -> bool:
    return value is None or value is False  # 0 asks a completion for those of the tokens it chose


def _plain(value: object) -> bool:
    return not asks_for_format(value)


def _plain_text(value: object) -> bool:
    return isinstance(value, dict) and not value.keys() - {"format", "verbosity"} and _plain(value.get("format"))


_REASONS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "tools": ("tools", _nothing),
    "functions": ("tools", _nothing),
    "function_call": ("tools", _nothing),
    "tool_choice": ("tools", lambda value: value in (None, "auto", "none")),
    "max_tool_calls": ("tools", _nothing),
    "web_search_options": ("live_search", lambda value: value is None),
    "response_format": ("response_format", _plain),
    "n": ("n", _one),
    "best_of": ("best_of", _one),
    "logprobs": ("logprobs", _no_logprobs),
    "top_logprobs": ("logprobs", _nothing),
    "logit_bias": ("logit_bias", _nothing),  # of the large model's token ids
    "prediction": ("prediction", _nothing),
    "audio": ("audio", _nothing),
    "modalities": ("audio", lambda value: value in (None, [], ["text"])),
    "reasoning": ("reasoning", lambda value: not value or (isinstance(value, dict) and not any(value.values()))),
    "reasoning_effort": ("reasoning", _nothing),
    "thinking": ("reasoning", _nothing),
    "include_reasoning": ("reasoning", _nothing),
    "enable_thinking": ("reasoning", _nothing),
    "chat_template_kwargs": ("reasoning", _nothing),
    "include": ("include", _nothing),
    "previous_response_id": ("stateful", _nothing),
    "conversation": ("stateful", _nothing),
    "conversation_id": ("stateful", _nothing),
    "thread_id": ("stateful", _nothing),
    "background": ("stateful", _nothing),
    "store": ("stateful", _nothing),
    "echo": ("echo", _nothing),
    "suffix": ("suffix", _nothing),
}
"""Fields with the reason that each one is against it, unless what it holds is nothing out of the ordinary."""

_RESPONSES: dict[str, tuple[str, Callable[[object], bool]]] = {
    "prompt": ("stateful", lambda value: value is None),
    "instructions": (UNREADABLE, lambda value: isinstance(value, str)),
    "text": ("response_format", _plain_text),
}
_TABLES = {"chat": _REASONS, "completions": _REASONS, "responses": _REASONS | _RESPONSES}
_CONTENT = {"chat": "messages", "completions": "prompt", "responses": "input"}

_ROLES = ("system", "developer", "user", "assistant")
_TEXTS = ("text", "input_text", "output_text")
_MESSAGE = frozenset({"type", "role", "content", "name", "id", "status", "phase"})
_PART = frozenset({"type", "text"})


def why_not(body: Mapping[str, Any], dialect: str, *, most_turns: int = MOST_TURNS) -> str:
    """Return why a decoded body can only be sent to the model that was asked for, "" where the small one may have it.

    Any body is understood: one of an unknown shape is not augmentable.
    """
    if dialect not in _CONTENT:
        return "dialect"
    return next(_against(body, dialect, most_turns), "")


def answer_tokens(body: Mapping[str, Any]) -> int | None:
    """Return how long an answer may become by the caller's word, in tokens; None where he sets no limit."""
    limits = (body.get(name) for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"))
    return next((limit for limit in limits if type(limit) is int and limit > 0), None)


def _against(body: Mapping[str, Any], dialect: str, most_turns: int) -> Iterator[str]:
    content, table = _CONTENT[dialect], _TABLES[dialect]
    yield from (why for name, (why, harmless) in table.items() if name in body and not _passes(body[name], harmless))
    if not isinstance(body.get("model"), str) or not isinstance(body.get("stream"), bool | None):
        yield UNREADABLE
    if dialect == "responses" and body.get("store") is not False:
        # Answers are kept unless told otherwise, and the next request may name one: the large model would not know it.
        yield "stored"
    given = body.get(content)
    if dialect == "completions":
        yield from _prompt(given)
    elif dialect == "responses" and isinstance(given, str):
        yield from _talk([{"role": "user", "content": given}], most_turns)
    else:
        yield from _talk(given, most_turns)
    if any(
        told is not None and name != content and name not in _TOLD and name not in table for name, told in body.items()
    ):
        yield UNKNOWN


def _passes(value: object, harmless: Callable[[object], bool]) -> bool:
    return value is None or harmless(value)


def _prompt(prompt: object) -> Iterator[str]:
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt:
        yield "prompts" if all(isinstance(item, str) for item in prompt) else "token_ids"
    elif not isinstance(prompt, str | None):
        yield UNREADABLE
    elif not (prompt or "").strip():
        yield "no_text"


def _talk(messages: object, most_turns: int) -> Iterator[str]:
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        yield UNREADABLE
        return
    for message in messages:
        yield from _message(message)
    last = messages[-1]
    if last["role"] != "user":
        yield "prefill" if last["role"] == "assistant" else "last_message_not_user"
    elif not any(text.strip() for text in _told(last["content"])):
        yield "no_text"
    if sum(message["role"] == "user" for message in messages) > most_turns:
        yield "long_conversation"


def _message(message: Mapping[str, Any]) -> Iterator[str]:
    kind, role, content = message.get("type") or "message", message.get("role"), message.get("content")
    if message.get("tool_calls") or message.get("function_call") or role in ("tool", "function") or _calls(kind):
        yield "tools"
    if message.get("audio"):
        yield "audio"
    if kind == "reasoning" or message.get("reasoning_content") or message.get("reasoning"):
        yield "reasoning"
    if kind == "item_reference" or (role is None and "id" in message):  # only the backend knows what it stands for
        yield "stateful"
    if kind != "message" or role not in _ROLES or not isinstance(content, str | list):
        yield UNREADABLE
    for part in content if isinstance(content, list) else ():
        yield from _part(part)
    if any(told and name not in _MESSAGE for name, told in message.items()):
        yield UNKNOWN


def _calls(kind: object) -> bool:
    return isinstance(kind, str) and kind.endswith(("_call", "_call_output"))


def _part(part: object) -> Iterator[str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        yield UNREADABLE
    elif kind not in _TEXTS:
        yield "audio" if kind == "input_audio" else "multimodal"
    elif not isinstance(part.get("text"), str):
        yield UNREADABLE
    elif any(told and name not in _PART for name, told in part.items()):
        yield UNKNOWN


def _told(content: str | list[dict[str, str]]) -> tuple[str, ...]:
    return (content,) if isinstance(content, str) else tuple(part["text"] for part in content)
