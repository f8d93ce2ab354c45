"""Whole: why an answer's body is not one that may be kept, by dialect. Strict: only a finished, ordinary answer is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_CALLING = ("tool_calls", "function_call")
_FINISHES = ("length", "content_filter", *_CALLING)
_STATUSES = ("incomplete", "failed", "in_progress", "queued", "cancelled")
# Items that ask the caller to run a tool, and the field that holds what it is to be run on.
_CALL_ITEMS = {"function_call": "arguments", "custom_tool_call": "input"}


def flaw(dialect: str, body: Mapping[str, Any], *, keep_tool_calls: bool = False) -> str:
    """Return why a canonical body may not be kept, or "". Calls of tools are whole only with `keep_tool_calls`."""
    if body.get("error") is not None:
        return "error_object"
    return _FLAWS[dialect](body, keep_tool_calls)


def calls_tools(dialect: str, body: Mapping[str, Any]) -> bool:
    """Whether a body that was kept calls tools: policy may have changed since."""
    if dialect == "chat":
        messages = [choice["message"] for choice in body.get("choices", ())]
        return any(message.get("tool_calls") or message.get("function_call") for message in messages)
    return dialect == "responses" and any(item["type"] in _CALL_ITEMS for item in body.get("output", ()))


def _chat_flaw(body: Mapping[str, Any], keep_tool_calls: bool) -> str:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        return "no_choices"
    found = next((found for choice in choices if (found := _choice_flaw(choice, keep_tool_calls))), "")
    return found or _index_flaw(choices)


def _choice_flaw(choice: object, keep_tool_calls: bool) -> str:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return "no_message"
    if choice.get("error") is not None:
        return "error_object"
    finish, calls = choice.get("finish_reason"), keep_tool_calls and _calls_tools(message)
    if finish != "stop" and not (calls and finish in _CALLING):
        return f"finish_{_known_finish(finish)}"
    if (message.get("tool_calls") or message.get("function_call")) and not calls:
        return "tool_calls"
    if message.get("refusal"):
        return "refusal"
    if message.get("audio"):
        return "audio"
    content = message.get("content")
    if calls:
        return "" if isinstance(content, str | None) else "no_content"
    return "" if isinstance(content, str) and content.strip() else "no_content"


def _calls_tools(message: Mapping[str, Any]) -> bool:
    """Whether a message calls tools and every call in it is whole: named, and with arguments that are text."""
    calls, function = message.get("tool_calls"), message.get("function_call")
    if not calls and not function:
        return False
    called = isinstance(calls, list) and all(_whole_call(call) for call in calls) if calls else True
    return called and (_whole_function(function, "arguments") if function else True)


def _whole_call(call: object) -> bool:
    if not isinstance(call, dict) or not isinstance(call.get("id"), str) or not call["id"]:
        return False
    if call.get("type") == "custom":
        return _whole_function(call.get("custom"), "input")
    return _whole_function(call.get("function"), "arguments")


def _whole_function(function: object, spoken: str) -> bool:
    if not isinstance(function, dict):
        return False
    return isinstance(function.get("name"), str) and bool(function["name"]) and isinstance(function.get(spoken), str)


def _completion_flaw(body: Mapping[str, Any], _: bool) -> str:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        return "no_choices"
    for choice in choices:
        if not isinstance(choice, dict):
            return "no_content"
        if choice.get("finish_reason") != "stop":
            return f"finish_{_known_finish(choice.get('finish_reason'))}"
        if choice.get("error") is not None:
            return "error_object"
        if not isinstance(choice.get("text"), str) or not choice["text"].strip():
            return "no_content"
    return _index_flaw(choices)


def _index_flaw(choices: list[dict[str, Any]]) -> str:
    """Return why these choices cannot be told apart, or "": two under one index would be merged in a stream."""
    indexes = [choice.get("index", position) for position, choice in enumerate(choices)]
    return "" if len(set(map(repr, indexes))) == len(indexes) else "repeated_index"


def _responses_flaw(body: Mapping[str, Any], keep_tool_calls: bool) -> str:
    status, output = body.get("status"), body.get("output")
    if status != "completed":
        return f"response_{status if status in _STATUSES else 'unknown' if status else 'missing'}"
    if body.get("incomplete_details") is not None:
        return "response_incomplete"
    if body.get("conversation") is not None or body.get("previous_response_id") is not None:
        return "stateful"
    if not isinstance(output, list) or not output:
        return "no_output"
    found = next(filter(None, (_item_flaw(item, keep_tool_calls) for item in output)), "")
    return found or ("" if any(map(_tells, output)) else "no_content")


def _item_flaw(item: object, keep_tool_calls: bool) -> str:
    kind = item.get("type") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(kind, str):
        return "unknown_item"
    if kind in _CALL_ITEMS:
        whole = isinstance(item.get("call_id"), str) and _whole_function(item, _CALL_ITEMS[kind])
        return "" if keep_tool_calls and whole and item.get("status") in (None, "completed") else "tool_calls"
    if kind == "reasoning":
        return "" if item.get("status") in (None, "completed") else "item_not_completed"
    if kind != "message":
        return "tool_output"  # what a tool of the backend did: it may do something else next time
    if item.get("status") != "completed":
        return "item_not_completed"
    parts = item.get("content")
    return next(filter(None, map(_part_flaw, parts)), "") if isinstance(parts, list) else "no_content"


def _part_flaw(part: object) -> str:
    if not isinstance(part, dict):
        return "unknown_content"
    if part.get("type") == "refusal":
        return "refusal"
    return "" if part.get("type") == "output_text" and isinstance(part.get("text"), str) else "unknown_content"


def _tells(item: Mapping[str, Any]) -> bool:
    """Whether a sound item holds what was asked for: a text, or a call of a tool."""
    return item["type"] in _CALL_ITEMS or (
        item["type"] == "message" and any(part["text"].strip() for part in item["content"])
    )


def _known_finish(reason: object) -> str:
    return reason if isinstance(reason, str) and reason in _FINISHES else "unknown" if reason else "missing"


def _embeddings_flaw(body: Mapping[str, Any], _: bool) -> str:
    """Whether there are vectors at all; each is judged by itself (`dialect/embeddings.py`)."""
    return "" if isinstance(body.get("data"), list) and body["data"] else "no_embeddings"


_FLAWS: dict[str, Callable[[Mapping[str, Any], bool], str]] = {
    "chat": _chat_flaw,
    "completions": _completion_flaw,
    "responses": _responses_flaw,
    "embeddings": _embeddings_flaw,
}
