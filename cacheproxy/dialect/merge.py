"""Deltas merged into what they add up to, by the rules clients use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

SET_ONCE = frozenset({"role", "id", "type", "name"})
"""Texts that a stream may repeat, and that are never joined."""


class Malformed(Exception):
    """An event that no client could make sense of."""


def merge_message(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    """Add a delta: texts are joined, lists extended, tool calls merged by index, else the last told value counts."""
    for key, value in delta.items():
        if key == "tool_calls" and value is not None:
            _merge_tool_calls(message.setdefault(key, []), listed(value))
        elif key in SET_ONCE and isinstance(value, str) and message.get(key):
            continue
        else:
            message[key] = _merged(message.get(key), value)


def update(known: dict[str, Any], news: Mapping[str, Any], *left_out: str) -> None:
    """Add the fields beside a delta: lists are extended, objects updated, and the last value that is not null counts.

    Texts are not joined: beside a delta stand verdicts (a finish reason, a filter's severity), not pieces.
    """
    for key, value in news.items():
        if key not in left_out:
            known[key] = _updated(known.get(key), value)


def listed(value: Any) -> list[dict[str, Any]]:
    """Return a list of objects. Raises Malformed for anything else."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Malformed
    return value


def _merged(old: Any, new: Any) -> Any:
    if new is None or old is None:
        return old if new is None else new
    if isinstance(old, str) and isinstance(new, str):
        return old + new
    if isinstance(old, list) and isinstance(new, list):
        old.extend(new)
        return old
    if isinstance(old, dict) and isinstance(new, dict):
        merge_message(old, new)
        return old
    return new


def _updated(old: Any, new: Any) -> Any:
    if new is None or old is None:
        return old if new is None else new
    if isinstance(old, list) and isinstance(new, list):
        old.extend(new)
        return old
    if isinstance(old, dict) and isinstance(new, dict):
        update(old, new)
        return old
    return new


def _merge_tool_calls(calls: list[Any], deltas: list[Any]) -> None:
    for delta in deltas:
        index = delta.get("index", len(calls))
        if not isinstance(index, int) or not 0 <= index <= len(calls):
            raise Malformed
        if index == len(calls):
            calls.append({})
        call, told = calls[index], delta.get("id")
        if told and call.get("id") and told != call["id"]:
            raise Malformed  # some backends give every call of a turn index 0: joined, two calls would make nonsense
        merge_message(call, {key: value for key, value in delta.items() if key != "index"})
