"""Whole: why an answer's body is not one that may be kept, by dialect. Strict: only a finished, ordinary answer is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def flaw(dialect: str, body: Mapping[str, Any]) -> str:
    """Return why a canonical body may not be kept, or ""."""
    if body.get("error") is not None:
        return "error_object"
    return _FLAWS[dialect](body)


def _chat_flaw(body: Mapping[str, Any]) -> str:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        return "no_choices"
    for choice in choices:
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict):
            return "no_message"
        if choice.get("finish_reason") != "stop":
            return f"finish_{_known_finish(choice.get('finish_reason'))}"
        if message.get("tool_calls") or message.get("function_call"):
            return "tool_calls"
        if message.get("refusal"):
            return "refusal"
        if message.get("audio"):
            return "audio"
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            return "no_content"
    return ""


def _known_finish(reason: object) -> str:
    known = ("length", "content_filter", "tool_calls", "function_call")
    return reason if isinstance(reason, str) and reason in known else "unknown" if reason else "missing"


_FLAWS = {"chat": _chat_flaw}
